-- A kind of alert more: Kafka dropped records before they were read.
ALTER TABLE internal.alerts COMMENT COLUMN `kind` 'input_drift, score_drift, loss_drift, loss_recovered, partition_halted, records_missing';

CREATE OR REPLACE VIEW default.alerts (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at` DateTime64(3, 'UTC') COMMENT 'When it was decided or computed',
    `kind` LowCardinality(String) COMMENT 'input_drift, score_drift, loss_drift, loss_recovered, partition_halted, records_missing',
    `severity` LowCardinality(String) COMMENT 'severe, normal or minor',
    `subject` String COMMENT 'What it is about: feature, loss, topic partition',
    `version` LowCardinality(String) COMMENT 'Version concerned',
    `message` String COMMENT 'One line for a person',
    `evidence` String COMMENT 'The numbers behind it, JSON'
) AS
SELECT `event_id`, `model`, fromUnixTimestamp64Milli(at_ms, 'UTC') AS `at`, `kind`, `severity`, `subject`, `version`, `message`, `evidence`
FROM internal.alerts FINAL
COMMENT 'Evidence that crossed its threshold';

-- Each decision is one row with the numbers it was made from.
CREATE TABLE IF NOT EXISTS internal.alerts (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at_ms` Int64 COMMENT 'When it was decided or computed, milliseconds since 1970',
    `kind` LowCardinality(String) COMMENT 'input_drift, score_drift, loss_drift, loss_recovered, partition_halted',
    `severity` LowCardinality(String) COMMENT 'severe, normal or minor',
    `subject` String COMMENT 'What it is about: feature, loss, topic partition',
    `version` LowCardinality(String) COMMENT 'Version concerned',
    `message` String COMMENT 'One line for a person',
    `evidence` String COMMENT 'The numbers behind it, JSON'
)
ENGINE = ReplacingMergeTree(at_ms)
ORDER BY (model, event_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Evidence that crossed its threshold';

CREATE OR REPLACE VIEW default.alerts (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at` DateTime64(3, 'UTC') COMMENT 'When it was decided or computed',
    `kind` LowCardinality(String) COMMENT 'input_drift, score_drift, loss_drift, loss_recovered, partition_halted',
    `severity` LowCardinality(String) COMMENT 'severe, normal or minor',
    `subject` String COMMENT 'What it is about: feature, loss, topic partition',
    `version` LowCardinality(String) COMMENT 'Version concerned',
    `message` String COMMENT 'One line for a person',
    `evidence` String COMMENT 'The numbers behind it, JSON'
) AS
SELECT `event_id`, `model`, fromUnixTimestamp64Milli(at_ms, 'UTC') AS `at`, `kind`, `severity`, `subject`, `version`, `message`, `evidence`
FROM internal.alerts FINAL
COMMENT 'Evidence that crossed its threshold';

CREATE TABLE IF NOT EXISTS internal.retrains (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at_ms` Int64 COMMENT 'When it was decided or computed, milliseconds since 1970',
    `kind` LowCardinality(String) COMMENT 'initial, update or major',
    `reason` String COMMENT 'Why',
    `base_version` LowCardinality(String) COMMENT 'Version it starts from, empty for none',
    `base_artifact` String COMMENT 'Artifact it starts from',
    `new_version` LowCardinality(String) COMMENT 'Version that will come out',
    `dedupe_key` String COMMENT 'Orders with one key are one order',
    `labels_through_ms` Int64 COMMENT 'Only labels joined up to here are used, milliseconds since 1970',
    `seed` UInt64 COMMENT 'Random seed',
    `evidence` String COMMENT 'The numbers behind it, JSON'
)
ENGINE = ReplacingMergeTree(at_ms)
ORDER BY (model, event_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Orders for a new version, with their reason';

CREATE OR REPLACE VIEW default.retrains (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at` DateTime64(3, 'UTC') COMMENT 'When it was decided or computed',
    `kind` LowCardinality(String) COMMENT 'initial, update or major',
    `reason` String COMMENT 'Why',
    `base_version` LowCardinality(String) COMMENT 'Version it starts from, empty for none',
    `base_artifact` String COMMENT 'Artifact it starts from',
    `new_version` LowCardinality(String) COMMENT 'Version that will come out',
    `dedupe_key` String COMMENT 'Orders with one key are one order',
    `labels_through` DateTime64(3, 'UTC') COMMENT 'Only labels joined up to here are used',
    `seed` UInt64 COMMENT 'Random seed',
    `evidence` String COMMENT 'The numbers behind it, JSON'
) AS
SELECT `event_id`, `model`, fromUnixTimestamp64Milli(at_ms, 'UTC') AS `at`, `kind`, `reason`, `base_version`, `base_artifact`, `new_version`, `dedupe_key`, fromUnixTimestamp64Milli(labels_through_ms, 'UTC') AS `labels_through`, `seed`, `evidence`
FROM internal.retrains FINAL
COMMENT 'Orders for a new version, with their reason';

CREATE TABLE IF NOT EXISTS internal.candidates (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at_ms` Int64 COMMENT 'When it was decided or computed, milliseconds since 1970',
    `retrain_id` String COMMENT 'event_id of the retrain order',
    `kind` LowCardinality(String) COMMENT 'initial, update or major',
    `version` LowCardinality(String) COMMENT 'The new version',
    `artifact` String COMMENT 'Folder name in the artifact store, empty if none was made',
    `base_version` LowCardinality(String) COMMENT 'Version it was trained from',
    `passed` Bool COMMENT 'Whether it passed its gates',
    `reason` String COMMENT 'Why not',
    `rows` UInt64 COMMENT 'Rows it was fitted on',
    `seed` UInt64 COMMENT 'Random seed',
    `label_from_ms` Int64 COMMENT 'Oldest label used was joined then, milliseconds since 1970',
    `label_to_ms` Int64 COMMENT 'Newest label used was joined then, milliseconds since 1970',
    `newest_prediction_id` String COMMENT 'Prediction of the newest label used',
    `train_ms` Float64 COMMENT 'Duration of the training in milliseconds',
    `report` String COMMENT 'Evaluation on unseen rows, JSON'
)
ENGINE = ReplacingMergeTree(at_ms)
ORDER BY (model, event_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'New versions with their evaluation';

CREATE OR REPLACE VIEW default.candidates (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at` DateTime64(3, 'UTC') COMMENT 'When it was decided or computed',
    `retrain_id` String COMMENT 'event_id of the retrain order',
    `kind` LowCardinality(String) COMMENT 'initial, update or major',
    `version` LowCardinality(String) COMMENT 'The new version',
    `artifact` String COMMENT 'Folder name in the artifact store, empty if none was made',
    `base_version` LowCardinality(String) COMMENT 'Version it was trained from',
    `passed` Bool COMMENT 'Whether it passed its gates',
    `reason` String COMMENT 'Why not',
    `rows` UInt64 COMMENT 'Rows it was fitted on',
    `seed` UInt64 COMMENT 'Random seed',
    `label_from` DateTime64(3, 'UTC') COMMENT 'Oldest label used was joined then',
    `label_to` DateTime64(3, 'UTC') COMMENT 'Newest label used was joined then',
    `newest_prediction_id` String COMMENT 'Prediction of the newest label used',
    `train_ms` Float64 COMMENT 'Duration of the training in milliseconds',
    `report` String COMMENT 'Evaluation on unseen rows, JSON'
) AS
SELECT `event_id`, `model`, fromUnixTimestamp64Milli(at_ms, 'UTC') AS `at`, `retrain_id`, `kind`, `version`, `artifact`, `base_version`, `passed`, `reason`, `rows`, `seed`, fromUnixTimestamp64Milli(label_from_ms, 'UTC') AS `label_from`, fromUnixTimestamp64Milli(label_to_ms, 'UTC') AS `label_to`, `newest_prediction_id`, `train_ms`, `report`
FROM internal.candidates FINAL
COMMENT 'New versions with their evaluation';

CREATE TABLE IF NOT EXISTS internal.rollouts (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at_ms` Int64 COMMENT 'When it was decided or computed, milliseconds since 1970',
    `action` LowCardinality(String) COMMENT 'introduce, promote_update, promote_major, start_shadow, await_approval, refuse, revert, rollback, freeze, unfreeze',
    `version` LowCardinality(String) COMMENT 'Version concerned',
    `artifact` String COMMENT 'Artifact concerned',
    `revision` UInt64 COMMENT 'Revision of the route table that came with it',
    `stage` LowCardinality(String) COMMENT 'Stage after the decision',
    `reason` String COMMENT 'Why',
    `by` String COMMENT 'controller, or the person',
    `evidence` String COMMENT 'The numbers behind it, JSON'
)
ENGINE = ReplacingMergeTree(at_ms)
ORDER BY (model, event_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'What was decided about versions, with its evidence';

CREATE OR REPLACE VIEW default.rollouts (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at` DateTime64(3, 'UTC') COMMENT 'When it was decided or computed',
    `action` LowCardinality(String) COMMENT 'introduce, promote_update, promote_major, start_shadow, await_approval, refuse, revert, rollback, freeze, unfreeze',
    `version` LowCardinality(String) COMMENT 'Version concerned',
    `artifact` String COMMENT 'Artifact concerned',
    `revision` UInt64 COMMENT 'Revision of the route table that came with it',
    `stage` LowCardinality(String) COMMENT 'Stage after the decision',
    `reason` String COMMENT 'Why',
    `by` String COMMENT 'controller, or the person',
    `evidence` String COMMENT 'The numbers behind it, JSON'
) AS
SELECT `event_id`, `model`, fromUnixTimestamp64Milli(at_ms, 'UTC') AS `at`, `action`, `version`, `artifact`, `revision`, `stage`, `reason`, `by`, `evidence`
FROM internal.rollouts FINAL
COMMENT 'What was decided about versions, with its evidence';

CREATE TABLE IF NOT EXISTS internal.routes (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at_ms` Int64 COMMENT 'When it was decided or computed, milliseconds since 1970',
    `revision` UInt64 COMMENT 'Monotonic',
    `stage` LowCardinality(String) COMMENT 'empty, steady, shadow or approval',
    `arms` String COMMENT 'Arms, JSON',
    `frozen` Bool COMMENT 'Whether the automaton is stopped',
    `champion` String COMMENT 'Version that answers',
    `major` String COMMENT 'Major that updates are measured against',
    `previous` String COMMENT 'Artifact a rollback returns to',
    `retained` Array(String) COMMENT 'Artifacts that stay loaded'
)
ENGINE = ReplacingMergeTree(at_ms)
ORDER BY (model, event_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Every route table, by revision';

CREATE OR REPLACE VIEW default.routes (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at` DateTime64(3, 'UTC') COMMENT 'When it was decided or computed',
    `revision` UInt64 COMMENT 'Monotonic',
    `stage` LowCardinality(String) COMMENT 'empty, steady, shadow or approval',
    `arms` String COMMENT 'Arms, JSON',
    `frozen` Bool COMMENT 'Whether the automaton is stopped',
    `champion` String COMMENT 'Version that answers',
    `major` String COMMENT 'Major that updates are measured against',
    `previous` String COMMENT 'Artifact a rollback returns to',
    `retained` Array(String) COMMENT 'Artifacts that stay loaded'
) AS
SELECT `event_id`, `model`, fromUnixTimestamp64Milli(at_ms, 'UTC') AS `at`, `revision`, `stage`, `arms`, `frozen`, `champion`, `major`, `previous`, `retained`
FROM internal.routes FINAL
COMMENT 'Every route table, by revision';

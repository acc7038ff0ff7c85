-- An operator may send a dead letter again: the same request has the same prediction id and one attempt more. All attempts stay in
-- internal.observations; the views show the newest of each prediction. Redrives are few, so the index on `attempt` leaves next to nothing to
-- read for the two sets below, whatever the size of the table.
ALTER TABLE internal.observations ADD COLUMN IF NOT EXISTS `attempt` UInt8 COMMENT '0 for an ordinary request, n for its n-th redrive';
ALTER TABLE internal.observations ADD INDEX IF NOT EXISTS attempts attempt TYPE minmax GRANULARITY 1;

-- The sink counts these tables by (prediction, attempt, arm), so they say the attempt too.
ALTER TABLE internal.prediction_lookup ADD COLUMN IF NOT EXISTS `attempt` UInt8 COMMENT '0 for an ordinary request, n for its n-th redrive';
ALTER TABLE internal.prediction_lookup_mv MODIFY QUERY
SELECT prediction_id, request_id, model, entity, role, arm, version, label, scores, segments, requested_at, observed_at, attempt
FROM internal.observations
WHERE status = 'answered';
ALTER TABLE internal.request_lookup ADD COLUMN IF NOT EXISTS `attempt` UInt8 COMMENT '0 for an ordinary request, n for its n-th redrive';
ALTER TABLE internal.request_lookup_mv MODIFY QUERY
SELECT model, request_id, requested_at, prediction_id, attempt
FROM internal.observations
WHERE status = 'answered' AND role = 'live' AND request_id != '';

CREATE OR REPLACE VIEW default.predictions (
    `prediction_id` UUID COMMENT 'Deterministic id of the row (UUIDv7 of its timestamp, topic id, partition, offset, row)',
    `request_id` String COMMENT 'The producer\'s own id of the request, empty if none was given',
    `model` LowCardinality(String) COMMENT 'Model name',
    `entity` String COMMENT 'The request record\'s key: tenant, session, account',
    `arm` LowCardinality(String) COMMENT 'Arm of the route table: champion, challenger, major, baseline; empty for a rejection',
    `version` LowCardinality(String) COMMENT 'Version that computed the scores, major.update; empty for a rejection',
    `propensity` Float32 COMMENT 'Probability with which this arm was chosen for this entity',
    `route_revision` UInt64 COMMENT 'Revision of the route table that chose the arm',
    `topic_id` UUID COMMENT 'Kafka\'s UUID of the request topic',
    `partition` Int32 COMMENT 'Partition of the request',
    `offset` Int64 COMMENT 'Offset of the request',
    `row` Int32 COMMENT 'Row within the request record',
    `status` LowCardinality(String) COMMENT 'answered or rejected',
    `reason` LowCardinality(String) COMMENT 'Why it was rejected, empty if answered',
    `requested_at` DateTime64(3, 'UTC') COMMENT 'Timestamp of the request record',
    `observed_at` DateTime64(3, 'UTC') COMMENT 'When the gateway had the scores',
    `label` LowCardinality(String) COMMENT 'Predicted class, empty for a regression or a rejection',
    `score` Float32 COMMENT 'Probability of the predicted class, or the regression\'s value; NaN for a rejection',
    `scores` Array(Float32) COMMENT 'Probability per class in the spec\'s order, or the one value of a regression',
    `numbers` Array(Float32) COMMENT 'Numeric features in the spec\'s order, before scaling; NaN is missing',
    `texts` Array(String) COMMENT 'Category and text features in the spec\'s order',
    `segments` Array(LowCardinality(String)) COMMENT 'Segments of the row that the spec declares, feature=value',
    `infer_ms` Float32 COMMENT 'How long Triton took for the micro-batch',
    `trace_id` String COMMENT 'W3C trace id of the request, empty if it carried none',
    `attempt` UInt8 COMMENT '0 for an ordinary request, n for its n-th redrive'
) AS
SELECT `prediction_id`, `request_id`, `model`, `entity`, `arm`, `version`, `propensity`, `route_revision`, `topic_id`, `partition`, `offset`, `row`, `status`, `reason`, `requested_at`, `observed_at`, `label`, `score`, `scores`, `numbers`, `texts`, `segments`, `infer_ms`, `trace_id`, `attempt`
FROM internal.observations
WHERE role = 'live' AND (
    prediction_id NOT IN (SELECT prediction_id FROM internal.observations WHERE attempt > 0 AND role = 'live')
    OR (prediction_id, attempt) IN (
        SELECT prediction_id, max(attempt) FROM internal.observations WHERE attempt > 0 AND role = 'live' GROUP BY prediction_id
    )
)
COMMENT 'Every live answer and rejection, exactly one a request row: the newest attempt';

CREATE OR REPLACE VIEW default.shadow_predictions (
    `prediction_id` UUID COMMENT 'Deterministic id of the row (UUIDv7 of its timestamp, topic id, partition, offset, row)',
    `request_id` String COMMENT 'The producer\'s own id of the request, empty if none was given',
    `model` LowCardinality(String) COMMENT 'Model name',
    `entity` String COMMENT 'The request record\'s key: tenant, session, account',
    `arm` LowCardinality(String) COMMENT 'Arm of the route table: champion, challenger, major, baseline; empty for a rejection',
    `version` LowCardinality(String) COMMENT 'Version that computed the scores, major.update; empty for a rejection',
    `propensity` Float32 COMMENT 'Probability with which this arm was chosen for this entity',
    `route_revision` UInt64 COMMENT 'Revision of the route table that chose the arm',
    `topic_id` UUID COMMENT 'Kafka\'s UUID of the request topic',
    `partition` Int32 COMMENT 'Partition of the request',
    `offset` Int64 COMMENT 'Offset of the request',
    `row` Int32 COMMENT 'Row within the request record',
    `status` LowCardinality(String) COMMENT 'answered or rejected',
    `reason` LowCardinality(String) COMMENT 'Why it was rejected, empty if answered',
    `requested_at` DateTime64(3, 'UTC') COMMENT 'Timestamp of the request record',
    `observed_at` DateTime64(3, 'UTC') COMMENT 'When the gateway had the scores',
    `label` LowCardinality(String) COMMENT 'Predicted class, empty for a regression or a rejection',
    `score` Float32 COMMENT 'Probability of the predicted class, or the regression\'s value; NaN for a rejection',
    `scores` Array(Float32) COMMENT 'Probability per class in the spec\'s order, or the one value of a regression',
    `numbers` Array(Float32) COMMENT 'Numeric features in the spec\'s order, before scaling; NaN is missing',
    `texts` Array(String) COMMENT 'Category and text features in the spec\'s order',
    `segments` Array(LowCardinality(String)) COMMENT 'Segments of the row that the spec declares, feature=value',
    `infer_ms` Float32 COMMENT 'How long Triton took for the micro-batch',
    `trace_id` String COMMENT 'W3C trace id of the request, empty if it carried none',
    `attempt` UInt8 COMMENT '0 for an ordinary request, n for its n-th redrive'
) AS
SELECT `prediction_id`, `request_id`, `model`, `entity`, `arm`, `version`, `propensity`, `route_revision`, `topic_id`, `partition`, `offset`, `row`, `status`, `reason`, `requested_at`, `observed_at`, `label`, `score`, `scores`, `numbers`, `texts`, `segments`, `infer_ms`, `trace_id`, `attempt`
FROM internal.observations
WHERE role = 'shadow' AND (
    prediction_id NOT IN (SELECT prediction_id FROM internal.observations WHERE attempt > 0 AND role = 'live')
    OR (prediction_id, attempt) IN (
        SELECT prediction_id, max(attempt) FROM internal.observations WHERE attempt > 0 AND role = 'live' GROUP BY prediction_id
    )
)
COMMENT 'What shadow arms would have answered to the same requests';

CREATE TABLE IF NOT EXISTS internal.dead_letter_decisions (
    `event_id` String COMMENT 'Deterministic: a dead letter is decided on once',
    `model` LowCardinality(String) COMMENT 'Model, empty if unknown',
    `at_ms` Int64 COMMENT 'When it was decided, milliseconds since 1970',
    `action` LowCardinality(String) COMMENT 'redriven or discarded',
    `stage` LowCardinality(String) COMMENT 'Which stage had given up on the record',
    `reason` LowCardinality(String) COMMENT 'Why',
    `dead_letter_topic_id` UUID COMMENT 'Kafka\'s UUID of the dead-letter topic',
    `dead_letter_partition` Int32 COMMENT 'Partition of the dead letter',
    `dead_letter_offset` Int64 COMMENT 'Offset of the dead letter',
    `source_topic` LowCardinality(String) COMMENT 'Topic of the original',
    `source_topic_id` UUID COMMENT 'Kafka\'s UUID of that topic',
    `source_partition` Int32 COMMENT 'Partition of the original',
    `source_offset` Int64 COMMENT 'Offset of the original',
    `attempt` UInt8 COMMENT 'The attempt that died; its redrive is the next',
    `by` String COMMENT 'Who decided',
    `comment` String COMMENT 'Why, in the person\'s words'
)
ENGINE = ReplacingMergeTree(at_ms)
ORDER BY (model, event_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'What operators did with dead letters';

CREATE OR REPLACE VIEW default.dead_letter_decisions (
    `event_id` String COMMENT 'Deterministic: a dead letter is decided on once',
    `model` LowCardinality(String) COMMENT 'Model, empty if unknown',
    `at` DateTime64(3, 'UTC') COMMENT 'When it was decided',
    `action` LowCardinality(String) COMMENT 'redriven or discarded',
    `stage` LowCardinality(String) COMMENT 'Which stage had given up on the record',
    `reason` LowCardinality(String) COMMENT 'Why',
    `dead_letter_topic_id` UUID COMMENT 'Kafka\'s UUID of the dead-letter topic',
    `dead_letter_partition` Int32 COMMENT 'Partition of the dead letter',
    `dead_letter_offset` Int64 COMMENT 'Offset of the dead letter',
    `source_topic` LowCardinality(String) COMMENT 'Topic of the original',
    `source_topic_id` UUID COMMENT 'Kafka\'s UUID of that topic',
    `source_partition` Int32 COMMENT 'Partition of the original',
    `source_offset` Int64 COMMENT 'Offset of the original',
    `attempt` UInt8 COMMENT 'The attempt that died; its redrive is the next',
    `by` String COMMENT 'Who decided',
    `comment` String COMMENT 'Why, in the person\'s words'
) AS
SELECT `event_id`, `model`, fromUnixTimestamp64Milli(at_ms, 'UTC') AS `at`, `action`, `stage`, `reason`, `dead_letter_topic_id`, `dead_letter_partition`, `dead_letter_offset`, `source_topic`, `source_topic_id`, `source_partition`, `source_offset`, `attempt`, `by`, `comment`
FROM internal.dead_letter_decisions FINAL
COMMENT 'What operators did with dead letters: sent again, or discarded';

ALTER TABLE internal.dead_letters ADD COLUMN IF NOT EXISTS `attempt` UInt8 COMMENT 'Which attempt died: 0 for the original, n for its n-th redrive';

CREATE OR REPLACE VIEW default.dead_letters (
    `reason` LowCardinality(String) COMMENT 'Why',
    `stage` LowCardinality(String) COMMENT 'Which stage gave up on it: gateway, labels, sink',
    `message` String COMMENT 'One line that names the field and what was expected',
    `field` String COMMENT 'The offending field',
    `model` LowCardinality(String) COMMENT 'Model, empty if unknown',
    `source_topic` LowCardinality(String) COMMENT 'Topic of the original',
    `source_topic_id` UUID COMMENT 'Kafka\'s UUID of that topic',
    `source_partition` Int32 COMMENT 'Partition of the original',
    `source_offset` Int64 COMMENT 'Offset of the original',
    `requested_at` DateTime64(3, 'UTC') COMMENT 'Timestamp of the original',
    `died_at` DateTime64(3, 'UTC') COMMENT 'When it was given up',
    `size_bytes` UInt32 COMMENT 'Size of the original value',
    `topic_id` UUID COMMENT 'Kafka\'s UUID of the dead-letter topic',
    `partition` Int32 COMMENT 'Partition of the dead letter',
    `offset` Int64 COMMENT 'Offset of the dead letter',
    `attempt` UInt8 COMMENT 'Which attempt died: 0 for the original, n for its n-th redrive',
    `status` String COMMENT 'open, redriven or discarded'
) AS
SELECT letters.`reason` AS `reason`, letters.`stage` AS `stage`, letters.`message` AS `message`, letters.`field` AS `field`, letters.`model` AS `model`, letters.`source_topic` AS `source_topic`, letters.`source_topic_id` AS `source_topic_id`, letters.`source_partition` AS `source_partition`, letters.`source_offset` AS `source_offset`, fromUnixTimestamp64Milli(letters.timestamp_ms, 'UTC') AS `requested_at`, fromUnixTimestamp64Milli(letters.died_at_ms, 'UTC') AS `died_at`, letters.`size_bytes` AS `size_bytes`, letters.`topic_id` AS `topic_id`, letters.`partition` AS `partition`, letters.`offset` AS `offset`, letters.attempt AS `attempt`, if(decisions.action = '', 'open', decisions.action) AS `status`
FROM internal.dead_letters AS letters
LEFT JOIN (
    SELECT dead_letter_topic_id, dead_letter_partition, dead_letter_offset, toString(action) AS action FROM internal.dead_letter_decisions FINAL
) AS decisions
ON letters.topic_id = decisions.dead_letter_topic_id AND letters.partition = decisions.dead_letter_partition AND letters.offset = decisions.dead_letter_offset
COMMENT 'Records that could not be served: why, where the original is, and what was done about it';

-- A person may let a halted partition pass (tidemill dead-letters pass).
ALTER TABLE internal.routes ADD COLUMN IF NOT EXISTS `rejections_pass_until_ms` Int64 COMMENT 'Requests with a timestamp up to this, milliseconds since 1970, are rejected without limit';
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
    `retained` Array(String) COMMENT 'Artifacts that stay loaded',
    `rejections_pass_until_ms` Int64 COMMENT 'Requests with a timestamp up to this, milliseconds since 1970, are rejected without limit'
) AS
SELECT `event_id`, `model`, fromUnixTimestamp64Milli(at_ms, 'UTC') AS `at`, `revision`, `stage`, `arms`, `frozen`, `champion`, `major`, `previous`, `retained`, `rejections_pass_until_ms`
FROM internal.routes FINAL
COMMENT 'Every route table, by revision';

-- Narrow and finely indexed, because labels ask for scattered ids: 256 rows a granule instead of 8192. Its own deduplication
-- window, because a view's target without one counts a repeated insert again.
CREATE TABLE IF NOT EXISTS internal.prediction_lookup (
    `prediction_id` UUID COMMENT 'Deterministic id of the row (UUIDv7 of its timestamp, topic id, partition, offset, row)',
    `request_id` String COMMENT 'The producer\'s own id of the request, empty if none was given',
    `model` LowCardinality(String) COMMENT 'Model name',
    `entity` String COMMENT 'The request record\'s key: tenant, session, account',
    `role` LowCardinality(String) COMMENT 'live: the answer the producer got; shadow: a copy nobody was answered with',
    `arm` LowCardinality(String) COMMENT 'Arm of the route table: champion, challenger, major, baseline; empty for a rejection',
    `version` LowCardinality(String) COMMENT 'Version that computed the scores, major.update; empty for a rejection',
    `requested_at` DateTime64(3, 'UTC') COMMENT 'Timestamp of the request record',
    `observed_at` DateTime64(3, 'UTC') COMMENT 'When the gateway had the scores',
    `label` LowCardinality(String) COMMENT 'Predicted class, empty for a regression or a rejection',
    `scores` Array(Float32) COMMENT 'Probability per class in the spec\'s order, or the one value of a regression',
    `segments` Array(LowCardinality(String)) COMMENT 'Segments of the row that the spec declares, feature=value'
)
ENGINE = MergeTree
ORDER BY (prediction_id, arm)
SETTINGS index_granularity = 256, non_replicated_deduplication_window = 10000
COMMENT 'Answered predictions by id, for joining labels';

CREATE MATERIALIZED VIEW IF NOT EXISTS internal.prediction_lookup_mv TO internal.prediction_lookup AS
SELECT prediction_id, request_id, model, entity, role, arm, version, label, scores, segments, requested_at, observed_at
FROM internal.observations
WHERE status = 'answered';

CREATE TABLE IF NOT EXISTS internal.request_lookup (
    `model` LowCardinality(String) COMMENT 'Model name',
    `request_id` String COMMENT 'The producer\'s own id of the request',
    `requested_at` DateTime64(3, 'UTC') COMMENT 'Timestamp of the request record',
    `prediction_id` UUID COMMENT 'The prediction that answered it'
)
ENGINE = MergeTree
ORDER BY (model, request_id, requested_at)
SETTINGS index_granularity = 256, non_replicated_deduplication_window = 10000
COMMENT 'Answered predictions by the producer\'s request id';

CREATE MATERIALIZED VIEW IF NOT EXISTS internal.request_lookup_mv TO internal.request_lookup AS
SELECT model, request_id, requested_at, prediction_id
FROM internal.observations
WHERE status = 'answered' AND role = 'live' AND request_id != '';

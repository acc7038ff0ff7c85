-- What versions would have answered to requests that were asked before. A table of its own, so that no metric, drift, outcome or
-- audit can count it. A run that is run again writes rows with the same key: the first holds, so that it changes nothing. A column that is
-- added to internal.observations is added here and to the view too.
CREATE TABLE IF NOT EXISTS internal.replays (
    `run_id` LowCardinality(String) COMMENT 'The replay: name and hash of model, artifact and offsets',
    `prediction_id` UUID COMMENT 'Deterministic id of the row (UUIDv7 of its timestamp, topic id, partition, offset, row)',
    `request_id` String COMMENT 'The producer\'s own id of the request, empty if none was given',
    `model` LowCardinality(String) COMMENT 'Model name',
    `entity` String COMMENT 'The request record\'s key: tenant, session, account',
    `role` LowCardinality(String) COMMENT 'Always replay',
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
    `attempt` UInt8 COMMENT '0 for an ordinary request, n for its n-th redrive',
    `precedence` UInt64 MATERIALIZED bitNot(toUInt64(toUnixTimestamp64Milli(observed_at))) COMMENT 'The earlier it was computed the higher; the highest holds'
)
ENGINE = ReplacingMergeTree(precedence)
ORDER BY (run_id, requested_at, prediction_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Replayed requests by run; never counted as live traffic';

CREATE OR REPLACE VIEW default.replays (
    `run_id` LowCardinality(String) COMMENT 'The replay: name and hash of model, artifact and offsets',
    `prediction_id` UUID COMMENT 'Deterministic id of the row (UUIDv7 of its timestamp, topic id, partition, offset, row)',
    `request_id` String COMMENT 'The producer\'s own id of the request, empty if none was given',
    `model` LowCardinality(String) COMMENT 'Model name',
    `entity` String COMMENT 'The request record\'s key: tenant, session, account',
    `role` LowCardinality(String) COMMENT 'Always replay',
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
SELECT `run_id`, `prediction_id`, `request_id`, `model`, `entity`, `role`, `arm`, `version`, `propensity`, `route_revision`, `topic_id`, `partition`, `offset`, `row`, `status`, `reason`, `requested_at`, `observed_at`, `label`, `score`, `scores`, `numbers`, `texts`, `segments`, `infer_ms`, `trace_id`, `attempt`
FROM internal.replays FINAL
COMMENT 'What a version would have answered to requests asked before, by run (tidemill replay)';

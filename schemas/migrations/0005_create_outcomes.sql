-- A revised label writes the row again with the next revision; readers see the newest through FINAL.
CREATE TABLE IF NOT EXISTS internal.outcomes (
    `outcome_id` UUID COMMENT 'Deterministic id of (prediction, arm, feedback, revision): repeats count once',
    `prediction_id` UUID COMMENT 'The prediction that the label belongs to',
    `model` LowCardinality(String) COMMENT 'Model name',
    `entity` String COMMENT 'Entity of the request',
    `role` LowCardinality(String) COMMENT 'live or shadow',
    `arm` LowCardinality(String) COMMENT 'Arm that predicted',
    `version` LowCardinality(String) COMMENT 'Version that predicted',
    `feedback_id` String COMMENT 'The feedback that carried the label',
    `revision` UInt32 COMMENT '0 for the first label of the prediction, then 1, 2, …',
    `truth` LowCardinality(String) COMMENT 'The label: a class; empty for a regression',
    `truth_value` Float64 COMMENT 'The label of a regression, NaN for a classification',
    `label` LowCardinality(String) COMMENT 'Predicted class',
    `scores` Array(Float32) COMMENT 'Predicted probabilities, or the value of a regression',
    `correct` UInt8 COMMENT '1 if label = truth, else 0; 0 for a regression',
    `loss` Float32 COMMENT 'Log loss of the truth, or squared error',
    `brier` Float32 COMMENT 'Multi-class Brier score; 0 for a regression',
    `previous_truth` LowCardinality(String) COMMENT 'Truth of the revision before, empty at revision 0',
    `previous_loss` Float32 COMMENT 'Loss of the revision before, 0 at revision 0',
    `previous_brier` Float32 COMMENT 'Brier score of the revision before, 0 at revision 0',
    `segments` Array(LowCardinality(String)) COMMENT 'Segments of the row, feature=value',
    `requested_at` DateTime64(3, 'UTC') COMMENT 'Timestamp of the request',
    `observed_at` DateTime64(3, 'UTC') COMMENT 'When the gateway had the scores',
    `labeled_at` DateTime64(3, 'UTC') COMMENT 'Event time of the label',
    `joined_at` DateTime64(3, 'UTC') COMMENT 'When label and prediction were joined',
    `feedback_topic_id` UUID COMMENT 'Kafka\'s UUID of the feedback topic',
    `feedback_partition` Int32 COMMENT 'Partition of the feedback',
    `feedback_offset` Int64 COMMENT 'Offset of the feedback'
)
ENGINE = ReplacingMergeTree(revision)
ORDER BY (model, prediction_id, arm)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Predictions joined with labels, by prediction and arm; the highest revision holds';

CREATE OR REPLACE VIEW default.outcomes (
    `outcome_id` UUID COMMENT 'Deterministic id of (prediction, arm, feedback, revision): repeats count once',
    `prediction_id` UUID COMMENT 'The prediction that the label belongs to',
    `model` LowCardinality(String) COMMENT 'Model name',
    `entity` String COMMENT 'Entity of the request',
    `role` LowCardinality(String) COMMENT 'live or shadow',
    `arm` LowCardinality(String) COMMENT 'Arm that predicted',
    `version` LowCardinality(String) COMMENT 'Version that predicted',
    `feedback_id` String COMMENT 'The feedback that carried the label',
    `revision` UInt32 COMMENT '0 for the first label of the prediction, then 1, 2, …',
    `truth` LowCardinality(String) COMMENT 'The label: a class; empty for a regression',
    `truth_value` Float64 COMMENT 'The label of a regression, NaN for a classification',
    `label` LowCardinality(String) COMMENT 'Predicted class',
    `scores` Array(Float32) COMMENT 'Predicted probabilities, or the value of a regression',
    `correct` UInt8 COMMENT '1 if label = truth, else 0; 0 for a regression',
    `loss` Float32 COMMENT 'Log loss of the truth, or squared error',
    `brier` Float32 COMMENT 'Multi-class Brier score; 0 for a regression',
    `previous_truth` LowCardinality(String) COMMENT 'Truth of the revision before, empty at revision 0',
    `previous_loss` Float32 COMMENT 'Loss of the revision before, 0 at revision 0',
    `previous_brier` Float32 COMMENT 'Brier score of the revision before, 0 at revision 0',
    `segments` Array(LowCardinality(String)) COMMENT 'Segments of the row, feature=value',
    `requested_at` DateTime64(3, 'UTC') COMMENT 'Timestamp of the request',
    `observed_at` DateTime64(3, 'UTC') COMMENT 'When the gateway had the scores',
    `labeled_at` DateTime64(3, 'UTC') COMMENT 'Event time of the label',
    `joined_at` DateTime64(3, 'UTC') COMMENT 'When label and prediction were joined',
    `feedback_topic_id` UUID COMMENT 'Kafka\'s UUID of the feedback topic',
    `feedback_partition` Int32 COMMENT 'Partition of the feedback',
    `feedback_offset` Int64 COMMENT 'Offset of the feedback'
) AS
SELECT `outcome_id`, `prediction_id`, `model`, `entity`, `role`, `arm`, `version`, `feedback_id`, `revision`, `truth`, `truth_value`, `label`, `scores`, `correct`, `loss`, `brier`, `previous_truth`, `previous_loss`, `previous_brier`, `segments`, `requested_at`, `observed_at`, `labeled_at`, `joined_at`, `feedback_topic_id`, `feedback_partition`, `feedback_offset`
FROM internal.outcomes FINAL
COMMENT 'Predictions joined with their newest label, live and shadow arms';

CREATE OR REPLACE VIEW default.labels (
    `prediction_id` UUID COMMENT 'The prediction that the label belongs to',
    `model` LowCardinality(String) COMMENT 'Model name',
    `entity` String COMMENT 'Entity of the request',
    `feedback_id` String COMMENT 'The feedback that carried the label',
    `revision` UInt32 COMMENT '0 for the first label of the prediction, then 1, 2, …',
    `truth` LowCardinality(String) COMMENT 'The label: a class; empty for a regression',
    `truth_value` Float64 COMMENT 'The label of a regression, NaN for a classification',
    `requested_at` DateTime64(3, 'UTC') COMMENT 'Timestamp of the request',
    `labeled_at` DateTime64(3, 'UTC') COMMENT 'Event time of the label',
    `joined_at` DateTime64(3, 'UTC') COMMENT 'When label and prediction were joined'
) AS
SELECT prediction_id, model, entity, feedback_id, revision, truth, truth_value, requested_at, labeled_at, joined_at
FROM internal.outcomes FINAL
WHERE role = 'live'
COMMENT 'The newest label of each live prediction';

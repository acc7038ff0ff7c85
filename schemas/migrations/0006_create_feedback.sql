-- Feedback as it came in, valid records only; the others are in dead_letters.
CREATE TABLE IF NOT EXISTS internal.feedback (
    `model` LowCardinality(String) COMMENT 'Model name',
    `feedback_id` String COMMENT 'Repeats with the same id count once',
    `prediction_id` String COMMENT 'Prediction it speaks of, empty if named by request id',
    `request_id` String COMMENT 'The producer\'s id of the request, empty if named by prediction id',
    `kind` LowCardinality(String) COMMENT 'label, rating, thumb, correction, comment or signal',
    `value` String COMMENT 'What was said',
    `name` LowCardinality(String) COMMENT 'Which signal',
    `source` LowCardinality(String) COMMENT 'Who said it',
    `entity` String COMMENT 'The record\'s key',
    `at_ms` Int64 COMMENT 'When it became known, milliseconds since 1970',
    `received_at_ms` Int64 COMMENT 'Timestamp of the record, milliseconds since 1970',
    `topic_id` UUID COMMENT 'Kafka\'s UUID of the topic',
    `partition` Int32 COMMENT 'Partition',
    `offset` Int64 COMMENT 'Offset'
)
ENGINE = ReplacingMergeTree
ORDER BY (model, feedback_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Feedback by id';

CREATE OR REPLACE VIEW default.feedback (
    `model` LowCardinality(String) COMMENT 'Model name',
    `feedback_id` String COMMENT 'Repeats with the same id count once',
    `prediction_id` String COMMENT 'Prediction it speaks of, empty if named by request id',
    `request_id` String COMMENT 'The producer\'s id of the request, empty if named by prediction id',
    `kind` LowCardinality(String) COMMENT 'label, rating, thumb, correction, comment or signal',
    `value` String COMMENT 'What was said',
    `name` LowCardinality(String) COMMENT 'Which signal',
    `source` LowCardinality(String) COMMENT 'Who said it',
    `entity` String COMMENT 'The record\'s key',
    `at` DateTime64(3, 'UTC') COMMENT 'When it became known',
    `received_at` DateTime64(3, 'UTC') COMMENT 'Timestamp of the record',
    `topic_id` UUID COMMENT 'Kafka\'s UUID of the topic',
    `partition` Int32 COMMENT 'Partition',
    `offset` Int64 COMMENT 'Offset'
) AS
SELECT `model`, `feedback_id`, `prediction_id`, `request_id`, `kind`, `value`, `name`, `source`, `entity`, fromUnixTimestamp64Milli(at_ms, 'UTC') AS `at`, fromUnixTimestamp64Milli(received_at_ms, 'UTC') AS `received_at`, `topic_id`, `partition`, `offset`
FROM internal.feedback FINAL
COMMENT 'Every valid piece of feedback, repeats once';

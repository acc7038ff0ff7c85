-- Reason and coordinates only: the original bytes stay in Kafka, behind their own access list.
CREATE TABLE IF NOT EXISTS internal.dead_letters (
    `reason` LowCardinality(String) COMMENT 'Why',
    `stage` LowCardinality(String) COMMENT 'Which stage gave up on it: gateway, labels, sink',
    `message` String COMMENT 'One line that names the field and what was expected',
    `field` String COMMENT 'The offending field',
    `model` LowCardinality(String) COMMENT 'Model, empty if unknown',
    `source_topic` LowCardinality(String) COMMENT 'Topic of the original',
    `source_topic_id` UUID COMMENT 'Kafka\'s UUID of that topic',
    `source_partition` Int32 COMMENT 'Partition of the original',
    `source_offset` Int64 COMMENT 'Offset of the original',
    `timestamp_ms` Int64 COMMENT 'Timestamp of the original, milliseconds since 1970',
    `died_at_ms` Int64 COMMENT 'When it was given up, milliseconds since 1970',
    `size_bytes` UInt32 COMMENT 'Size of the original value',
    `topic_id` UUID COMMENT 'Kafka\'s UUID of the dead-letter topic',
    `partition` Int32 COMMENT 'Partition of the dead letter',
    `offset` Int64 COMMENT 'Offset of the dead letter'
)
ENGINE = MergeTree
ORDER BY (model, died_at_ms)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Records that can never be served';

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
    `offset` Int64 COMMENT 'Offset of the dead letter'
) AS
SELECT `reason`, `stage`, `message`, `field`, `model`, `source_topic`, `source_topic_id`, `source_partition`, `source_offset`, fromUnixTimestamp64Milli(timestamp_ms, 'UTC') AS `requested_at`, fromUnixTimestamp64Milli(died_at_ms, 'UTC') AS `died_at`, `size_bytes`, `topic_id`, `partition`, `offset`
FROM internal.dead_letters
COMMENT 'Records that could not be served: why, and where the original is';

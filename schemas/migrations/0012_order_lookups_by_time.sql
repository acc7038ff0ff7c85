-- Labels ask for predictions of about the same time. ClickHouse orders a UUID by its second half, which is random: each of ten thousand ids
-- lay in a granule of its own, and a look-up read most of the table. UUIDToNum gives the 16 bytes as they are written, time first, so that
-- what came together lies together, and merges as it came. The tables are made anew: run this while no sink runs, as every start does.
DROP TABLE IF EXISTS internal.moving SYNC;
CREATE TABLE internal.moving AS internal.prediction_lookup
ENGINE = MergeTree
ORDER BY (UUIDToNum(prediction_id), arm)
SETTINGS index_granularity = 256, non_replicated_deduplication_window = 10000
COMMENT 'Answered predictions by id, for joining labels';
DROP VIEW IF EXISTS internal.prediction_lookup_mv SYNC;
INSERT INTO internal.moving SELECT * FROM internal.prediction_lookup;
EXCHANGE TABLES internal.moving AND internal.prediction_lookup;
CREATE MATERIALIZED VIEW IF NOT EXISTS internal.prediction_lookup_mv TO internal.prediction_lookup AS
SELECT prediction_id, request_id, model, entity, role, arm, version, label, scores, segments, requested_at, observed_at, attempt
FROM internal.observations
WHERE status = 'answered';
DROP TABLE internal.moving SYNC;

-- The newest label of a prediction is asked for in the same way.
CREATE TABLE internal.moving AS internal.outcomes
ENGINE = ReplacingMergeTree(revision)
ORDER BY (model, UUIDToNum(prediction_id), arm)
SETTINGS index_granularity = 1024, non_replicated_deduplication_window = 10000
COMMENT 'Predictions joined with labels, by prediction and arm; the highest revision holds';
INSERT INTO internal.moving SELECT * FROM internal.outcomes;
EXCHANGE TABLES internal.moving AND internal.outcomes;
DROP TABLE internal.moving SYNC;

-- Windows are written again whenever late labels change them: the highest revision holds.
CREATE TABLE IF NOT EXISTS internal.metrics (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at_ms` Int64 COMMENT 'When it was decided or computed, milliseconds since 1970',
    `window_start_ms` Int64 COMMENT 'Start of the window in event time, milliseconds since 1970',
    `window_sec` UInt32 COMMENT 'Length of the window in seconds',
    `role` LowCardinality(String) COMMENT 'live or shadow',
    `arm` LowCardinality(String) COMMENT 'Arm of the route table',
    `version` LowCardinality(String) COMMENT 'Version that predicted',
    `segment` String COMMENT 'Empty for all rows, else feature=value',
    `revision` UInt64 COMMENT 'Higher replaces lower',
    `rows` UInt64 COMMENT 'Predictions in the window',
    `rejected` UInt64 COMMENT 'Rejected requests in the window',
    `labelled` UInt64 COMMENT 'Predictions of the window that have a label so far',
    `correct` UInt64 COMMENT 'Of these, predicted right',
    `accuracy` Nullable(Float64) COMMENT 'correct / labelled',
    `f1_macro` Nullable(Float64) COMMENT 'Unweighted mean of the F1 scores of the classes that occur',
    `log_loss` Nullable(Float64) COMMENT 'Mean log loss, or mean squared error of a regression',
    `brier` Nullable(Float64) COMMENT 'Mean Brier score',
    `latency_p50_ms` Nullable(Float64) COMMENT 'Median time from the request to its scores',
    `latency_p99_ms` Nullable(Float64) COMMENT '99th percentile of the same'
)
ENGINE = ReplacingMergeTree(revision)
ORDER BY (model, window_start_ms, window_sec, role, arm, version, segment)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Window metrics; the highest revision holds';

CREATE OR REPLACE VIEW default.metrics (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at` DateTime64(3, 'UTC') COMMENT 'When it was decided or computed',
    `window_start` DateTime64(3, 'UTC') COMMENT 'Start of the window in event time',
    `window_sec` UInt32 COMMENT 'Length of the window in seconds',
    `role` LowCardinality(String) COMMENT 'live or shadow',
    `arm` LowCardinality(String) COMMENT 'Arm of the route table',
    `version` LowCardinality(String) COMMENT 'Version that predicted',
    `segment` String COMMENT 'Empty for all rows, else feature=value',
    `revision` UInt64 COMMENT 'Higher replaces lower',
    `rows` UInt64 COMMENT 'Predictions in the window',
    `rejected` UInt64 COMMENT 'Rejected requests in the window',
    `labelled` UInt64 COMMENT 'Predictions of the window that have a label so far',
    `correct` UInt64 COMMENT 'Of these, predicted right',
    `accuracy` Nullable(Float64) COMMENT 'correct / labelled',
    `f1_macro` Nullable(Float64) COMMENT 'Unweighted mean of the F1 scores of the classes that occur',
    `log_loss` Nullable(Float64) COMMENT 'Mean log loss, or mean squared error of a regression',
    `brier` Nullable(Float64) COMMENT 'Mean Brier score',
    `latency_p50_ms` Nullable(Float64) COMMENT 'Median time from the request to its scores',
    `latency_p99_ms` Nullable(Float64) COMMENT '99th percentile of the same'
) AS
SELECT `event_id`, `model`, fromUnixTimestamp64Milli(at_ms, 'UTC') AS `at`, fromUnixTimestamp64Milli(window_start_ms, 'UTC') AS `window_start`, `window_sec`, `role`, `arm`, `version`, `segment`, `revision`, `rows`, `rejected`, `labelled`, `correct`, `accuracy`, `f1_macro`, `log_loss`, `brier`, `latency_p50_ms`, `latency_p99_ms`
FROM internal.metrics FINAL
COMMENT 'Online metrics by window, arm, version and segment';

CREATE TABLE IF NOT EXISTS internal.drift (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at_ms` Int64 COMMENT 'When it was decided or computed, milliseconds since 1970',
    `window_start_ms` Int64 COMMENT 'Start of the window, milliseconds since 1970',
    `window_sec` UInt32 COMMENT 'Length of the window, 0 for a test on the stream',
    `version` LowCardinality(String) COMMENT 'Version whose training data is the reference',
    `test` LowCardinality(String) COMMENT 'psi or adwin: heuristics, without a false-alarm budget',
    `subject` LowCardinality(String) COMMENT 'Feature name, score or loss',
    `statistic` Float64 COMMENT 'Value of the test statistic',
    `threshold` Float64 COMMENT 'Value from which it counts as drift',
    `rows` UInt64 COMMENT 'Rows behind it',
    `drifted` Bool COMMENT 'Whether the threshold was crossed',
    `revision` UInt64 COMMENT 'Higher replaces lower'
)
ENGINE = ReplacingMergeTree(revision)
ORDER BY (model, window_start_ms, test, subject, version, event_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Drift evidence; the highest revision holds';

CREATE OR REPLACE VIEW default.drift (
    `event_id` String COMMENT 'Deterministic: a repeat has the same id',
    `model` LowCardinality(String) COMMENT 'Model name',
    `at` DateTime64(3, 'UTC') COMMENT 'When it was decided or computed',
    `window_start` DateTime64(3, 'UTC') COMMENT 'Start of the window',
    `window_sec` UInt32 COMMENT 'Length of the window, 0 for a test on the stream',
    `version` LowCardinality(String) COMMENT 'Version whose training data is the reference',
    `test` LowCardinality(String) COMMENT 'psi or adwin: heuristics, without a false-alarm budget',
    `subject` LowCardinality(String) COMMENT 'Feature name, score or loss',
    `statistic` Float64 COMMENT 'Value of the test statistic',
    `threshold` Float64 COMMENT 'Value from which it counts as drift',
    `rows` UInt64 COMMENT 'Rows behind it',
    `drifted` Bool COMMENT 'Whether the threshold was crossed',
    `revision` UInt64 COMMENT 'Higher replaces lower'
) AS
SELECT `event_id`, `model`, fromUnixTimestamp64Milli(at_ms, 'UTC') AS `at`, fromUnixTimestamp64Milli(window_start_ms, 'UTC') AS `window_start`, `window_sec`, `version`, `test`, `subject`, `statistic`, `threshold`, `rows`, `drifted`, `revision`
FROM internal.drift FINAL
COMMENT 'Drift statistics, whether or not they crossed their threshold';

"""What the demo reports, each number with the SQL that it is read by: anyone can ask again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from clickhouse_connect.driver.client import Client

PAIRED: Final = """
    SELECT
        prediction_id,
        any(truth) AS truth,
        anyIf(label, role = 'live') AS live,
        anyIf(label, version = '1.0') AS frozen,
        countIf(role = 'live') AS live_answers,
        countIf(version = '1.0') AS frozen_answers
    FROM outcomes
    WHERE model = {model:String}
    GROUP BY prediction_id
    HAVING live_answers > 0 AND frozen_answers > 0
"""
"""Each labelled prediction with what the live version said and what version 1 said to the same row. Version 1 answers in shadow as
soon as it is not live itself."""


class Measure(NamedTuple):
    """One figure."""

    name: str
    meaning: str
    sql: str


MEASURES: Final = tuple(
    Measure(name, meaning, " ".join(sql.split()) if "\n" not in sql.strip() else sql.strip())
    for name, meaning, sql in (
        ("rows", "rows in predictions", "SELECT count() FROM predictions WHERE model = {model:String}"),
        ("answered", "requests answered", "SELECT countIf(status = 'answered') FROM predictions WHERE model = {model:String}"),
        ("rejected", "requests rejected", "SELECT countIf(status = 'rejected') FROM predictions WHERE model = {model:String}"),
        ("labels", "predictions with a label", "SELECT count() FROM labels WHERE model = {model:String}"),
        (
            "labels_orphaned", "feedback whose prediction was never found",
            "SELECT count() FROM dead_letters WHERE model = {model:String} AND reason = 'orphan_feedback'",
        ),
        ("drift_alerts", "drift alerts", "SELECT count() FROM alerts WHERE model = {model:String} AND kind LIKE '%drift'"),
        ("retrains", "retrain orders", "SELECT count() FROM retrains WHERE model = {model:String} AND kind != 'initial'"),
        (
            "update_promotions", "updates that went live",
            "SELECT count() FROM rollouts WHERE model = {model:String} AND action = 'promote_update'",
        ),
        (
            "major_promotions", "majors that went live",
            "SELECT count() FROM rollouts WHERE model = {model:String} AND action = 'promote_major'",
        ),
        ("candidates_refused", "candidates refused", "SELECT count() FROM rollouts WHERE model = {model:String} AND action = 'refuse'"),
        (
            "rollbacks", "returns to an earlier version",
            "SELECT count() FROM rollouts WHERE model = {model:String} AND action IN ('revert', 'rollback')",
        ),
        ("paired_rows", "labelled rows that both live and version 1 answered", f"SELECT count() FROM ({PAIRED})"),
        ("accuracy_live", "accuracy of what was answered", f"SELECT avg(live = truth) FROM ({PAIRED})"),
        ("accuracy_frozen", "accuracy of version 1, left alone, on the same rows", f"SELECT avg(frozen = truth) FROM ({PAIRED})"),
        ("f1_live", "macro F1 of what was answered", ""),
        ("f1_frozen", "macro F1 of version 1 on the same rows", ""),
        (
            "label_to_live_p50_ms", "median time from the newest label of an update to the first answer of that update",
            """
SELECT quantileExact(0.5)(first_answer - known)
FROM (
    SELECT version, newest_prediction_id FROM candidates WHERE model = {model:String} AND kind = 'update' AND passed
) AS c
INNER JOIN (
    SELECT version, min(toUnixTimestamp64Milli(observed_at)) AS first_answer
    FROM predictions WHERE model = {model:String} AND status = 'answered' GROUP BY version
) AS p USING version
INNER JOIN (
    SELECT toString(prediction_id) AS newest_prediction_id, toUnixTimestamp64Milli(labeled_at) AS known
    FROM labels WHERE model = {model:String}
) AS l USING newest_prediction_id
            """,
        ),
        (
            "label_lead_rows_min", "fewest rows that had been sent after a row when its label became known (the last rows' labels left out)",
            """
SELECT min(sent.row - known.row)
FROM (
    SELECT l.model AS model, l.labeled_at AS at, toInt64OrZero(p.request_id) AS row
    FROM (SELECT model, prediction_id, labeled_at FROM labels WHERE model = {model:String}) AS l
    INNER JOIN (SELECT prediction_id, request_id FROM predictions WHERE model = {model:String}) AS p USING prediction_id
) AS known
ASOF INNER JOIN (
    SELECT model, requested_at AS at, max(toInt64OrZero(request_id)) AS row
    FROM predictions WHERE model = {model:String} GROUP BY model, at
) AS sent ON known.model = sent.model AND known.at >= sent.at
WHERE known.row + {delay:UInt32} <= (SELECT max(toInt64OrZero(request_id)) FROM predictions WHERE model = {model:String})
            """,
        ),
    )
)  # fmt: skip

F1: Final = """
SELECT avg(2 * hits / (truths + answers))
FROM (
    SELECT class, sum(hit) AS hits, sum(is_truth) AS truths, sum(is_answer) AS answers
    FROM (
        SELECT truth AS class, truth = {answer} AS hit, 1 AS is_truth, 0 AS is_answer FROM ({paired})
        UNION ALL
        SELECT {answer} AS class, 0 AS hit, 0 AS is_truth, 1 AS is_answer FROM ({paired})
    )
    GROUP BY class
)
"""

OVER_TIME: Final = (
    """
SELECT toInt64(request_id) AS row, p.prediction_id AS prediction_id, live = truth AS live_correct, frozen = truth AS frozen_correct
FROM (SELECT prediction_id, request_id FROM predictions WHERE model = {model:String}) AS p
INNER JOIN ("""
    + PAIRED
    + """) AS o USING prediction_id
ORDER BY row
"""
)

MARKS: Final = """
SELECT 'drift' AS kind, message AS what, toUnixTimestamp64Milli(at) AS at_ms FROM alerts WHERE model = {model:String}
UNION ALL
SELECT toString(action) AS kind, concat(version, ': ', reason) AS what, toUnixTimestamp64Milli(at) AS at_ms
FROM rollouts WHERE model = {model:String}
ORDER BY at_ms
"""

ROW_AT: Final = """
SELECT toUnixTimestamp64Milli(requested_at) AS at_ms, toInt64(request_id) AS row
FROM predictions WHERE model = {model:String} ORDER BY row
"""

LINEAGE: Final = """
SELECT
    c.version AS version, c.artifact AS artifact, c.rows AS trained_rows, c.retrain_id AS retrain_id, r.reason AS ordered_because,
    c.newest_prediction_id AS prediction_id, n.request_id AS request_row, n.version AS answered_by, n.label AS answered,
    l.truth AS truth, l.feedback_id AS feedback_id, n.requested_at AS requested_at, l.labeled_at AS labeled_at,
    l.joined_at AS joined_at, c.at AS trained_at, o.at AS promoted_at, f.first_answer AS first_answer, f.first_row AS first_row
FROM (SELECT * FROM candidates WHERE model = {model:String} AND kind = 'update' AND passed) AS c
INNER JOIN (SELECT event_id, reason FROM retrains WHERE model = {model:String}) AS r ON r.event_id = c.retrain_id
INNER JOIN (SELECT version, at FROM rollouts WHERE model = {model:String} AND action = 'promote_update') AS o ON o.version = c.version
INNER JOIN (SELECT * FROM predictions WHERE model = {model:String}) AS n ON toString(n.prediction_id) = c.newest_prediction_id
INNER JOIN (SELECT * FROM labels WHERE model = {model:String}) AS l ON l.prediction_id = n.prediction_id
INNER JOIN (
    SELECT version, min(observed_at) AS first_answer, min(toInt64(request_id)) AS first_row
    FROM predictions WHERE model = {model:String} AND status = 'answered' GROUP BY version
) AS f ON f.version = c.version
ORDER BY c.at
LIMIT 1 OFFSET {skip:UInt64}
"""

STEPS: Final = """
SELECT
    quantileExact(0.5)(joined - known) AS `join`,
    quantileExact(0.5)(ordered - joined) AS `order`,
    quantileExact(0.5)(trained - train_ms - ordered) AS wait,
    quantileExact(0.5)(train_ms) AS train,
    quantileExact(0.5)(decided - trained) AS decide,
    quantileExact(0.5)(first_answer - decided) AS answer
FROM (
    SELECT
        toUnixTimestamp64Milli(l.labeled_at) AS known, toUnixTimestamp64Milli(l.joined_at) AS joined,
        toUnixTimestamp64Milli(r.at) AS ordered, toUnixTimestamp64Milli(c.at) AS trained, c.train_ms AS train_ms,
        toUnixTimestamp64Milli(o.at) AS decided, f.first_answer AS first_answer
    FROM (SELECT * FROM candidates WHERE model = {model:String} AND kind = 'update' AND passed) AS c
    INNER JOIN (SELECT event_id, at FROM retrains WHERE model = {model:String}) AS r ON r.event_id = c.retrain_id
    INNER JOIN (SELECT version, at FROM rollouts WHERE model = {model:String} AND action = 'promote_update') AS o ON o.version = c.version
    INNER JOIN (SELECT prediction_id, labeled_at, joined_at FROM labels WHERE model = {model:String}) AS l
        ON toString(l.prediction_id) = c.newest_prediction_id
    INNER JOIN (
        SELECT version, min(toUnixTimestamp64Milli(observed_at)) AS first_answer
        FROM predictions WHERE model = {model:String} AND status = 'answered' GROUP BY version
    ) AS f ON f.version = c.version
)
"""
"""The median of each step on the way from an update's newest label to its first answer, ms."""


def statements() -> dict[str, str]:
    """Figure → its SQL."""
    found = {measure.name: measure.sql for measure in MEASURES}
    for answer in ("live", "frozen"):
        found[f"f1_{answer}"] = F1.replace("{answer}", answer).replace("{paired}", PAIRED).strip()
    return found


def measure(client: Client, model: str, delay: int) -> dict[str, Any]:
    """All figures of `model`, whose labels come `delay` rows late, by name; None where there is nothing to measure."""
    found: dict[str, Any] = {}
    for name, sql in statements().items():
        rows = client.query(sql, parameters={"model": model, "delay": delay}).result_rows
        found[name] = _number(rows[0][0]) if rows else None
    return found


def steps(client: Client, model: str) -> dict[str, Any]:
    """Step on the way from label to live → its median, ms; None where no update went live."""
    (row,) = table(client, STEPS, model=model)
    return {step: None if ms is None or ms != ms else round(float(ms), 1) for step, ms in row.items()}


def table(client: Client, sql: str, **parameters: Any) -> list[Mapping[str, Any]]:
    """The rows of a query, each by column name."""
    return list(client.query(sql, parameters=parameters).named_results())


def _number(value: Any) -> Any:
    """NaN (an average of nothing) is None."""
    return None if isinstance(value, float) and value != value else value

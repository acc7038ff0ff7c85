"""What came of a replay: its rows against the live answers and against the labels, by SQL over the views that everybody sees."""

from __future__ import annotations

import time
from typing import Any, Final

import click
import msgspec
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from inference.ranges import Span
from inference.replay import Progress
from inference.replay_plan import Plan
from runtime.settings import Settings
from schemas.errors import Outage
from schemas.spec import load_spec
from warehouse.client import connect, mapped

POLL_SEC: Final = 0.3

SHOWN: Final = "SELECT count() FROM replays WHERE run_id = {run_id:String}"
_PAIRS: Final = """
(SELECT prediction_id, label, score, scores FROM replays WHERE run_id = {run_id:String} AND status = 'answered') AS replayed
ANY INNER JOIN (
    SELECT prediction_id, label, score, scores FROM predictions
    WHERE model = {model:String} AND status = 'answered'
        AND requested_at >= (SELECT min(requested_at) FROM replays WHERE run_id = {run_id:String})
        AND requested_at <= (SELECT max(requested_at) FROM replays WHERE run_id = {run_id:String})
) AS live ON replayed.prediction_id = live.prediction_id
"""
COMPARED: Final = f"""
SELECT
    count() AS compared_rows,
    countIf(replayed.scores = live.scores) AS identical_rows,
    countIf(replayed.label = live.label) AS same_label_rows,
    avg(arrayAvg(arrayMap((a, b) -> abs(a - b), replayed.scores, live.scores))) AS mean_score_difference
FROM {_PAIRS}
WHERE length(replayed.scores) = length(live.scores)
"""
LABELED: Final = f"""
SELECT
    count() AS labeled_rows,
    avg(replayed.label = truth) AS accuracy,
    avg(live.label = truth) AS live_accuracy,
    avg(pow(replayed.score - truth_value, 2)) AS squared_error,
    avg(pow(live.score - truth_value, 2)) AS live_squared_error
FROM {_PAIRS}
ANY INNER JOIN (SELECT prediction_id, truth, truth_value FROM labels WHERE model = {{model:String}}) AS labels
    ON replayed.prediction_id = labels.prediction_id
"""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run. Rates are None where there is nothing to compare."""

    run_id: str
    model: str
    version: str
    artifact: str
    topic_id: str
    spans: tuple[Span, ...]
    rows: int
    rejected: int
    took_sec: float
    """Reading, inference and acknowledgement; without the wait for the warehouse."""
    compared_rows: int
    """Rows that this version and the live one both answered."""
    agreement: float | None
    """Share of equal labels; None for a regression."""
    identical: float | None
    """Share of rows whose scores are equal to the last bit."""
    mean_score_difference: float | None
    """Mean absolute difference of a score."""
    labeled_rows: int
    accuracy: float | None = None
    live_accuracy: float | None = None
    squared_error: float | None = None
    live_squared_error: float | None = None
    sql: list[str]
    """To look at the run."""
    again: str
    """The same run."""


def reported(found: Settings, planned: Plan, done: Progress, took_sec: float, wait_sec: float) -> Report:
    """What came of a run, once ClickHouse has its rows.

    Raises:
        Outage: they are not there within `wait_sec`, or ClickHouse is away.
        Refused: ClickHouse will not answer.
    """
    regression = load_spec(found.models_dir / planned.model).task == "regression"
    client = connect(found.clickhouse_url, found.clickhouse_user, found.clickhouse_password)
    parameters = {"run_id": planned.run_id, "model": planned.model}
    try:
        _wait(client, parameters, done.rows, wait_sec)
        compared = _row(client, COMPARED, parameters)
        labeled = _row(client, LABELED, parameters)
    except ClickHouseError as error:
        raise mapped(error) from error
    finally:
        client.close()
    pairs, labels = compared["compared_rows"], labeled["labeled_rows"]
    rates = ("squared_error", "live_squared_error") if regression else ("accuracy", "live_accuracy")
    start, end = planned.range.bounds
    return Report(
        run_id=planned.run_id,
        model=planned.model,
        version=planned.version,
        artifact=planned.artifact,
        topic_id=str(planned.range.topic_id),
        spans=planned.range.spans,
        rows=done.rows,
        rejected=done.rejected,
        took_sec=round(took_sec, 3),
        compared_rows=pairs,
        agreement=compared["same_label_rows"] / pairs if pairs and not regression else None,
        identical=compared["identical_rows"] / pairs if pairs else None,
        mean_score_difference=compared["mean_score_difference"] if pairs else None,
        labeled_rows=labels,
        **({rate: labeled[rate] for rate in rates} if labels else {}),
        sql=[
            f"SELECT status, reason, label, count(), avg(score) FROM replays WHERE run_id = '{planned.run_id}' GROUP BY ALL ORDER BY ALL",
            "SELECT r.prediction_id, p.version, p.label, p.score, r.label, r.score FROM replays AS r "
            f"JOIN predictions AS p ON p.prediction_id = r.prediction_id WHERE r.run_id = '{planned.run_id}' AND r.label != p.label LIMIT 20",
        ],
        again=f"tidemill replay --model {planned.model} --version {planned.artifact} --from {start} --to {end}"
        + (f" --run {planned.name}" if planned.name else ""),
    )  # fmt: skip


def _wait(client: Client, parameters: dict[str, str], rows: int, wait_sec: float) -> None:
    """Until the sink has brought all of the run's rows."""
    deadline = time.monotonic() + wait_sec
    while (shown := int(client.query(SHOWN, parameters=parameters).result_rows[0][0])) < rows:
        if time.monotonic() >= deadline:
            raise Outage(
                f"{parameters['run_id']}: after {wait_sec:.0f} s ClickHouse has {shown:,} of {rows:,} rows; the others are on their way, "
                "see `tidemill status`"
            )
        time.sleep(POLL_SEC)


def _row(client: Client, sql: str, parameters: dict[str, str]) -> dict[str, Any]:
    answer = client.query(sql, parameters=parameters)
    return dict(zip(answer.column_names, answer.result_rows[0], strict=True))


def show(report: Report) -> None:
    """The report as lines."""
    per_sec = report.rows / report.took_sec if report.took_sec else 0.0
    click.echo(f"run {report.run_id}: {report.model} {report.artifact}")
    click.echo(
        f"{report.rows:,} rows, {report.rejected:,} of them rejected, in {report.took_sec:.1f} s ({per_sec:,.0f} rows/s)"
    )
    if report.compared_rows:
        click.echo(
            f"against the live answers, {report.compared_rows:,} rows: "
            + (f"{report.agreement:.2%} with the same label, " if report.agreement is not None else "")
            + f"{report.identical:.2%} identical, mean difference of a score {report.mean_score_difference:.3g}"
        )
    if report.accuracy is not None:
        click.echo(
            f"against the labels, {report.labeled_rows:,} rows: accuracy {report.accuracy:.4f}, live {report.live_accuracy:.4f}"
        )
    if report.squared_error is not None:
        click.echo(
            f"against the labels, {report.labeled_rows:,} rows: mean squared error {report.squared_error:.4g}, "
            f"live {report.live_squared_error:.4g}"
        )
    for query in report.sql:
        click.echo(f'tidemill sql "{query}"')
    click.echo(f"the same again: {report.again}")

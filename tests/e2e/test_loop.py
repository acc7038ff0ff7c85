"""The whole loop on the real stack: rows in, late labels back, a better version live, nothing lost, and a person's word over it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from click.testing import CliRunner
from clickhouse_connect.driver.client import Client as Warehouse

from cli.__main__ import main as tidemill
from cli.demo.measures import statements
from compose.embedded import parts
from control.audit import audit
from scenarios import electricity
from scenarios.replay import Progress, replay
from scenarios.scenario import Scenario
from tests.e2e.conftest import Workshop
from tests.waiting import WITHIN_SEC, until
from tidemill import Client

pytestmark = pytest.mark.stack
MODEL = "electricity"
ROWS = 1500


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return electricity.load(parts.path("datasets"))


@pytest.fixture(scope="module")
def command(workshop: Workshop) -> Callable[..., Any]:
    """Run a `tidemill` command against the stack; its exit code and output."""

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(
            tidemill, [*arguments, "--data", str(workshop.data_dir)], prog_name="tidemill"
        )

    return run


@pytest.fixture(scope="module")
def asked_too_early(command: Callable[..., Any], scenario: Scenario) -> Any:
    """A request before there is a version."""
    return command("produce", MODEL, json.dumps(scenario.features(0)), "--wait", "30", "--json")


@pytest.fixture(scope="module")
def version_1(
    command: Callable[..., Any],
    scenario: Scenario,
    asked_too_early: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Version 1 of electricity, trained by the command and live."""
    path = tmp_path_factory.mktemp("train") / "first.parquet"
    scenario.write_training_file(path)
    result = command("train", MODEL, "--from", str(path), "--seed", "1", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def number(analyst: Warehouse, sql: str) -> Any:
    return analyst.query(sql).result_rows[0][0]


def test_before_version_1_a_request_is_rejected_and_says_so(asked_too_early: Any) -> None:
    assert asked_too_early.exit_code == 1
    rejected = json.loads(asked_too_early.stdout.strip().splitlines()[-1])["rejected"]
    assert rejected["reason"] == "no_ready_version"


def test_version_1_is_introduced_with_its_evidence(version_1: dict[str, Any], analyst: Warehouse) -> None:
    assert (version_1["version"], version_1["action"]) == ("1.0", "introduce")
    until(
        lambda: (
            number(
                analyst, "SELECT count() FROM rollouts WHERE model = 'electricity' AND action = 'introduce'"
            )
            == 1
        ),
        "the introduction is a row",
    )


@pytest.mark.timeout(240)
def test_labels_make_better_versions_and_nothing_is_lost_though_gateway_and_sink_are_killed(
    workshop: Workshop, version_1: dict[str, Any], scenario: Scenario, client: Client, analyst: Warehouse
) -> None:
    killed: list[str] = []

    def kill_halfway(progress: Progress) -> None:
        if not killed and progress.sent >= ROWS // 2:
            killed.extend(("gateway", "sink"))
            for name in killed:
                workshop.kill(name)

    seen = replay(scenario, client, rate_rows_per_sec=300, rows=ROWS, on_progress=kill_halfway)
    assert len(killed) == 2
    assert (seen.answered, seen.missing, seen.repeated) == (ROWS, 0, 0)
    until(
        lambda: number(analyst, "SELECT count() FROM labels WHERE model = 'electricity'") == ROWS,
        "every label is joined",
    )
    until(
        lambda: (
            number(
                analyst,
                "SELECT count() FROM rollouts WHERE model = 'electricity' AND action = 'promote_update'",
            )
            >= 2
        ),
        "updates go live",
    )
    account = audit(workshop.settings, [MODEL], wait_sec=WITHIN_SEC).models[0]
    assert account.ok, account
    assert account.requests == ROWS + 1  # and the one that was too early
    assert (
        number(
            analyst,
            "SELECT countDistinct(version) FROM predictions WHERE model = 'electricity' AND status = 'answered'",
        )
        >= 2
    )


def test_no_label_was_known_before_its_delay(version_1: dict[str, Any], analyst: Warehouse) -> None:
    lead = analyst.query(
        statements()["label_lead_rows_min"],
        parameters={"model": MODEL, "delay": electricity.LABEL_DELAY_ROWS},
    ).result_rows[0][0]
    assert lead >= electricity.LABEL_DELAY_ROWS


def test_an_update_is_trained_on_labels_that_were_joined_up_to_its_order_and_on_no_later_one(
    version_1: dict[str, Any], analyst: Warehouse
) -> None:
    # Of a candidate without its order or its label, the joined columns are zero: they are rows of other topics, and may come later.
    updates = """
        SELECT toUnixTimestamp64Milli(r.labels_through), toUnixTimestamp64Milli(l.joined_at)
        FROM (SELECT * FROM candidates WHERE model = 'electricity' AND kind = 'update') AS c
        LEFT JOIN (SELECT * FROM retrains WHERE model = 'electricity') AS r ON r.event_id = c.retrain_id
        LEFT JOIN (SELECT * FROM labels WHERE model = 'electricity') AS l ON toString(l.prediction_id) = c.newest_prediction_id
        """

    def told() -> Sequence[Sequence[int]] | None:
        rows = analyst.query(updates).result_rows
        return rows if len(rows) >= 2 and all(min(row) > 0 for row in rows) else None

    found = until(told, "the order and the newest label of every update are rows")
    for through_ms, newest_label_ms in found:
        assert newest_label_ms <= through_ms


def test_metrics_agree_with_the_outcomes_they_were_computed_from(
    version_1: dict[str, Any], analyst: Warehouse
) -> None:
    labelled = "SELECT sum(labelled), sum(correct) FROM metrics WHERE model = 'electricity' AND role = 'live' AND segment = ''"
    outcomes = "SELECT count(), sum(correct) FROM outcomes WHERE model = 'electricity' AND role = 'live'"
    until(
        lambda: analyst.query(labelled).result_rows == analyst.query(outcomes).result_rows,
        "the windows add up to the outcomes",
    )


def test_a_models_view_has_its_features_under_their_own_names(
    version_1: dict[str, Any], analyst: Warehouse
) -> None:
    row = analyst.query(
        "SELECT period, transfer, truth, label FROM models.electricity WHERE truth IS NOT NULL LIMIT 1"
    ).result_rows[0]
    assert 0 <= row[0] <= 1
    assert row[2] in ("down", "up")


@pytest.mark.parametrize(
    ("request_json", "reason", "field"),
    [
        ('{"period": 7', "undecodable", ""),
        (
            '{"period": 7, "nswprice": 0, "nswdemand": 0, "vicprice": 0, "vicdemand": 0, "transfer": 0}',
            "out_of_range",
            "period",
        ),
        ('{"period": 0.5}', "missing_field", "nswprice"),
        (
            '{"period": "x", "nswprice": 0, "nswdemand": 0, "vicprice": 0, "vicdemand": 0, "transfer": 0}',
            "wrong_type",
            "period",
        ),
    ],
)
def test_bad_input_is_answered_with_its_field_and_kept(
    command: Callable[..., Any],
    version_1: dict[str, Any],
    analyst: Warehouse,
    request_json: str,
    reason: str,
    field: str,
) -> None:
    result = command("produce", "electricity", request_json, "--wait", "30", "--json")
    assert result.exit_code == 1, result.output
    rejected = json.loads(result.stdout.strip().splitlines()[-1])["rejected"]
    assert (rejected["reason"], rejected.get("field", "")) == (reason, field)
    until(
        lambda: (
            number(
                analyst,
                f"SELECT count() FROM dead_letters WHERE model = 'electricity' AND reason = '{reason}'",
            )
            >= 1
        ),
        "its dead letter is a row",
    )


def test_an_unknown_model_and_a_rating_of_9_are_one_clear_line(
    command: Callable[..., Any], version_1: dict[str, Any]
) -> None:
    unknown = command("produce", "ghost", "{}")
    assert (unknown.exit_code, "ghost" in unknown.output, unknown.output.count("\n")) == (2, True, 1)
    rating = command("feedback", "electricity", "018bcfe5-6800-7f79-bed3-ce1ec5325dbe", "--rating", "9")
    assert rating.exit_code == 2
    assert "rating" in rating.output


def test_a_person_freezes_rolls_back_and_lets_go_on(
    command: Callable[..., Any], version_1: dict[str, Any]
) -> None:
    rolled = command("models", "rollback", "electricity", "--version", "1.0", "--reason", "test", "--json")
    assert rolled.exit_code == 0, rolled.output
    route = json.loads(rolled.stdout)
    assert (route["champion"], route["frozen"]) == ("1.0", True)
    free = command("models", "unfreeze", "electricity", "--json")
    assert json.loads(free.stdout)["frozen"] is False


def test_the_status_shows_every_stage_and_every_route(
    command: Callable[..., Any], version_1: dict[str, Any]
) -> None:
    result = command("status", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {"gateway", "sink", "labels", "worker", "training", "control"} <= {
        row["process"] for row in found["processes"]
    }
    live = [arm for arm in found["routes"]["electricity"]["arms"] if arm["role"] == "live"]
    assert [arm["version"] for arm in live] == [found["routes"]["electricity"]["champion"]]


def test_the_audit_command_agrees(command: Callable[..., Any], version_1: dict[str, Any]) -> None:
    result = command("audit", "--wait", "30", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ok"] is True

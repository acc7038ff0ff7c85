"""The whole loop on the real stack: rows in, late labels back, a better version live, nothing lost, and a person's word over it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from clickhouse_connect.driver.client import Client as Warehouse

from cli.__main__ import main as tidemill
from compose.embedded import parts
from compose.embedded.stack import Stack
from control.audit import audit
from scenarios import electricity
from scenarios.replay import Progress, replay
from scenarios.scenario import Scenario
from tidemill import Client
from warehouse.client import connect

ROWS = 1500
WITHIN_SEC = 60.0


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return electricity.load(parts.path("datasets"))


@pytest.fixture(scope="module")
def command(stack: Stack) -> Callable[..., Any]:
    """Run a `tidemill` command against the stack; its exit code and output."""

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(tidemill, [*arguments, "--data", str(stack.data_dir)], prog_name="tidemill")

    return run


@pytest.fixture(scope="module")
def version_1(
    command: Callable[..., Any], scenario: Scenario, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Version 1 of electricity, trained by the command and live."""
    path = tmp_path_factory.mktemp("train") / "first.parquet"
    scenario.write_training_file(path)
    result = command("train", "electricity", "--from", str(path), "--seed", "1", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def warehouse(stack: Stack) -> Iterator[Warehouse]:
    """As an analyst asks: read-only."""
    client = connect(stack.settings.clickhouse_url)
    yield client
    client.close()


def number(warehouse: Warehouse, sql: str) -> Any:
    return warehouse.query(sql).result_rows[0][0]


def eventually(check: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_SEC
    while not check():
        assert time.monotonic() < deadline, f"not within {WITHIN_SEC:.0f} s: {what}"
        time.sleep(0.1)


def test_before_version_1_a_request_is_rejected_and_says_so(
    stack: Stack, command: Callable[..., Any]
) -> None:
    result = command("produce", "reviews", '{"text": "很好"}', "--wait", "30", "--json")
    assert result.exit_code == 1
    rejected = json.loads(result.stdout.strip().splitlines()[-1])["rejected"]
    assert rejected["reason"] == "no_ready_version"


def test_version_1_is_introduced_with_its_evidence(version_1: dict[str, Any], warehouse: Warehouse) -> None:
    assert (version_1["version"], version_1["action"]) == ("1.0", "introduce")
    eventually(
        lambda: (
            number(
                warehouse, "SELECT count() FROM rollouts WHERE model = 'electricity' AND action = 'introduce'"
            )
            == 1
        ),
        "the introduction is a row",
    )


@pytest.mark.timeout(240)
def test_labels_make_better_versions_and_nothing_is_lost_though_gateway_and_sink_are_killed(
    stack: Stack, version_1: dict[str, Any], scenario: Scenario, warehouse: Warehouse
) -> None:
    killed: list[int] = []

    def kill_halfway(progress: Progress) -> None:
        if not killed and progress.sent >= ROWS // 2:
            killed.extend(stack.kill(name) for name in ("gateway", "sink"))

    with Client(stack.settings) as client:
        seen = replay(scenario, client, rate_rows_per_sec=150, rows=ROWS, on_progress=kill_halfway)
    assert len(killed) == 2
    assert (seen.answered, seen.missing, seen.repeated) == (ROWS, 0, 0)
    eventually(
        lambda: number(warehouse, "SELECT count() FROM labels WHERE model = 'electricity'") == ROWS,
        "every label is joined",
    )
    eventually(
        lambda: (
            number(
                warehouse,
                "SELECT count() FROM rollouts WHERE model = 'electricity' AND action = 'promote_update'",
            )
            >= 2
        ),
        "updates go live",
    )
    account = audit(stack.settings, ["electricity"], wait_sec=WITHIN_SEC).models[0]
    assert account.ok, account
    assert account.requests == ROWS
    assert (
        number(warehouse, "SELECT countDistinct(version) FROM predictions WHERE model = 'electricity'") >= 2
    )


def test_no_label_was_known_before_its_delay(version_1: dict[str, Any], warehouse: Warehouse) -> None:
    from cli.demo.measures import statements

    lead = warehouse.query(
        statements()["label_lead_rows_min"],
        parameters={"model": "electricity", "delay": electricity.LABEL_DELAY_ROWS},
    ).result_rows[0][0]
    assert lead >= electricity.LABEL_DELAY_ROWS


def test_metrics_agree_with_the_outcomes_they_were_computed_from(
    version_1: dict[str, Any], warehouse: Warehouse
) -> None:
    labelled = "SELECT sum(labelled), sum(correct) FROM metrics WHERE model = 'electricity' AND role = 'live' AND segment = ''"
    outcomes = "SELECT count(), sum(correct) FROM outcomes WHERE model = 'electricity' AND role = 'live'"
    eventually(
        lambda: warehouse.query(labelled).result_rows == warehouse.query(outcomes).result_rows,
        "the windows add up to the outcomes",
    )


def test_a_models_view_has_its_features_under_their_own_names(
    version_1: dict[str, Any], warehouse: Warehouse
) -> None:
    row = warehouse.query(
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
    warehouse: Warehouse,
    request_json: str,
    reason: str,
    field: str,
) -> None:
    result = command("produce", "electricity", request_json, "--wait", "30", "--json")
    assert result.exit_code == 1, result.output
    rejected = json.loads(result.stdout.strip().splitlines()[-1])["rejected"]
    assert (rejected["reason"], rejected.get("field", "")) == (reason, field)
    eventually(
        lambda: (
            number(
                warehouse,
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
    command: Callable[..., Any], version_1: dict[str, Any], stack: Stack
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

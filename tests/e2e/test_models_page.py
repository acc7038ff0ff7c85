"""docs/models.md, followed to the letter by somebody who declares a third model."""

from __future__ import annotations

import re

import pytest
from clickhouse_connect.driver.client import Client as Warehouse

from tests.e2e import page
from tests.e2e.conftest import PAGE, Workshop
from tests.waiting import until

pytestmark = pytest.mark.stack
ID = re.compile(r"prediction ([0-9a-f-]{36})")


def said(workshop: Workshop, part: str) -> str:
    """What the page's block with `part` in it printed."""
    return next(text for block, text in workshop.said.items() if part in block)


def walk(workshop: Workshop, part: str, **environment: str) -> str:
    """Run the page's block with `part` in it, once."""
    (block,) = [block for block in page.commands(PAGE) if part in block]
    given = ID.search("".join(workshop.said.values()))
    return workshop.run(block.replace("PREDICTION_ID", given[1] if given else ""), **environment)


def test_the_declared_model_passes_every_check_offline(workshop: Workshop) -> None:
    lines = said(workshop, "models check").splitlines()
    assert len(lines) == 7
    assert all(line.startswith("ok ") for line in lines)


def test_its_first_version_is_trained_and_answers(workshop: Workshop) -> None:
    assert "weather 1.0 from 1633 rows" in walk(workshop, "sed -n")
    assert re.match(r"(dry|rain) 0\.\d+  version 1\.0  prediction ", walk(workshop, '"pressure": 1019.6'))


def test_a_request_that_does_not_fit_says_which_field(workshop: Workshop) -> None:
    assert "pressure" in walk(workshop, '"pressure": 12,')


def test_a_label_becomes_an_outcome(workshop: Workshop, analyst: Warehouse) -> None:
    walk(workshop, "PREDICTION_ID")
    asked = "SELECT truth FROM outcomes WHERE model = 'weather' AND role = 'live'"
    assert until(lambda: analyst.query(asked).result_rows, "the label's outcome") == [("dry",)]


def test_a_stream_makes_new_versions_and_its_rows_have_their_names_in_sql(
    workshop: Workshop, analyst: Warehouse
) -> None:
    # The page's stack has the usual ports, where a client looks by itself; this one says where it is.
    printed = walk(workshop, "replay_weather.py", **workshop.settings.environment())
    assert "1000 answered, 1000 labelled" in printed
    assert "temperature\twind\tlabel\ttruth" in printed
    labelled = "SELECT count() FROM labels WHERE model = 'weather'"
    until(lambda: analyst.query(labelled).result_rows == [(1001,)], "every label joined")
    versions = "SELECT count() FROM rollouts WHERE model = 'weather' AND action = 'promote_update'"
    until(lambda: analyst.query(versions).result_rows[0][0] >= 1, "an update of the third model")


def test_a_person_looks_and_stops_it(workshop: Workshop) -> None:
    printed = walk(workshop, "models freeze")
    assert "weather" in printed
    assert "frozen" in printed


def test_changed_code_is_refused_until_a_version_is_trained_with_it(
    workshop: Workshop, analyst: Warehouse
) -> None:
    module = workshop.models_dir / "weather" / "model.py"
    module.write_text(module.read_text() + "\n# changed\n")
    for name in ("gateway", "triton"):
        workshop.kill(name)
    # Exit code 1, as for every rejection; said by whom: the gateway, which loaded the version again.
    rejected = workshop.run(ask := f"{produce_block()} || true")
    assert "no_ready_version" in rejected or "a model with a ready version" in rejected, rejected
    failed = workshop.process("gateway")["detail"]["detail"]["routes"]["weather"]["failed"]
    assert failed
    assert all("trained with another module" in why for why in failed.values()), failed
    printed = walk(workshop, "models approve weather")
    assert "start_shadow" in printed
    assert "champion 2.0" in printed
    assert "version 2.0" in workshop.run(ask)
    evidence = "SELECT evidence FROM rollouts WHERE model = 'weather' AND action = 'start_shadow'"
    ((found,),) = until(lambda: analyst.query(evidence).result_rows, "the major's evidence")
    assert "trained with another module" in found


def produce_block() -> str:
    """The page's request that is answered."""
    (block,) = [block for block in page.commands(PAGE) if '"pressure": 1019.6' in block]
    return block.strip()

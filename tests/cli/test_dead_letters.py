"""What an operator confirmed is what is done."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from click.testing import CliRunner

from cli import dead_letters
from control.dead_letters import DeadLetter, Filter
from schemas.dead_letters import Origin


def letter(offset: int) -> DeadLetter:
    origin = Origin(
        topic="requests.m", topic_id=uuid.UUID(int=1), partition=0, offset=offset, timestamp_ms=1, attempt=0
    )
    return DeadLetter(
        topic_id=uuid.UUID(int=2), partition=0, offset=offset, reason="out_of_range", stage="gateway", message="", field="",
        model="m", died_at_ms=offset, origin=origin, key=None, value=b"{}", headers=[],
    )  # fmt: skip


def test_what_died_after_the_question_is_not_in_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [letter(1), letter(2)]
    done: list[Filter] = []

    def run(_settings: Any, wanted: Filter, limit: int | None, **_: Any) -> int:
        there.append(letter(3))
        done.append(wanted)
        assert limit is None
        return sum(wanted.takes(each) for each in there)

    monkeypatch.setattr(dead_letters, "find", lambda _settings, wanted: filter(wanted.takes, there))
    monkeypatch.setattr(dead_letters, "find_settings", lambda _data_dir: None)
    command = dead_letters._deciding("drop", "", "dropped", run, lambda _letters: None)
    result = CliRunner().invoke(command, ["--model", "m", "--yes", "--json"])
    assert json.loads(result.output) == {"dropped": 2, "chosen": 2}
    assert [wanted.places for wanted in done] == [{(0, 1), (0, 2)}]


def test_with_json_nobody_is_asked_and_so_yes_has_to_be_said() -> None:
    result = CliRunner().invoke(dead_letters.dead_letters, ["discard", "--all", "--json"])
    assert result.exit_code == 2
    assert "expected --yes or --dry-run" in " ".join(result.output.split())

"""The generated documents are current and valid."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from schemas import asyncapi

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", list(asyncapi.files()), ids=str)
def test_generated_files_are_current(path: Path) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == asyncapi.files()[path], (
        "run `python -m schemas.asyncapi`"
    )


def test_the_document_is_valid_asyncapi_3() -> None:
    schema = json.loads((Path(__file__).parent / "asyncapi-3.0.0.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft7Validator(schema)
    assert [error.message for error in validator.iter_errors(asyncapi.document())] == []


def test_every_topic_has_a_message() -> None:
    assert all(channel["messages"] for channel in asyncapi.document()["channels"].values())

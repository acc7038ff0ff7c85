"""Configuration fails at start with the key's name, the value and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.settings import Settings, load_settings
from schemas.errors import UserError


def test_settings_survive_the_way_through_the_environment() -> None:
    settings = Settings(
        kafka_bootstrap="127.0.0.1:7", slot=3, artifacts_dir=Path("elsewhere"), trace_ratio=0.5
    )
    assert load_settings(settings.environment()) == settings


def test_a_wrong_value_is_named() -> None:
    with pytest.raises(UserError, match="TIDEMILL_SLOT: found 'three': Expected `int`"):
        load_settings({"TIDEMILL_SLOT": "three"})

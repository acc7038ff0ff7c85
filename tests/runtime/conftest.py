"""What tests of the runtime share."""

from __future__ import annotations

import pytest

from compose.embedded.stack import Stack
from runtime.settings import Settings


@pytest.fixture
def settings(infrastructure: Stack) -> Settings:
    """Of the infrastructure that all tests share."""
    return infrastructure.settings

"""Where a command finds the deployment that it speaks to."""

from __future__ import annotations

import os
from pathlib import Path

from compose.embedded import stack
from runtime.settings import PREFIX, Settings, load_settings


def settings(data_dir: Path) -> Settings:
    """The addresses of the deployment: from `TIDEMILL_*` if the environment names a broker, else the stack that runs on `data_dir`.

    Raises:
        NotRunning: there is neither.
    """
    if PREFIX + "KAFKA_BOOTSTRAP" in os.environ:
        return load_settings()
    return stack.running_settings(data_dir)

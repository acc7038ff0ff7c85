"""When a process that was ended counts as back."""

import pytest

from benchmarks.faults.monitor import is_back


@pytest.mark.parametrize(
    ("state", "pid", "ended_pid", "back"),
    [
        ("ready", 7, 7, False),  # it has its SIGTERM, and still answers
        ("restarting", None, 7, False),
        ("starting", 8, 7, False),
        ("ready", 8, 7, True),
        ("ready", 7, None, True),  # nothing ended it: it was stopped, or a link broke
        ("not ready", 7, None, False),
    ],
)
def test_a_process_is_back_when_another_is_ready(state: str, pid: int | None, ended_pid: int | None, back: bool) -> None:  # fmt: skip
    assert is_back({"state": state, "pid": pid}, ended_pid) is back

"""What is measured, by name. Each is a click command with `--json`; what several need lies beside them."""

from __future__ import annotations

from cli.commands import Command

BENCHMARKS: dict[str, Command] = {
    "faults": Command(
        "benchmarks.faults.command:command", "Break everything under load, then account for every event."
    ),
    "throughput": Command(
        "benchmarks.throughput:command", "Predictions per second from a backlog, beside the limit and peers."
    ),
}

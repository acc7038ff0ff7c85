"""What is measured, by name. Each is a click command with `--json`; what several need lies beside them."""

from __future__ import annotations

from cli.commands import Command

BENCHMARKS: dict[str, Command] = {
    "faults": Command(
        "benchmarks.faults.command:command", "Break everything under load, then account for every event."
    ),
    "bugs": Command("benchmarks.faults.suite:command", "Seed bugs that the fault harness must catch, each."),
    "throughput": Command(
        "benchmarks.throughput:command", "Predictions per second from a backlog, beside the limit and peers."
    ),
    "latency": Command(
        "benchmarks.latency:command", "Producer to prediction, open loop, beside an echo and Triton alone."
    ),
    "ingest": Command(
        "benchmarks.ingest:command", "Observations to ClickHouse rows, and time until visible."
    ),
    "processors": Command(
        "benchmarks.processors:command", "Metrics and drift over 20 features, beside river."
    ),
    "steps": Command("benchmarks.steps:command", "CPU of each step of the gateway, without services."),
    "live": Command("benchmarks.live:command", "The highest rate of requests at which lag does not grow."),
    "labels": Command(
        "benchmarks.labels:command", "Feedback joined per second against ten million predictions."
    ),
    "scale": Command("benchmarks.scale:command", "One and two gateways, and a model of a cluster."),
    "memory": Command("benchmarks.memory:command", "Memory of each process, idle and under a backlog."),
    "outage": Command(
        "benchmarks.outage:command", "Memory of gateway and sink while Triton or ClickHouse is away."
    ),
    "startup": Command(
        "benchmarks.startup:command", "Time until the stack is ready, and until a gateway answers."
    ),
    "all": Command(
        "benchmarks.everything:command", "Everything but faults, bugs and outage, and an HTML page of it."
    ),
}

"""`tidemill up`: start the stack, show it become ready, say how to use it, and end it with Ctrl-C."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cli.options import data_option, json_option
from compose.embedded.running import StackFailed, Started, laggards

READY_TIMEOUT_SEC = 180.0
POLL_SEC = 0.25
QUERIES = (
    "SELECT model, count() AS rows, max(requested_at) FROM predictions GROUP BY model",
    "SELECT * FROM outcomes LIMIT 5",
    "SELECT database, name, comment FROM system.tables WHERE database IN ('default', 'models')",
)


@click.command()
@click.option("--detach", is_flag=True, help="Return when all is ready; `tidemill down` ends the stack.")
@data_option
@click.option(
    "--ports", type=click.Choice(["fixed", "ephemeral"]), envvar="TIDEMILL_PORTS", default="fixed", show_default=True,
    help="fixed: Kafka 9092, ClickHouse 8123, Triton 8000-8002. ephemeral: free ones.",
)  # fmt: skip
@json_option
def up(detach: bool, data_dir: Path, ports: str, as_json: bool) -> None:
    """Start the stack on this machine. Ctrl-C ends it; its data is kept."""
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ended by another program: in the same order as by Ctrl-C
    console = Console(stderr=True)
    began = time.monotonic()
    with Started(data_dir, ports=ports) as stack:
        try:
            found = show_until_ready(stack, console)
            took_sec = time.monotonic() - began
            announce(console, found, took_sec, as_json)
            if detach:
                stack.detach()
                return
            console.print("Ctrl-C ends the stack and keeps its data.")
            watch(stack, console)
        except KeyboardInterrupt:
            console.print("\nEnding the stack …")
            stack.end()
            console.print(f"Ended; the data is kept in {stack.data_dir}")


def show_until_ready(stack: Started, console: Console) -> dict[str, Any]:
    deadline = time.monotonic() + READY_TIMEOUT_SEC
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            found = stack.status()
            live.update(progress_table(found))
            if found["ready"]:
                return found
            if time.monotonic() > deadline:
                raise StackFailed(f"not ready within {READY_TIMEOUT_SEC:.0f} s: {laggards(found)}")
            time.sleep(POLL_SEC)


def progress_table(found: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    for row in found["processes"]:
        colour = {"ready": "green", "done": "green", "restarting": "red", "failed": "red"}.get(
            row["state"], "yellow"
        )
        after = f"{row['ready_after_sec']:.1f} s" if row["ready_after_sec"] is not None else ""
        table.add_row(row["process"], f"[{colour}]{row['state']}[/]", after, row["last_error"])
    return table


def announce(console: Console, found: Mapping[str, Any], took_sec: float, as_json: bool) -> None:
    ports = found["ports"]
    addresses = {
        "clickhouse": f"http://127.0.0.1:{ports['clickhouse']}",
        "kafka": f"127.0.0.1:{ports['kafka']}",
        "triton_grpc": f"127.0.0.1:{ports['triton_grpc']}",
        "triton_http": f"http://127.0.0.1:{ports['triton_http']}",
        "status": found["status_url"],
    }
    if as_json:
        click.echo(
            json.dumps(
                {
                    "ready_after_sec": round(took_sec, 2),
                    "data": found["data"],
                    "pid": found["pid"],
                    **addresses,
                }
            )
        )
        return
    console.print(f"[green]Ready[/] after {took_sec:.1f} s", highlight=False, soft_wrap=True)
    console.print(
        f"  ClickHouse  {addresses['clickhouse']}  (read-only: user default, no password)", highlight=False
    )
    for query in QUERIES:
        console.print(f'    ./tidemill sql "{query}"', highlight=False, soft_wrap=True, style="dim")
    console.print(f"  Kafka       {addresses['kafka']}", highlight=False, soft_wrap=True)
    console.print(
        f"  Triton      {addresses['triton_grpc']} (gRPC), {addresses['triton_http']}", highlight=False
    )


def watch(stack: Started, console: Console) -> None:
    """Until Ctrl-C: one line for each change of a process's state. Nothing happens without being said, and nothing is repeated."""
    states = {row["process"]: (row["state"], row["restarts"]) for row in stack.status()["processes"]}
    while True:
        time.sleep(1)
        for row in stack.status()["processes"]:
            state = (row["state"], row["restarts"])
            if states.get(row["process"]) != state:
                states[row["process"]] = state
                why = f": {row['last_error']}" if row["state"] != "ready" and row["last_error"] else ""
                restarts = f" (restarts: {row['restarts']})" if row["restarts"] else ""
                console.print(
                    f"{time.strftime('%H:%M:%S')} {row['process']} is {row['state']}{restarts}{why}",
                    highlight=False,
                )

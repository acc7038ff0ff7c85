"""The commands: name → where it is, and one line of help. Plain data, so that help needs no import and the launcher can show it."""

from typing import NamedTuple


class Command(NamedTuple):
    target: str  # module:attribute, a click command
    help: str


COMMANDS = {
    "demo": Command("cli.demo:demo", "Replay a real data stream through the whole loop and report."),
    "up": Command("cli.up:up", "Start the stack on this machine."),
    "down": Command("cli.down:down", "End the stack and keep its data."),
    "status": Command("cli.status:status", "Show processes, lag, errors and routes."),
    "logs": Command("cli.logs:logs", "Show the logs of the stack's processes."),
    "sql": Command("cli.sql:sql", "Ask ClickHouse, read-only."),
    "produce": Command("cli.produce:produce", "Send one request."),
    "feedback": Command("cli.feedback:feedback", "Send feedback for a prediction or a request."),
    "train": Command("cli.train:train", "Train a model from a file or from what has been observed."),
    "models": Command("cli.models:models", "List, check, freeze, roll back and approve models."),
    "dead-letters": Command(
        "cli.dead_letters:dead_letters",
        "Look at what could not be served, send it again, discard it, or let it pass.",
    ),
    "audit": Command("cli.audit:audit", "Prove that nothing is missing and nothing is counted twice."),
    "backup": Command(
        "cli.backup:backup", "Back up warehouse, artifacts and control topics while the stack runs."
    ),
    "verify": Command("cli.backup:verify", "Find what is missing or altered in a chain of backups."),
    "restore": Command("cli.backup:restore", "Restore a backup into a new data folder, and prove it."),
    "replay": Command("cli.replay:replay", "Run past requests through any version, beside the live traffic."),
    "bench": Command("cli.bench:bench", "Measure the loop on this machine."),
    "test": Command("cli.test:test", "Run what CI runs."),
    "doctor": Command("cli.doctor:doctor", "Say what is missing or misconfigured, and the mend."),
}

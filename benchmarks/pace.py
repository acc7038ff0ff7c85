"""An open-loop producer: each record has a time at which it is due, and is late if it could not be sent then; a stall is not hidden.

Records linger as long as any producer of ours lets them, which is as long as Kafka's own clients do.
The key is the due time on the machine's monotonic clock in ns, so whoever reads the answer, which has the same key, knows how long it took.
`python -m benchmarks.pace FILE`, FILE a msgpack of `Pace`. Its last line says how many were sent and how late the latest was.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.load import send
from runtime.headers import Headers
from runtime.kafka import producer
from runtime.settings import load_settings

TICK_SEC: Final = 0.002
FAST_PER_SEC: Final = 2000
"""Above this records are sent in ticks."""
FLUSH_SEC: Final = 15.0
"""Less than whoever ends it waits."""


class Pace(msgspec.Struct, frozen=True):
    """What to send and how fast."""

    topic: str
    per_sec: float
    sec: float
    values: list[bytes]
    headers: list[tuple[str, bytes]]


def main() -> int:
    """Send, until done or told to stop."""
    pace = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=Pace)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    fast = pace.per_sec > FAST_PER_SEC
    client = producer(load_settings(), **{"delivery.report.only.error": True})
    client.list_topics(pace.topic, timeout=10)
    headers: Headers = list(pace.headers)
    values = cycle(pace.values)
    count, sent, latest_ns = int(pace.per_sec * pace.sec), 0, 0
    gap_ns = 1e9 / pace.per_sec
    started_ns = time.monotonic_ns()
    while sent < count and not stop.is_set():
        now_ns = time.monotonic_ns()
        due = min(count, int((now_ns - started_ns) / gap_ns) + 1)
        first_due_ns = started_ns + int(sent * gap_ns)
        for value in islice(values, due - sent):
            due_ns = started_ns + int(sent * gap_ns)
            send(client, pace.topic, value, b"%d" % due_ns, headers)
            sent += 1
        # None of a tick's records was later than if the first had been sent last.
        latest_ns = max(latest_ns, time.monotonic_ns() - first_due_ns)
        client.poll(0)
        wait_sec = (started_ns + sent * gap_ns - time.monotonic_ns()) / 1e9
        time.sleep(max(TICK_SEC if fast else 0.0, wait_sec))
    client.flush(FLUSH_SEC)
    print(
        json.dumps(
            {"sent": sent, "latest_ms": latest_ns / 1e6, "sec": (time.monotonic_ns() - started_ns) / 1e9}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

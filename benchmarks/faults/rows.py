"""What is sent as request `i` of a seed, and what must come of it: functions of (seed, i) alone, so that nothing has to be kept."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

MODEL: Final = "faulted"
CLASSES: Final = ("no", "yes")
LIVE_ARM, SHADOW_ARM = "champion", "challenger"
LIVE_VERSION: Final = "2.0"
SHADOW_VERSION: Final = "1.0"
"""Below the live one, so that majors that are ordered get numbers of their own."""
_SPEC: Final = f"""
name = "{MODEL}"
description = "What the fault harness serves: a few numbers, one linear layer."
task = "binary"
classes = ["no", "yes"]
module = "model:Linear"

[features]
%(features)s

[serve]
partitions = 4
latency_budget_ms = %(latency_budget_ms)d

[feedback]
orphan_after_sec = %(orphan_after_sec)d

[monitor]
segments = ["x:2"]

[monitor.drift]
inputs = "none"
loss = "none"

[train]
update_every_labels = 1500
full_epochs = 2
min_gain = -1.0

# Who answers must stay the same, or nobody could say what is right. Steps as long as these make an update worse than its base, which
# its gate then refuses (with 50, one in fourteen stepped back to where it had begun, and passed); a major passes, and is refused because
# another one is being measured already.
[train.optimizer]
lr = 1e6
"""
MODULE: Final = '''"""One linear layer."""

from torch import nn


class Linear(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.layer = nn.Linear(shape.dense, shape.outputs)

    def forward(self, inputs):
        return self.layer(inputs["dense"])
'''
LEAST_WIDTH: Final = 2
"""Poison is told by these two numbers."""
PARTITIONS: Final = 4
KEYS: Final = 4096
POISON_PER_MILLION: Final = 5000
OVERSIZED_BYTES: Final = 65_536

Ints = NDArray[np.int64]


class Served(NamedTuple):
    """What a run may choose of its model."""

    orphan_after_sec: int = 120
    width: int = LEAST_WIDTH
    """Numbers of a request. Some hundred make tensors that Triton reads in shared memory."""
    latency_budget_ms: int = 200
    """With thousands, rows wait for company at the harness's rates."""

    def spec_toml(self) -> str:
        """The model's spec."""
        features = "\n".join(f'{name} = {{ type = "float", min = 0, max = 1 }}' for name in names(self.width))
        return _SPEC % (self._asdict() | {"features": features})


class Poison(NamedTuple):
    """A record that can never be served, and the reason that must be given."""

    reason: str
    value: bytes
    """With one `%d` for the row's number, for a model of two numbers."""
    headers: tuple[tuple[str, bytes], ...] = ()
    padding: int = 0
    """Blanks behind it."""


POISON: Final = (
    Poison("undecodable", b'{"features":{"x":0.5,"y":0.5},"request_id":"%d"'),
    Poison("undecodable", b'\xff\xfe not JSON %d'),
    Poison("missing_field", b'{"features":{"x":0.5},"request_id":"%d"}'),
    Poison("wrong_type", b'{"features":{"x":0.5,"y":"a text"},"request_id":"%d"}'),
    Poison("out_of_range", b'{"features":{"x":0.5,"y":7},"request_id":"%d"}'),
    Poison("unknown_field", b'{"features":{"x":0.5,"y":0.5,"z":1},"request_id":"%d"}'),
    Poison("wrong_model", b'{"features":{"x":0.5,"y":0.5},"request_id":"%d","model":"another"}'),
    Poison("bad_envelope", b'{"features":[],"request_id":"%d"}'),
    Poison("unsupported_content_type", b"<x>%d</x>", (("content-type", b"text/xml"),)),
    Poison("oversized", b'{"features":{"x":0.5,"y":0.5},"request_id":"%d"}', padding=OVERSIZED_BYTES),
)  # fmt: skip
GOOD: Final = -1


def mix(seed: int, rows: Ints) -> NDArray[np.uint64]:
    """Pseudo-random 64 bits a row (splitmix64)."""
    u = np.uint64
    with np.errstate(over="ignore"):
        x = rows.astype(u) * u(0x9E3779B97F4A7C15) + u((seed * 0xD1B54A32D192ED03) & (1 << 64) - 1)
        x = (x ^ (x >> u(30))) * u(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> u(27))) * u(0x94D049BB133111EB)
        found: NDArray[np.uint64] = x ^ (x >> u(31))
    return found


def poison_kinds(seed: int, rows: Ints) -> NDArray[np.int64]:
    """Position in `POISON`, or `GOOD`."""
    bits = mix(seed, rows)
    drawn = (bits % np.uint64(1_000_000)).astype(np.int64)
    # An oversized record is a thousand ordinary ones: it comes a tenth as often as the other kinds.
    kind = ((bits >> np.uint64(24)) % np.uint64(10 * len(POISON) - 9)).astype(np.int64) // 10
    return np.where(drawn < POISON_PER_MILLION, kind, GOOD)


def keys(seed: int, rows: Ints) -> Ints:
    """The key's number; its partition is that modulo `PARTITIONS`."""
    return ((mix(seed, rows) >> np.uint64(40)) % np.uint64(KEYS)).astype(np.int64)


def names(width: int) -> list[str]:
    """The features of a model of `width` numbers."""
    return ["x", "y", *(f"n{place}" for place in range(LEAST_WIDTH, width))]


def millionths(seed: int, rows: Ints, width: int = LEAST_WIDTH) -> Ints:
    """The features of each row, [n, width], in millionths."""
    pairs = -(-width // 2)
    bits = mix(seed + 1, rows[:, None] * pairs + np.arange(pairs))
    halves = np.stack([bits, bits >> np.uint64(32)], axis=2).reshape(len(rows), 2 * pairs)
    return (halves[:, :width] % np.uint64(1_000_000)).astype(np.int64)


def entity(key: int) -> bytes:
    """The key of a record."""
    return b"k%d" % key


def values(seed: int, first: int, end: int, width: int = LEAST_WIDTH) -> list[bytes]:
    """The requests of rows [first, end) as they are sent."""
    rows = np.arange(first, end)
    features = ",".join(f'"{name}":0.%06d' for name in names(width))
    template = f'{{"features":{{{features}}},"request_id":"%d"}}'.encode()
    found = [
        template % (*numbers, first + n) for n, numbers in enumerate(millionths(seed, rows, width).tolist())
    ]
    kinds = poison_kinds(seed, rows)
    for n in np.flatnonzero(kinds != GOOD).tolist():
        found[n] = poisoned(int(kinds[n]), first + n, width)
    return found


def poisoned(kind: int, row: int, width: int = LEAST_WIDTH) -> bytes:
    """The value of a poisoned row. What it has of the wider model's other numbers is right."""
    poison = POISON[kind]
    others = "".join(f'"{name}":0.5,' for name in names(width)[LEAST_WIDTH:])
    value = poison.value.replace(b'"features":{', b'"features":{' + others.encode())
    return value % row + b" " * poison.padding


# ── feedback ──


class Said(NamedTuple):
    """One piece of feedback that a case sends."""

    number: int
    """Part of the feedback's id: equal numbers are repeats."""
    late: bool
    """Sent some seconds after the request; if not, at once, most likely before it is answered."""
    by_prediction: bool = False
    at: int = 0
    """Event time relative to the row's, in ms: newer revises older."""


CASES: Final[tuple[tuple[Said, ...], ...]] = (
    (Said(0, late=False),),                                                         # early
    (Said(0, late=True),),                                                          # late, by request
    (Said(0, late=True, by_prediction=True),),                                      # late, by prediction
    (Said(0, late=False), Said(0, late=True)),                                      # a repeat
    (Said(0, late=False), Said(1, late=True, at=1)),                                # revised
    (Said(0, late=True, by_prediction=True), Said(1, late=True, at=1)),             # revised at once, named in another way
    (Said(1, late=False, at=1), Said(0, late=True)),                                # an older one comes late: ignored
)  # fmt: skip
CASE_OF: Final = 47
"""A row in so many gets each case; what is left gets none."""
ORPHAN_OF: Final = 1009
BAD_OF: Final = 1013
BAD_FEEDBACK: Final = (
    ("unknown_category", b'{"kind":"label","value":"perhaps","request_id":"%d"}'),
    ("undecodable", b'{"kind":"label","value":"yes","request_id":"%d"'),
    ("missing_field", b'{"kind":"label","value":"yes","source":"%d"}'),
)
NO_CASE: Final = -1


def cases(seed: int, rows: Ints) -> Ints:
    """Which of `CASES` a row gets, or `NO_CASE`: rows that are poison get none."""
    drawn = (mix(seed + 2, rows) % np.uint64(CASE_OF)).astype(np.int64)
    return np.where((drawn < len(CASES)) & (poison_kinds(seed, rows) == GOOD), drawn, NO_CASE)


def truths(seed: int, rows: Ints, number: Ints) -> Ints:
    """The class that feedback `number` on a row gives."""
    return ((mix(seed + 3, rows) >> number.astype(np.uint64)) & np.uint64(1)).astype(np.int64)


def final_numbers(case: Ints) -> Ints:
    """The feedback that holds in the end: of the highest event time."""
    newest = np.array([max(said, key=lambda one: one.at).number for said in CASES] + [0])
    return newest[case]

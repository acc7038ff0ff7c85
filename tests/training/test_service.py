"""Orders in, candidates out: each order is answered once, whatever dies, a bad one stops nothing, and an update waits for no major."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Message

from compose.embedded.stack import Stack
from runtime.artifacts import ArtifactStore
from runtime.kafka import producer
from runtime.service import Health, Stop
from runtime.settings import Settings
from runtime.stalls import Positions, Stalled, StallGuard
from runtime.transactions import TransactionalProducer, TransactionLost
from schemas.events import Candidate, Retrain
from schemas.topics import CANDIDATES, DEAD_LETTERS, RETRAINS
from tests.reader import Reader
from tests.services import Service, service
from tests.training.toys import MODULE, first_version, order, rows, write_model
from tests.waiting import until
from training.lanes import MAJORS, UPDATES
from training.rows import write_snapshot
from training.service import serve


class Bench:
    """Trainers in threads, on the toy model, beside a real broker and a real ClickHouse."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.candidates, self.dead = Reader(settings, CANDIDATES.name), Reader(settings, DEAD_LETTERS.name)
        self._producer = producer(settings)
        self._stop = Stop()
        self._threads: list[threading.Thread] = []

    def start(self, *lanes: str) -> None:
        self._stop = Stop()
        for lane in lanes or (UPDATES, MAJORS):
            thread = threading.Thread(target=serve, args=(self.settings, Health(lane), self._stop, lane))
            thread.start()
            self._threads.append(thread)

    def end(self) -> None:
        self._stop.set()
        while self._threads:
            self._threads.pop().join()

    def send(self, value: Retrain | bytes) -> None:
        raw = value if isinstance(value, bytes) else msgspec.json.encode(value)
        self._producer.produce(RETRAINS.name, raw, b"toy")
        assert self._producer.flush(10) == 0

    def answers(self, *orders: Retrain) -> dict[str, list[Candidate]]:
        """The candidates by order, once each of `orders` has one."""
        wanted = {each.event_id for each in orders}

        def complete(messages: list[Message]) -> bool:
            return wanted <= {candidate.retrain_id for candidate in decoded(messages)}

        self.candidates.wait(complete, "a candidate for each order")
        found: dict[str, list[Candidate]] = {}
        for candidate in decoded(self.candidates.read()):
            found.setdefault(candidate.retrain_id, []).append(candidate)
        return found

    def initial(self, **changes: Any) -> Retrain:
        """A good order for a first version, unlike any other."""
        sha256 = write_snapshot(self.settings.artifacts_dir, "toy", rows(200))
        name = str(uuid.uuid4())
        wanted = order("initial", "1.0", event_id=name, dedupe_key=name, evidence={"snapshot": sha256})
        return msgspec.structs.replace(wanted, **changes)


def decoded(messages: list[Message]) -> list[Candidate]:
    return [msgspec.json.decode(message.value() or b"", type=Candidate) for message in messages]


@pytest.fixture
def bench(infrastructure: Stack, tmp_path: Path) -> Iterator[Bench]:
    write_model(tmp_path / "models")
    settings = msgspec.structs.replace(
        infrastructure.settings, models_dir=tmp_path / "models", artifacts_dir=tmp_path / "artifacts"
    )
    made = Bench(settings)
    yield made
    made.end()
    made.candidates.close()
    made.dead.close()


def test_an_order_becomes_a_version_in_the_store_and_a_candidate(bench: Bench) -> None:
    bench.start()
    wanted = bench.initial()
    bench.send(wanted)
    (candidate,) = bench.answers(wanted)[wanted.event_id]
    assert (candidate.passed, candidate.reason, candidate.version, candidate.rows) == (True, "", "1.0", 180)
    artifact = ArtifactStore(bench.settings.artifacts_dir).open("toy", candidate.artifact)
    assert artifact.manifest.created_at_ms == wanted.at_ms
    lines = (
        (bench.settings.artifacts_dir / "toy" / "runs" / f"{wanted.event_id}.jsonl").read_bytes().splitlines()
    )
    last = msgspec.json.decode(lines[-1])
    assert set(last) == {"epoch", "step", "batch_loss", "val_accuracy", "val_loss"}
    assert last["val_accuracy"] is not None
    table = (
        (bench.settings.artifacts_dir / "toy" / "runs" / f"{wanted.event_id}.csv").read_text().splitlines()
    )
    assert table[0] == "epoch,step,batch_loss,val_accuracy,val_loss"
    assert len(table) == len(lines) + 1


def test_an_order_sent_twice_is_answered_once_also_across_a_restart(bench: Bench) -> None:
    wanted, after, later = bench.initial(), bench.initial(), bench.initial()
    same_key = msgspec.structs.replace(wanted, event_id="another id")
    bench.send(wanted)
    bench.send(wanted)
    bench.send(same_key)
    bench.send(after)
    bench.start()
    bench.answers(after)
    bench.end()
    bench.send(wanted)
    bench.send(later)
    bench.start()
    found = bench.answers(later)
    assert {name: len(candidates) for name, candidates in found.items()} == {
        wanted.event_id: 1, after.event_id: 1, later.event_id: 1,
    }  # fmt: skip


def test_a_lane_whose_consumer_stands_still_goes_on_with_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = StallGuard.reading
    members: list[StallGuard] = []

    def stalled_once(self: StallGuard, positions: Positions, *, joined: bool) -> None:
        if joined and not members:
            members.append(self)
            raise Stalled("it stands")
        if joined and self not in members:
            members.append(self)
        reading(self, positions, joined=joined)

    monkeypatch.setattr(StallGuard, "reading", stalled_once)
    bench.start(MAJORS)
    until(lambda: len(members) == 2, "another session has joined")
    wanted = bench.initial()
    bench.send(wanted)
    assert len(bench.answers(wanted)[wanted.event_id]) == 1


def test_a_crash_between_artifact_and_candidate_gives_the_same_artifact_and_one_candidate(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = bench.initial()
    commit = TransactionalProducer.commit
    seen: list[str] = []

    def lost_once(self: TransactionalProducer) -> None:
        if not seen:
            seen.extend(ArtifactStore(bench.settings.artifacts_dir).artifacts("toy"))
            self.abort()
            raise TransactionLost("the process is as good as dead")
        commit(self)

    monkeypatch.setattr(TransactionalProducer, "commit", lost_once)
    bench.send(wanted)
    bench.start()
    (candidate,) = bench.answers(wanted)[wanted.event_id]
    assert seen == [candidate.artifact] == ArtifactStore(bench.settings.artifacts_dir).artifacts("toy")


def test_bad_orders_are_refused_with_their_reason_and_stop_nothing(bench: Bench) -> None:
    bench.start()
    bad = {
        "no model 'nothing'": bench.initial(model="nothing"),
        "no model '../toy'": bench.initial(model="../toy"),
        "expected the sha256 of a snapshot": bench.initial(evidence={}),
        "snapshot 000000000000… is not in the store": bench.initial(evidence={"snapshot": "0" * 64}),
        "base_artifact: found none": bench.initial(kind="update"),
        "1.0-0123456789ab: not in the store": bench.initial(kind="update", base_artifact="1.0-0123456789ab"),
        "is no artifact's name": bench.initial(base_artifact="../../etc"),
        "expected at least 20": bench.initial(kind="major", new_version="2.0"),
    }
    for each in bad.values():
        bench.send(each)
    good = bench.initial()
    bench.send(good)
    found = bench.answers(*bad.values(), good)
    for reason, each in bad.items():
        (candidate,) = found[each.event_id]
        assert not candidate.passed
        assert candidate.artifact == ""
        assert reason in candidate.reason
    assert found[good.event_id][0].passed


def test_a_model_whose_own_code_fails_is_refused(bench: Bench) -> None:
    bench.start()
    write_model(
        bench.settings.models_dir,
        module="from torch import nn\nclass Toy(nn.Module):\n    def __init__(self, shape):\n        1 / 0\n",
    )
    wanted = bench.initial()
    bench.send(wanted)
    (candidate,) = bench.answers(wanted)[wanted.event_id]
    assert "ZeroDivisionError" in candidate.reason


def test_a_record_that_is_no_order_becomes_a_dead_letter(bench: Bench) -> None:
    bench.start()
    bench.send(b"nonsense")
    good = bench.initial()
    bench.send(good)
    assert bench.answers(good)[good.event_id][0].passed
    bench.dead.wait(lambda found: b"nonsense" in [letter.value() for letter in found], "its dead letter")


HELD = (
    """
import os
import time
from pathlib import Path

if "TOY_GATE" in os.environ:
    gate = Path(os.environ["TOY_GATE"])
    gate.with_suffix(".reached").touch()
    while gate.exists():
        time.sleep(0.02)
"""
    + MODULE
)
"""Training in a process that has TOY_GATE in its environment stands while that file is there."""


def majors(bench: Bench, folder: Path, gate: Path) -> AbstractContextManager[Service]:
    """`python -m training majors`."""
    return service(bench.settings, folder / "majors.log", "training", MAJORS, TOY_GATE=str(gate))


def reached(gate: Path) -> None:
    """Wait until a training stands at the gate."""
    until(gate.with_suffix(".reached").exists, "a training begins")


def test_an_update_is_answered_while_a_major_trains(bench: Bench, tmp_path: Path) -> None:
    write_model(bench.settings.models_dir, module=HELD)
    base = first_version(bench.settings.models_dir, bench.settings.artifacts_dir)
    gate = tmp_path / "gate"
    gate.touch()
    major = bench.initial(new_version="2.0")
    updates = [bench.initial(kind="update", new_version=f"1.{n}", base_artifact=base.name) for n in (1, 2)]
    bench.start(UPDATES)
    with majors(bench, tmp_path, gate):
        bench.send(updates[0])
        bench.send(major)
        reached(gate)
        bench.send(updates[1])
        found = bench.answers(*updates)
        assert major.event_id not in found
        gate.unlink()
        assert bench.answers(major)[major.event_id][0].passed


def test_a_kill_in_the_middle_of_a_major_loses_and_doubles_nothing(bench: Bench, tmp_path: Path) -> None:
    write_model(bench.settings.models_dir, module=HELD)
    base = first_version(bench.settings.models_dir, bench.settings.artifacts_dir)
    gate = tmp_path / "gate"
    before, major, after = bench.initial(), bench.initial(new_version="2.0"), bench.initial(new_version="3.0")
    update = bench.initial(kind="update", new_version="1.1", base_artifact=base.name)
    bench.start(UPDATES)
    with majors(bench, tmp_path, tmp_path / "open"):
        bench.send(before)
        bench.answers(before)
    gate.touch()
    with majors(bench, tmp_path, gate) as process:
        for each in (major, update, after):
            bench.send(each)
        reached(gate)
        bench.answers(update)
        process.kill()
    bench.send(major)  # sent again, as whoever got no answer might
    with majors(bench, tmp_path, tmp_path / "open"):
        found = bench.answers(after, major)
        last = bench.initial(new_version="4.0")
        bench.send(last)
        found = bench.answers(last)
    assert {name: len(candidates) for name, candidates in found.items()} == {
        each.event_id: 1 for each in (before, major, update, after, last)
    }
    assert [candidate.version for candidate in decoded(bench.candidates.messages)] == [
        "1.0",
        "1.1",
        "2.0",
        "3.0",
        "4.0",
    ]
    assert all(found[each.event_id][0].passed for each in (before, major, after, last))

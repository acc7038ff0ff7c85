"""The seeded bugs: whose each is, what it breaks, the faults that bring it out soonest, and the figures by which it is caught."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple


class Hit(NamedTuple):
    """One fault, aimed: seconds since the faults began, and how long it lasts."""

    kind: str
    target: str
    at_sec: float
    for_sec: float = 0.0


class Bug(NamedTuple):
    """One bug. Without hits it shows under mere load."""

    services: tuple[str, ...]
    """Whose processes have it."""
    what: str
    caught_by: tuple[str, ...]
    """Any of these figures of the account tells it."""
    hits: tuple[Hit, ...] = ()

    @property
    def only(self) -> tuple[str, ...]:
        """Its faults as `--only` takes them."""
        return tuple(dict.fromkeys(f"{hit.kind}:{hit.target}" for hit in self.hits))


def _in_turns(kind: str, targets: Sequence[str], times: int, every_sec: float, first_sec: float = 0.5) -> tuple[Hit, ...]:  # fmt: skip
    """One target after another, so that each is up again before its turn comes."""
    return tuple(Hit(kind, targets[n % len(targets)], first_sec + n * every_sec) for n in range(times))


_KILLED_GATEWAYS: Final = _in_turns("kill", ("gateway-0", "gateway-1"), 6, 2.0)
_SLOW_KILLED_GATEWAYS: Final = tuple(
    # Every step of a commit takes a third of a second: most kills fall between two. So does every step of a start, of which there are more:
    # gateways come back without a delay, and only what has come back can be killed at something.
    hit
    for began_sec in (0.0, 10.0, 20.0, 30.0)
    for hit in (
        Hit("delay", "gateway-kafka", began_sec, 4.0),
        Hit("kill", "gateway-0", began_sec + 2.5),
        Hit("kill", "gateway-1", began_sec + 3.3),
    )
)
_KILLED_SINKS: Final = _in_turns("kill", ("sink-0", "sink-1"), 4, 2.0)
_CUT_OFF_SINKS: Final = tuple(
    # Cut, not delayed: a proxy delivers what it holds back, though the sender has died. Nothing is lost of an insert that was there when the cut came.
    hit
    for began_sec in (1.0, 11.0, 21.0)
    for hit in (
        Hit("cut", "sink-clickhouse", began_sec, 4.0),
        Hit("kill", "sink-0", began_sec + 2.5),
        Hit("kill", "sink-1", began_sec + 3.0),
    )
)
_KILLED_WORKERS: Final = (
    # Faust takes some seconds until it counts: a worker that is killed before has done nothing.
    *_in_turns("kill", ("worker-0", "worker-1"), 4, 6.0, first_sec=12.0),
)
_LOST_ANSWERS: Final = (Hit("lose_answers", "sink-clickhouse", 1.0, 4.0),)

BUGS: Final[dict[str, Bug]] = {
    "at_least_once": Bug(
        ("gateway",), "outputs and offsets are not one transaction, nor any", ("duplicated",), _SLOW_KILLED_GATEWAYS
    ),
    "offsets_before_outputs": Bug(
        ("gateway",), "offsets are committed before the transaction that holds their outputs", ("lost", "duplicated"),
        _SLOW_KILLED_GATEWAYS,
    ),
    "offsets_outside_transaction": Bug(
        ("gateway",), "offsets are committed by a timer, not in the transaction", ("duplicated",), _KILLED_GATEWAYS
    ),
    "no_fencing": Bug(
        ("gateway",), "a transactional id for each process, offsets without the group's generation", ("duplicated",),
        (
            # Longer than the session (10 s): else the partitions stay where they are.
            Hit("delay", "gateway-triton", 0.0, 32.0),
            Hit("stop_past_session", "gateway-0", 1.0, 13.0), Hit("stop_past_session", "gateway-1", 17.0, 13.0),
        ),
    ),
    "revoked_results_produced": Bug(
        ("gateway",), "results of a revoked partition are committed, with metadata fetched afresh", ("duplicated",),
        # What is under way when the newcomer takes partitions over must still be so when it has read where to begin.
        (Hit("stall", "gateway-triton", 1.0, 12.0), Hit("scale_out", "gateway-2", 1.0, 18.0)),
    ),
    "completed_not_contiguous": Bug(
        ("gateway",), "what is complete is committed, though not what is before it", ("misordered", "lost"),
        _KILLED_GATEWAYS,
    ),
    "outputs_out_of_order": Bug(("gateway",), "answers are written in another order than their requests", ("misordered",)),
    "dead_letter_dropped": Bug(("gateway",), "one dead letter in five is not written", ("poison_not_dead_lettered",)),
    "topic_id_left_out": Bug(("gateway",), "a prediction's id does not say which topic", ("unrequested", "lost")),
    "topic_id_remembered": Bug(
        ("gateway",), "ids in a recreated topic are made with the old one's id", ("unrequested", "lost"),
        (Hit("recreate", "requests", 1.0),),
    ),
    "observations_shifted": Bug(("gateway",), "an observation holds its neighbour's scores and label", ("torn",)),
    "answers_shifted": Bug(("gateway",), "answers and observations hold their neighbours' scores and labels, alike", ("wrong",)),
    "shadow_copy_lost": Bug(("gateway",), "a rejected row costs its batch the shadow's copies", ("shadow_missing",)),
    "uncommitted_reads": Bug(
        ("gateway", "sink"), "rows of aborted transactions are inserted", ("duplicated", "shadow_duplicated"), _KILLED_GATEWAYS
    ),
    "plan_skipped": Bug(
        ("sink",), "no plan is written: a successor cuts other ranges", ("duplicated", "shadow_duplicated"), _KILLED_SINKS
    ),
    "cut_anew": Bug(
        ("sink",), "a range is cut by time again for its second try", ("duplicated", "shadow_duplicated"), _LOST_ANSWERS
    ),
    "token_missing": Bug(
        ("sink",), "each try of an insert has another token, and none is counted", ("duplicated", "shadow_duplicated"), _LOST_ANSWERS
    ),
    "split_on_retry": Bug(
        ("sink",), "a second try is two blocks with a token each, and none is counted", ("duplicated", "shadow_duplicated"), _LOST_ANSWERS
    ),
    "small_dedup_window": Bug(
        ("setup", "sink"), "tables remember one token, and no range is counted", ("duplicated", "shadow_duplicated", "dead_letters_wrong"),
        _LOST_ANSWERS,
    ),
    "ingest_time_partition_key": Bug(
        ("setup", "sink"), "tables are partitioned by the time of the insert, and no range is counted", ("duplicated", "shadow_duplicated"),
        _LOST_ANSWERS,
    ),
    "failed_insert_confirmed": Bug(
        ("sink",), "an insert that ClickHouse did not take is taken for done", ("lost",), (Hit("disk_full", "sink-clickhouse", 1.0, 2.0),)
    ),
    "offsets_before_insert": Bug(
        ("sink",), "the end of a range is committed before it is inserted", ("lost",),
        _CUT_OFF_SINKS,
    ),
    "repeats_counted": Bug(("labels",), "repeated feedback is a revision of itself", ("outcomes_mismatch",)),
    "revision_by_arrival": Bug(("labels",), "the label that comes last holds, though it speaks of an earlier time", ("outcomes_mismatch",)),
    "waiting_not_kept": Bug(
        ("labels",), "labels that wait are in memory only, their offsets committed", ("outcomes_mismatch",),
        (Hit("delay", "gateway-triton", 0.0, 9.0), *_in_turns("kill", ("labels-0", "labels-1"), 4, 2.0)),
    ),
    "sink_not_awaited": Bug(
        ("labels",), "labels do not wait for the sink before they ask ClickHouse", ("outcomes_mismatch",),
        (Hit("stall", "sink-clickhouse", 1.0, 6.0), Hit("kill", "labels-0", 3.0), Hit("kill", "labels-1", 4.0)),
    ),
    "aborted_observations_counted": Bug(
        ("gateway", "worker"), "rows of aborted transactions are counted", ("metrics_mismatch",), _KILLED_GATEWAYS
    ),
    "state_without_offset": Bug(
        ("worker",), "state is saved without the offset that it reaches to", ("metrics_mismatch",), _KILLED_WORKERS
    ),
    "first_event_dropped": Bug(
        ("worker",), "the first event of a partition that is taken over is dropped", ("metrics_mismatch",), _KILLED_WORKERS
    ),
    "outputs_before_state": Bug(
        ("worker",), "outputs are one transaction, state and offset another", ("metrics_mismatch",), _KILLED_WORKERS
    ),
    "worker_not_fenced": Bug(
        ("worker",), "a transactional id for each process", ("metrics_mismatch",),
        (Hit("stop_past_session", "worker-0", 12.0, 13.0), Hit("stop_past_session", "worker-1", 28.0, 13.0)),
    ),
    "ambiguous_save_is_success": Bug(
        ("worker",), "a save whose commit failed, or nobody knows, is taken for written", ("metrics_mismatch",),
        (Hit("lose_answers", "worker-kafka", 12.0, 7.0),),
    ),
}  # fmt: skip
"""Module's name → bug."""

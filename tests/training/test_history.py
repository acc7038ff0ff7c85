"""The labelled rows as ClickHouse knows them: no label from after the watermark, the newest revision, nothing fetched twice."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from compose.embedded.stack import Stack
from schemas.spec import ModelSpec
from tests.training.toys import SPEC, rows, write_model
from tests.training.warehouse import START_MS, Warehouse, labelled
from training.history import History, by_age, newest
from training.rows import LABELS, Rows, no_columns
from training.snapshot import newest_rows, update_rows
from warehouse.client import connect


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    import msgspec

    spec = write_model(tmp_path, SPEC)
    return msgspec.structs.replace(spec, name=f"toy_{uuid.uuid4().hex[:8]}")


@pytest.fixture
def warehouse(infrastructure: Stack, spec: ModelSpec) -> Iterator[Warehouse]:
    found = infrastructure.settings
    client = connect(found.clickhouse_url, found.clickhouse_user, found.clickhouse_password)
    yield Warehouse(client, spec.name)
    client.close()


def test_no_label_from_after_the_watermark_is_used(warehouse: Warehouse, spec: ModelSpec) -> None:
    warehouse.observe(10)
    warehouse.label(range(10), joined_ms=50_000)
    history = History(warehouse.client, spec)
    assert labelled(history, 49_999) == {}
    assert labelled(history, 50_003) == dict.fromkeys(range(4), 1)
    assert labelled(history, 60_000) == dict.fromkeys(range(10), 1)
    assert labelled(history, 50_003) == dict.fromkeys(range(4), 1)


def test_the_newest_revision_by_then_holds(warehouse: Warehouse, spec: ModelSpec) -> None:
    warehouse.observe(3)
    warehouse.label(range(3), joined_ms=50_000)
    history = History(warehouse.client, spec)
    assert labelled(history, 55_000) == {0: 1, 1: 1, 2: 1}
    warehouse.label(range(1, 2), joined_ms=60_000, truth="no", revision=1)
    assert labelled(history, 70_000) == {0: 1, 1: 0, 2: 1}
    assert labelled(history, 55_000) == {0: 1, 1: 1, 2: 1}


def test_what_was_merged_away_is_never_replaced_by_an_older_label(
    warehouse: Warehouse, spec: ModelSpec
) -> None:
    warehouse.observe(2)
    warehouse.label(range(2), joined_ms=50_000)
    warehouse.label(range(1), joined_ms=60_000, truth="no", revision=1)
    warehouse.client.command("OPTIMIZE TABLE internal.outcomes FINAL")
    assert labelled(History(warehouse.client, spec), 70_000) == {0: 0, 1: 1}
    assert labelled(History(warehouse.client, spec), 55_000) == {1: 1}


def test_labels_of_a_slower_partition_are_not_passed_over(warehouse: Warehouse, spec: ModelSpec) -> None:
    warehouse.observe(20)
    history = History(warehouse.client, spec)
    warehouse.label(range(10), joined_ms=100_000, partition=0)
    assert len(labelled(history, 200_000)) == 10
    warehouse.label(range(10, 20), joined_ms=50_000, partition=1)
    assert len(labelled(history, 200_000)) == 20


def test_a_label_whose_observation_is_not_there_yet_comes_with_the_next_order(
    warehouse: Warehouse, spec: ModelSpec
) -> None:
    warehouse.observe(1)
    warehouse.ids.append(uuid.uuid4())
    warehouse.label(range(2), joined_ms=50_000)
    history = History(warehouse.client, spec)
    assert labelled(history, 60_000) == {0: 1}
    warehouse.insert_observations(range(1, 2))
    assert labelled(history, 60_000) == {0: 1, 1: 1}


def test_shadow_outcomes_repeats_and_unknown_classes_do_not_count(
    warehouse: Warehouse, spec: ModelSpec
) -> None:
    warehouse.observe(6)
    warehouse.label(range(2), joined_ms=50_000)
    warehouse.label(range(2), joined_ms=50_000)
    warehouse.label(range(2, 4), joined_ms=50_000, role="shadow")
    warehouse.label(range(4, 6), joined_ms=50_000, truth="gone")
    assert labelled(History(warehouse.client, spec), 60_000) == {0: 1, 1: 1}


def test_only_the_newest_rows_are_kept_in_sight(warehouse: Warehouse, spec: ModelSpec) -> None:
    warehouse.observe(30)
    warehouse.label(range(30), joined_ms=50_000)
    history = History(warehouse.client, spec)
    assert sorted(labelled(history, 60_000, history_rows=10)) == list(range(20, 30))
    warehouse.observe(5)
    warehouse.label(range(30, 35), joined_ms=60_000)
    assert sorted(labelled(history, 70_000, history_rows=10)) == list(range(25, 35))


def test_an_update_draws_recent_rows_and_replays_all_that_is_older(
    warehouse: Warehouse, spec: ModelSpec
) -> None:
    warehouse.observe(100)
    warehouse.label(range(100), joined_ms=200_000)
    file = rows(100)
    history = History(warehouse.client, spec)
    found = history.labelled(START_MS + 300_000)
    drawn, again, other = (update_rows(found, file, 20, 60, seed) for seed in (1, 1, 2))
    assert drawn.recent.columns.numbers[:, 0].tolist() == list(range(80, 100))
    from_file = int((drawn.replay.labels["joined_ms"] == 0).sum())
    assert len(drawn.replay) == 60
    assert 15 < from_file < 50  # 100 of the 180 older rows are the file's: 33 expected
    assert not set(drawn.replay.columns.numbers[:, 0]) & set(drawn.recent.columns.numbers[:, 0])
    np.testing.assert_array_equal(drawn.replay.columns.numbers, again.replay.columns.numbers)
    assert drawn.replay.columns.numbers[:, 0].tolist() != other.replay.columns.numbers[:, 0].tolist()
    # A history that was read in another order draws the same rows.
    fresh = update_rows(History(warehouse.client, spec).labelled(START_MS + 300_000), file, 20, 60, 1)
    np.testing.assert_array_equal(drawn.replay.columns.numbers, fresh.replay.columns.numbers)


def test_a_major_takes_the_newest_rows_and_fills_up_from_the_file(
    warehouse: Warehouse, spec: ModelSpec
) -> None:
    warehouse.observe(10)
    warehouse.label(range(10), joined_ms=50_000)
    found = History(warehouse.client, spec).labelled(START_MS + 60_000)
    file = rows(50)
    assert newest_rows(found, file, 4).columns.numbers[:, 0].tolist() == [6, 7, 8, 9]
    filled = newest_rows(found, file, 15)
    np.testing.assert_array_equal(filled.columns.numbers[:5], file.columns.numbers[45:])
    assert filled.columns.numbers[5:, 0].tolist() == list(range(10))


def test_newest_breaks_ties_by_prediction_id() -> None:
    labels = np.zeros(6, LABELS)
    labels["requested_ms"] = [5, 5, 5, 5, 9, 1]
    labels["id_low"] = [3, 1, 4, 2, 0, 0]
    found = newest(labels, np.arange(6), 3)
    assert found[by_age(labels[found])].tolist() == [0, 2, 4]


def test_no_history_and_no_file_are_no_rows(warehouse: Warehouse, spec: ModelSpec) -> None:
    nothing = Rows.from_file(no_columns(spec), np.zeros(0))
    drawn = update_rows(History(warehouse.client, spec).labelled(START_MS), nothing, 20, 20, 1)
    assert (len(drawn.recent), len(drawn.replay)) == (0, 0)

"""What benchmarks compute from what they saw, without services."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from benchmarks import BENCHMARKS, page
from benchmarks.histogram import Histogram, sum_percentile_ms
from benchmarks.live import Sample, grows
from benchmarks.load import FORMATS, bodies
from benchmarks.observed import Observed
from benchmarks.pace import Pace
from benchmarks.report import Line, Result, as_object, median, ratio
from benchmarks.scale import REPLICAS, UTILISATION, cluster
from benchmarks.subject import SUBJECTS
from cli.bench import bench
from schemas.arrow import OBSERVATIONS, decode_batch
from schemas.spec import ModelSpec, decode_spec


def spec_of(name: str) -> ModelSpec:
    return decode_spec(SUBJECTS[name].spec_toml(), name)


def test_percentiles_are_within_one_per_cent_of_the_exact_ones() -> None:
    latencies = np.random.default_rng(1).lognormal(1.0, 1.0, 50_000)
    histogram = Histogram()
    histogram.add(latencies[:20_000])
    histogram.add(latencies[20_000:])
    assert histogram.count == 50_000
    assert histogram.largest_ms == latencies.max()
    for percent in (1, 50, 99, 99.9):
        assert histogram.percentile_ms(percent) == pytest.approx(
            float(np.percentile(latencies, percent)), rel=0.012
        )


def test_a_percentile_is_never_more_than_the_largest_and_of_nothing_an_error() -> None:
    histogram = Histogram()
    with pytest.raises(ValueError, match="empty"):
        histogram.percentile_ms(50)
    histogram.add([0.0, 7.0])
    assert histogram.percentile_ms(100) == 7.0


def test_the_percentile_of_a_sum_is_not_the_sum_of_percentiles() -> None:
    rng = np.random.default_rng(2)
    parts = [rng.exponential(5.0, 50_000), rng.exponential(5.0, 50_000)]
    histograms = []
    for part in parts:
        histograms.append(Histogram())
        histograms[-1].add(part)
    exact = float(np.percentile(parts[0] + parts[1], 99))
    found = sum_percentile_ms(histograms, 99)
    assert found == pytest.approx(exact, rel=0.03)
    assert found < sum(each.percentile_ms(99) for each in histograms)


def samples(lag_per_sec: float, burst: int = 0) -> list[Sample]:
    found = []
    for i in range(60):
        sec = i / 5
        lag = int(1000 + lag_per_sec * sec + burst * (i % 3))
        found.append(Sample(sec, int(10_000 * sec) + lag, int(10_000 * sec), int(10_000 * sec)))
    return found


def test_a_lag_that_rises_and_falls_with_commits_does_not_grow_and_one_that_climbs_does() -> None:
    assert not grows(samples(0, burst=2000), 10_000)
    assert grows(samples(3000), 10_000)
    assert grows(samples(0)[:2], 10_000), "of a step with nothing to see it is not said that it held"


def test_ratios_pair_the_turns() -> None:
    assert ratio([10.0, 40.0], [5.0, 10.0]) == 3.0
    assert ratio([10.0], []) is None
    assert median([]) is None


def test_the_cluster_has_room_and_counts_each_copy_of_a_record() -> None:
    found = cluster({"gateway": 3.0, "kafka": 0.5}, per_sec=1_000_000)
    assert found["cores"]["gateway"] == 3 / UTILISATION
    assert found["cores"]["kafka"] == np.ceil(0.5 * REPLICAS / UTILISATION)


@pytest.mark.parametrize("name", ["floats_8", "text_4k"])
@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_seed_gives_the_same_requests_and_all_formats_hold_the_features(
    name: str, kind: str
) -> None:
    spec = spec_of(name)
    pool, again, other = (bodies(spec, kind, seed) for seed in (3, 3, 4))  # type: ignore[arg-type]  # one of FORMATS
    assert list(pool.values) == list(again.values) != list(other.values)
    first = pool.values[0]
    if kind == "json":
        names = set(json.loads(first))
    elif kind == "msgpack":
        names = set(msgspec.msgpack.decode(first))
    else:
        batch = decode_batch(first)
        assert batch.num_rows == pool.rows_per_record > 1
        names = set(batch.schema.names)
    assert names == set(spec.features)


def test_what_a_paced_producer_is_told_can_be_read_by_it() -> None:
    pool = bodies(spec_of("floats_8"), "json", 0)
    pace = Pace("requests.x", 1000.0, 2.0, list(pool.values), list(pool.headers))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(pace), type=Pace) == pace


def test_observations_made_by_hand_fit_the_schema_and_never_repeat_an_id() -> None:
    made = Observed(spec_of("floats_8"), "1.0", 0)
    batches = [made.batch(100), made.batch(100)]
    assert all(batch.schema == OBSERVATIONS for batch in batches)
    assert all(batch.validate(full=True) is None for batch in batches)
    ids = pa.chunked_array([batch["prediction_id"] for batch in batches]).to_pylist()
    assert len(set(ids)) == 200


def test_the_page_shows_every_benchmark_and_says_what_failed(tmp_path: Path) -> None:
    result = Result(
        "throughput",
        {"events_per_s": 5.0, "ratio_to_mlserver": None, "not_measured": {"MLServer": "no wheel"}},
        [Line("gateway", [1.0, 3.0, 2.0], "rows/s"), Line("MLServer", [], "rows/s")],
        seed=0,
        turns=3,
    )
    html = page.write({"throughput": as_object(result)}, {"live": "it broke"}, tmp_path).read_text()
    assert "no wheel" in html
    assert "it broke" in html
    assert html.count("data:image/png;base64,") == 1
    assert json.loads((tmp_path / page.RESULTS).read_text())["throughput"]["measured"]["gateway"] == [1, 3, 2]


def test_every_benchmark_in_the_table_is_a_command_with_json() -> None:
    context = bench.make_context("bench", ["--help"], resilient_parsing=True)
    for name in BENCHMARKS:
        command = bench.get_command(context, name)
        assert command is not None
        assert "--json" in [option for parameter in command.params for option in parameter.opts], name

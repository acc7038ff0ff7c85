"""What benchmarks compute from what they saw, without services."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from benchmarks import BENCHMARKS, everything, page
from benchmarks.goals import GOALS, compare
from benchmarks.histogram import Histogram, sum_percentile_ms
from benchmarks.latency import ADDED_PERCENTS
from benchmarks.live import GROWTH_SHARE, LEAST_SHARE, Point, Step, judged, search
from benchmarks.load import FORMATS, bodies
from benchmarks.observed import Observed
from benchmarks.peering import PEERS
from benchmarks.report import Line, Result, as_object, in_turns, median, ratio, show
from benchmarks.scale import LABELS_PER_PREDICTION, REPLICAS, UTILISATION, cluster, cpu_us_per_prediction
from benchmarks.serving import Turns
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
    assert histogram.percentile_ms(100) == latencies.max()
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


def step(sent_per_sec: float, lag_per_sec: float = 0, burst: int = 0, asking_sec: float = 0.0) -> Step:
    """12 seconds of a step at 10,000/s, looked at 5 times a second; to ask what is visible takes `asking_sec` more each second."""
    sent, reached = [], []
    for i in range(60):
        sec = i / 5
        late_sec = sec + asking_sec * sec
        lag = 1000 + lag_per_sec * sec + burst * (i % 3)
        reached.append(Point(sec, int(sent_per_sec * sec - lag)))
        sent.append(Point(late_sec, int(sent_per_sec * late_sec)))
    return judged(10_000, sent=sent, answered=reached, visible=reached)


def test_a_lag_that_rises_and_falls_with_commits_does_not_grow_and_one_that_climbs_does() -> None:
    assert step(10_000, burst=2000).holds
    growing = step(10_000, lag_per_sec=1000)
    assert (growing.verdict, round(growing.visible_per_sec)) == ("lag grows", 9000)
    assert not step(10_000, lag_per_sec=1.1 * GROWTH_SHARE * 10_000).holds
    assert step(10_000, lag_per_sec=0.9 * GROWTH_SHARE * 10_000).holds, "the share alone decides"


def test_a_question_that_takes_longer_and_longer_makes_no_lag() -> None:
    found = step(10_000, asking_sec=0.1)
    assert found.holds
    assert (found.sent_per_sec, found.lag_rows) == (10_000, 1000)


def test_a_rate_that_the_producer_did_not_keep_has_not_been_shown_to_hold() -> None:
    found = step(9000)
    assert (found.verdict, found.sent_per_sec) == ("the producer is too slow", 9000)


@pytest.mark.parametrize(
    ("highest", "tried", "best"),
    [
        (2500, [1000, 1500, 2250, 3375, 2812.5, 2531.25], 2250),
        (450, [1000, 1000 / 1.5, 1000 / 2.25], 1000 / 2.25),
    ],
)
def test_the_search_goes_up_or_down_until_it_has_both_and_then_halves(
    highest: float, tried: list[float], best: float
) -> None:
    rates: list[float] = []

    def holds(rate: float) -> bool:
        rates.append(rate)
        return rate <= highest

    search(holds, 1000, halvings=2)
    assert rates[: len(tried)] == pytest.approx(tried)
    assert len(rates) == len(set(rates))
    assert max(rate for rate in rates if rate <= highest) == pytest.approx(best)


def test_a_search_that_nothing_satisfies_ends() -> None:
    rates: list[float] = []

    def never(rate: float) -> bool:
        rates.append(rate)
        return False

    search(never, 1000, halvings=2)
    assert min(rates) >= 1000 * LEAST_SHARE


def test_ratios_are_of_the_same_turn_and_a_turn_in_which_one_failed_has_none() -> None:
    ours, theirs = {1: 10.0, 2: 40.0, 3: 90.0}, {2: 10.0, 3: 30.0}
    assert ratio(in_turns(ours, theirs)) == 3.5
    assert ratio([]) is None
    assert median([]) is None


def test_the_cluster_has_room_and_counts_each_copy_of_a_record() -> None:
    found = cluster({"gateway": 3.0, "kafka": 0.5}, per_sec=1_000_000)
    assert found["cores"]["gateway"] == 3 / UTILISATION
    assert found["cores"]["kafka"] == np.ceil(0.5 * REPLICAS / UTILISATION)


def test_a_prediction_costs_its_request_taken_its_way_through_all_stages_and_its_share_of_a_label() -> None:
    found = Turns()
    found.cpu_us["gateway: gateway"] = {1: 99.0}  # alone: no part of the sum
    found.cpu_us["end to end: gateway"] = {1: 4.0, 2: 6.0}
    found.cpu_us["end to end: kafka"] = {1: 1.0, 2: 1.0}
    found.cpu_us["taking the requests: kafka"] = {1: 0.5, 2: 0.5}
    spent = cpu_us_per_prediction(found, {"labels": 40.0, "kafka": 10.0})
    share = LABELS_PER_PREDICTION
    assert spent == {"gateway": 5.0, "kafka": 1.5 + share * 10, "labels": share * 40}


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


def test_the_paced_producer_does_not_wait_for_torch() -> None:
    code = "import sys, benchmarks.pace; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_observations_made_by_hand_fit_the_schema_and_never_repeat_an_id() -> None:
    made = Observed(spec_of("floats_8"), "1.0", 0)
    batches = [made.batch(100), made.batch(100)]
    assert all(batch.schema == OBSERVATIONS for batch in batches)
    assert all(batch.validate(full=True) is None for batch in batches)
    ids = pa.chunked_array([batch["prediction_id"] for batch in batches]).to_pylist()
    assert len(set(ids)) == 200


def test_the_page_shows_every_benchmark_and_says_what_failed(tmp_path: Path) -> None:
    result = Result(
        "memory",
        {"gateway_mb_max": 301.0, "ratio_to_mlserver": None, "not_measured": {"MLServer": "no wheel"}},
        [Line("gateway", [1.0, 3.0, 2.0], "rows/s"), Line("MLServer", [], "rows/s")],
        seed=0,
        turns=3,
    )
    html = page.write({"memory": as_object(result)}, {"live": "it broke"}, tmp_path).read_text()
    assert "no wheel" in html
    assert "it broke" in html
    assert "asked at most 300" in html
    assert html.count("data:image/png;base64,") == 1
    assert json.loads((tmp_path / page.RESULTS).read_text())["memory"]["measured"]["gateway"] == [1, 3, 2]


def test_one_benchmark_that_breaks_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(quick: bool, seed: int) -> Result:
        raise RuntimeError("no such thing")

    def whole(quick: bool, seed: int) -> Result:
        return Result("whole", {"events_per_s": 5.0}, [Line("gateway", [1.0], "rows/s")])

    monkeypatch.setattr(everything, "ALL", {"broken": broken, "whole": whole})
    result = CliRunner().invoke(everything.command, ["--folder", str(tmp_path), "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout.splitlines()[-1])
    assert (list(found["results"]), found["failed"]) == (["whole"], {"broken": "RuntimeError: no such thing"})
    assert "no such thing" in (tmp_path / page.PAGE).read_text()


def test_a_benchmark_that_misses_a_goal_says_so_and_fails_and_a_first_look_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = Result("live", {"live_events_per_s": 79_999.0}, [])
    with pytest.raises(SystemExit) as end:
        show(slow, as_json=True)
    assert end.value.code == 1
    told = capsys.readouterr()
    assert "MISSED: live_events_per_s = 79,999, asked at least 80,000" in told.err
    goals = json.loads(told.out.splitlines()[-1])["goals"]
    assert [(goal["figure"], goal["met"]) for goal in goals] == [("live_events_per_s", False)]
    show(slow._replace(quick=True), as_json=False)
    assert "MISSED" in capsys.readouterr().out
    show(Result("live", {"live_events_per_s": 80_000.0}, []), as_json=False)
    assert "met: live_events_per_s" in capsys.readouterr().out


def test_a_goal_binds_the_runs_that_it_names_and_what_was_measured() -> None:
    figures = dict.fromkeys([goal.figure for goal in GOALS["throughput"]])
    figures |= {"gateway_events_per_s": 169_000.0, "subject": "floats_8", "format": "json"}
    assert compare("throughput", figures | {"gateways": 1}) == []
    assert [goal.met for goal in compare("throughput", figures | {"gateways": 2})] == [False]
    wide = figures | {"subject": "floats_784", "gateways": 1}
    assert [(goal.value, goal.met) for goal in compare("throughput", wide)] == [(20_000, True)]


def test_every_goal_is_of_a_figure_of_its_benchmark() -> None:
    computed = {
        "throughput": {f"ratio_to_{peer.key}" for peer in PEERS},
        "latency": {f"added_p{percent}_ms" for percent in ADDED_PERCENTS},
    }
    for name, goals in GOALS.items():
        source = Path(sys.modules[f"benchmarks.{name}"].__file__ or "").read_text()
        for figure in {part for goal in goals for part in (goal.figure, *goal.where)}:
            assert f'"{figure}"' in source or figure in computed.get(name, ()), (name, figure)


def test_every_benchmark_in_the_table_is_a_command_with_json() -> None:
    context = bench.make_context("bench", ["--help"], resilient_parsing=True)
    for name in BENCHMARKS:
        command = bench.get_command(context, name)
        assert command is not None
        assert "--json" in [option for parameter in command.params for option in parameter.opts], name

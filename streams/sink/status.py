"""What the sink says of itself: a stage per partition in `/health`, and gauges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from confluent_kafka import Consumer, TopicPartition

from runtime.service import Health, Stage
from runtime.telemetry import gauge
from streams.sink.partition import Partition


def report(health: Health, consumer: Consumer, partitions: Iterable[Partition], now_ms: int) -> None:
    """Say how each partition is."""
    lag_records: defaultdict[str, int] = defaultdict(int)
    paused = halted = 0
    for partition in partitions:
        stage = stage_of(partition, _high(consumer, partition), now_ms)
        health.stage(f"{partition.topic}:{partition.number}", stage)
        lag_records[partition.topic] += stage.lag_records
        paused += stage.state == "paused"
        halted += stage.state == "halted"
    for topic, lag in lag_records.items():
        gauge("tidemill_lag_records").labels("sink", topic).set(lag)
    gauge("tidemill_paused_partitions").labels("sink").set(paused)
    gauge("tidemill_halted_partitions").labels("sink").set(halted)


def stage_of(partition: Partition, high: int, now_ms: int) -> Stage:
    """One partition's stage; `high` is the end of its log. A transaction's markers count until the end has been seen."""
    lag = 0 if partition.settled else max(high - partition.committed, 0)
    oldest_ms = partition.oldest_ms
    age_sec = 0.0 if oldest_ms is None else max(now_ms - oldest_ms, 0) / 1000
    if partition.halted:
        return Stage(lag_records=lag, oldest_age_sec=age_sec, state="halted", note=partition.halted)
    if partition.paused:
        return Stage(lag_records=lag, oldest_age_sec=age_sec, state="paused", note=partition.note)
    return Stage(lag_records=lag, oldest_age_sec=age_sec)


def _high(consumer: Consumer, partition: Partition) -> int:
    """The end of the log as the last fetch saw it; 0 before the first."""
    found = consumer.get_watermark_offsets(TopicPartition(partition.topic, partition.number), cached=True)
    return max(int(found[1]), 0) if found is not None else 0

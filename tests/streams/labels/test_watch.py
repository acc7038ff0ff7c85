"""Labels follow all observations; what lies among them and is none is passed over."""

from __future__ import annotations

from unittest.mock import Mock

import pyarrow as pa
import pytest
from confluent_kafka import Message

from runtime.reader import TopicReader
from runtime.settings import Settings
from schemas.arrow import encode_batch
from streams.labels import watch as watch_module
from streams.labels.watch import Watch


def test_a_record_that_no_part_of_ours_wrote_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = [b"{}", encode_batch(pa.record_batch({"model": ["fraud"]})), None]
    reader = Mock(spec=TopicReader)
    reader.take.return_value = [
        Message(topic="observations", partition=1, offset=offset, value=value)
        for offset, value in enumerate(values)
    ]
    monkeypatch.setattr(watch_module, "TopicReader", lambda *_, **__: reader)
    watch = Watch(Settings())
    watch.begin({("observations", 1): 1})
    assert watch.read() == []
    assert "observations:1:0" not in caplog.text, "it lies before the start"
    assert "observations:1:1 is passed over" in caplog.text
    assert "observations:1:2 is passed over" in caplog.text

"""Tracing costs nothing where no collector is configured."""

from __future__ import annotations

import subprocess
import sys

import pytest

from runtime.settings import Settings
from runtime.telemetry import current_traceparent, span, trace_id, tracing

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_without_an_endpoint_there_is_no_tracer_and_a_span_is_nothing() -> None:
    tracer = tracing(Settings(), "test")
    assert tracer is None
    with span(tracer, "work", TRACEPARENT, rows=1) as current:
        assert current is None
        assert current_traceparent(current) == []


def test_without_an_endpoint_no_exporter_is_even_imported() -> None:
    program = """
import sys
from runtime.settings import Settings
from runtime.telemetry import span, tracing
import inference.gateway, streams.sink.loop, tidemill
with span(tracing(Settings(), "test"), "work"):
    pass
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("header", ["", "00", "00-zz-b7ad6b7169203331-01", "no traceparent at all"])
def test_what_is_no_traceparent_has_no_trace_id(header: str) -> None:
    assert trace_id(header) == ""
    assert trace_id(TRACEPARENT) == "0af7651916cd43dd8448eb211c80319c"

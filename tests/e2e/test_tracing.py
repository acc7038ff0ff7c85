"""One request, one trace: producer, gateway, Triton, sink."""

from __future__ import annotations

import msgspec
import pytest

from tests.e2e.collector import Collector, Span
from tests.e2e.conftest import QUICK_SPANS, Workshop
from tests.waiting import until
from tidemill import Client

pytestmark = pytest.mark.stack
HOPS = {
    "produce": "tidemill-client",
    "gateway.batch": "tidemill-gateway",
    "triton.infer": "tidemill-gateway",
    "sink insert": "tidemill-sink",
}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def sent_to(span: Span, topic: str) -> bool:
    return span.name == "produce" and span.attributes["topic"] == topic


def test_a_request_is_followed_from_its_producer_into_clickhouse(
    workshop: Workshop, served: str, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in QUICK_SPANS.items():
        monkeypatch.setenv(name, value)
    settings = msgspec.structs.replace(workshop.settings, otlp_endpoint=collector.url)
    with Client(settings) as client:
        answer = client.ask(served, {"x": 0.5, "y": 0.5})
    assert answer.label
    sent = until(
        lambda: next((span for span in list(collector.spans) if sent_to(span, f"requests.{served}")), None),
        "the producer's span",
    )
    trace = until(
        lambda: found if (found := collector.trace(sent.trace_id)).keys() >= HOPS.keys() else None,
        "a span of every hop",
    )
    assert {name: trace[name].service for name in HOPS} == HOPS
    assert trace["produce"].parent_id == ""
    assert trace["gateway.batch"].parent_id == trace["produce"].span_id
    assert trace["triton.infer"].parent_id == trace["gateway.batch"].span_id
    assert trace["sink insert"].parent_id == trace["gateway.batch"].span_id
    assert trace["sink insert"].attributes["table"] == "internal.observations"


def test_a_callers_own_trace_goes_on_and_a_batch_of_several_is_linked_to_each(
    workshop: Workshop, served: str, collector: Collector
) -> None:
    """A client that traces by itself hands its `traceparent` over; the gateway's span of many requests cannot have many parents."""
    others = [TRACEPARENT.replace("b7ad6b71692033", f"b7ad6b716920{number:02d}") for number in range(10, 40)]
    with Client(workshop.settings) as client:
        for parent in [TRACEPARENT, *others]:
            client.produce(served, {"x": 0.5, "y": 0.5}, key="one", traceparent=parent)
    wanted = {parent.split("-")[2] for parent in [TRACEPARENT, *others]}

    def batches() -> list[Span]:
        return [span for span in list(collector.spans) if span.name == "gateway.batch"]

    def followed() -> bool:
        return wanted <= {found for span in batches() for found in span.links | {span.parent_id}}

    until(followed, "every request is a parent or a link of its batch")
    assert any(len(span.links & wanted) > 1 and not span.parent_id for span in batches())

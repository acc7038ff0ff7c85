"""Tracing across the Kafka hops by W3C `traceparent`, and the list of all Prometheus metrics.

Without an OTLP endpoint nothing is recorded and nothing is imported: `tracing` answers None, and callers skip the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from runtime.headers import Headers, text
from runtime.settings import Settings
from schemas.requests import TRACEPARENT

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

M = TypeVar("M", Counter, Gauge, Histogram)


def tracing(settings: Settings, service: str) -> Tracer | None:
    """A tracer that exports to the configured OTLP endpoint, or None if there is none."""
    if not settings.otlp_endpoint:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    provider = TracerProvider(
        resource=Resource.create(
            {"service.name": f"tidemill-{service}", "service.instance.id": str(settings.slot)}
        ),
        sampler=ParentBasedTraceIdRatio(settings.trace_ratio),
    )
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otlp_endpoint.rstrip("/") + "/v1/traces"))
    )
    return provider.get_tracer("tidemill")


def traceparent(headers: Headers) -> str:
    """The `traceparent` among a record's headers, "" if there is none."""
    return text(headers, TRACEPARENT)


def trace_id(header: str) -> str:
    """The 32 hex digits of the trace id in a `traceparent`, "" if it is not one."""
    parts = header.split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else ""


@contextmanager
def span(
    tracer: Tracer | None,
    name: str,
    parent: str = "",
    links: list[str] | None = None,
    **attributes: str | int | float,
) -> Iterator[Span | None]:
    """A span under the `traceparent` `parent`, linked to the others in `links`; does nothing without a tracer."""
    if tracer is None:
        yield None
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    def context(header: str) -> Context:
        return TraceContextTextMapPropagator().extract({TRACEPARENT: header})

    contexts = [trace.get_current_span(context(link)).get_span_context() for link in links or []]
    with tracer.start_as_current_span(
        name,
        context=context(parent) if parent else None,
        links=[trace.Link(linked) for linked in contexts if linked.is_valid],
        attributes=attributes,
    ) as current:
        yield current


def current_traceparent(current: Span | None) -> Headers:
    """Headers that carry `current` to the next hop; empty without one."""
    if current is None:
        return []
    context = current.get_span_context()
    value = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
    return [(TRACEPARENT, value.encode())]


class Metric(NamedTuple):
    """One Prometheus metric: its name, kind, meaning and labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric("tidemill_requests_total", "counter", "Request rows committed", ("model", "status")),
        Metric("tidemill_rejections_total", "counter", "Rejected request rows", ("model", "reason")),
        Metric("tidemill_inferences_total", "counter", "Triton calls", ("model", "version", "result")),
        Metric("tidemill_inference_seconds", "histogram", "Duration of one Triton call", ("model",)),
        Metric("tidemill_batch_rows", "histogram", "Rows in a micro-batch", ("model",)),
        Metric("tidemill_transactions_total", "counter", "Kafka transactions", ("stage", "result")),
        Metric("tidemill_commit_seconds", "histogram", "Duration of a transaction's commit", ("stage",)),
        Metric("tidemill_lag_records", "gauge", "Readable records not yet committed", ("stage", "topic")),
        Metric(
            "tidemill_paused_partitions",
            "gauge",
            "Partitions paused because a dependency is away",
            ("stage",),
        ),
        Metric("tidemill_halted_partitions", "gauge", "Partitions halted until a person looks", ("stage",)),
        Metric("tidemill_sink_rows_total", "counter", "Rows inserted into ClickHouse", ("table",)),
        Metric("tidemill_sink_insert_seconds", "histogram", "Duration of one insert", ("table",)),
        Metric(
            "tidemill_sink_visible_seconds",
            "histogram",
            "Age of an inserted range's oldest record when its rows became visible",
            ("table",),
        ),
        Metric("tidemill_feedback_total", "counter", "Feedback records", ("model", "result")),
        Metric("tidemill_labels_pending", "gauge", "Feedback that waits for its prediction", ("model",)),
        Metric(
            "tidemill_observed_rows_total", "counter", "Rows counted by a stream processor", ("processor",)
        ),
        Metric("tidemill_alerts_total", "counter", "Alerts raised", ("model", "kind")),
        Metric("tidemill_trainings_total", "counter", "Trainings ended", ("model", "kind", "result")),
        Metric("tidemill_training_seconds", "histogram", "Duration of one training", ("kind",)),
        Metric("tidemill_decisions_total", "counter", "Rollout decisions", ("model", "action")),
        Metric("tidemill_route_revision", "gauge", "Revision of the route table in use", ("model",)),
    )
}
_KINDS: Final = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
_made: dict[str, Counter | Gauge | Histogram] = {}


def counter(name: str) -> Counter:
    """The counter of that name in `METRICS`."""
    return _metric(name, Counter)


def gauge(name: str) -> Gauge:
    """The gauge of that name in `METRICS`."""
    return _metric(name, Gauge)


def histogram(name: str) -> Histogram:
    """The histogram of that name in `METRICS`."""
    return _metric(name, Histogram)


def _metric(name: str, kind: type[M]) -> M:
    if name not in _made:
        metric = METRICS[name]
        _made[name] = _KINDS[metric.kind](metric.name, metric.meaning, metric.labels)
    made = _made[name]
    if not isinstance(made, kind):
        raise TypeError(f"{name} is a {METRICS[name].kind}")
    return made

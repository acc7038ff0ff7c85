"""The AsyncAPI 3 document and `docs/events.md`, generated from the topic table and the event structs.

`python -m schemas.asyncapi` writes both; a test holds them against what would be written now.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa

from schemas import dead_letters
from schemas.arrow import OBSERVATION_COLUMNS, OUTCOME_COLUMNS, PREDICTION_COLUMNS, REPLAY_COLUMNS, Column
from schemas.events import (
    Alert,
    Candidate,
    Command,
    DeadLetterDecision,
    DriftEvidence,
    InputPartial,
    LossPartial,
    MetricPartial,
    Retrain,
    Rollout,
    RouteTable,
    WindowMetrics,
)
from schemas.feedback import Feedback
from schemas.formats import (
    ARROW_BYTES,
    ARROW_ROWS,
    ARROW_TYPE,
    ARROW_UNPACKED_BYTES,
    CONTENT_TYPES,
    MSGPACK_TYPE,
)
from schemas.requests import Envelope, Prediction, Rejected
from schemas.topics import (  # fmt: skip
    ALERTS,
    ARROW,
    CANDIDATES,
    DAY_MS,
    DEAD_LETTER_DECISIONS,
    DRIFT,
    FEEDBACK,
    METRICS,
    OBSERVATIONS,
    OUTCOMES,
    PARTIALS,
    PREDICTIONS,
    REPLAYS,
    REQUESTS,
    RETRAINS,
    ROLLOUTS,
    ROUTES,
    TOPICS,
    Topic,
)
from schemas.topics import COMMANDS as COMMANDS_TOPIC

JSON_FILE: Final = Path("docs/asyncapi.json")
PAGE_FILE: Final = Path("docs/events.md")

MESSAGES: Final[dict[str, tuple[type[msgspec.Struct], ...]]] = {
    PREDICTIONS.name: (Prediction,),
    FEEDBACK.name: (Feedback,),
    PARTIALS.name: (MetricPartial, InputPartial, LossPartial),
    METRICS.name: (WindowMetrics,),
    DRIFT.name: (DriftEvidence,),
    ALERTS.name: (Alert,),
    COMMANDS_TOPIC.name: (Command,),
    RETRAINS.name: (Retrain,),
    CANDIDATES.name: (Candidate,),
    ROLLOUTS.name: (Rollout,),
    ROUTES.name: (RouteTable,),
    DEAD_LETTER_DECISIONS.name: (DeadLetterDecision,),
}
BATCHES: Final[dict[str, tuple[Column, ...]]] = {
    OBSERVATIONS.name: OBSERVATION_COLUMNS,
    REPLAYS.name: REPLAY_COLUMNS,
    OUTCOMES.name: OUTCOME_COLUMNS,
    PREDICTIONS.name: PREDICTION_COLUMNS,
}
_FORMATS: Final = (
    "## `requests.<model>`: formats",
    "",
    "The content type says the format, and the answer comes in the same one:",
    "",
    "| content type | rows | value |",
    "|---|---|---|",
    *(
        f"| {', '.join(f'`{kind}`' for kind, name in CONTENT_TYPES.items() if name == wanted)} | {rows} | {value} |"
        for wanted, rows, value in (
            ("json", "1", "a bare object of features, or an envelope; also without a content type"),
            ("msgpack", "1", "the same as a MessagePack map; a NaN is missing where a number may be missing"),
            (
                "arrow",
                f"1 to {ARROW_ROWS:,}",
                f"an Arrow IPC stream, a column a feature; at most {ARROW_BYTES >> 20} MiB, unpacked {ARROW_UNPACKED_BYTES >> 20}",
            ),
        )
    ),
    "",
    "An Arrow request holds fewer rows where there are more than 64 classes. The record's key is the entity of all its rows. Each row has its own answer, "
    "prediction id and observation; the dead letter holds the record once and names the first bad row. A record that cannot be read, or is too "
    "large, is one row. Columns may stand in any order:",
    "",
    "| feature | Arrow types |",
    "|---|---|",
    "| float | integers and floats of any width |",
    "| int | the same; each value must be whole |",
    "| bool | bool |",
    "| category, text | string, large_string, string_view, also dictionary-encoded |",
    "| `request_id` | the same, optional: the row's own id, at most 200 characters |",
    "",
    "Nulls, NaN in a number that may be missing, columns of type null and columns that are left out are missing values. A column that no feature has, "
    "or of another type, refuses all rows of the record; a value that cannot be served refuses its row.",
    "",
)
_REF: Final = "#/components/schemas/{name}"
_HEADERS: Final = {
    "type": "object",
    "properties": {
        "content-type": {
            "type": "string",
            "description": "Media type of the value; application/json if it is missing",
        },
        "traceparent": {"type": "string", "description": "W3C trace context, kept across every hop"},
        "ce_id": {
            "type": "string",
            "description": "CloudEvents id; a request's id if its envelope names none",
        },
    },
}


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 document as plain data."""
    structs = [struct for kinds in MESSAGES.values() for struct in kinds]
    _, schemas = msgspec.json.schema_components([*structs, Rejected], ref_template=_REF)
    schemas["Request"] = _request_schema()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tidemill",
            "version": "1",
            "description": "What travels through Kafka. Fields are only ever added, always with a default.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in TOPICS},
        "operations": {key: value for topic in TOPICS for key, value in _operations(topic).items()},
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def page() -> str:
    """`docs/events.md`."""
    lines = [
        "# Events",
        "",
        "Generated by `python -m schemas.asyncapi` from `schemas/`; do not edit. The same as an AsyncAPI 3 document: [asyncapi.json](asyncapi.json).",
        "",
        "Fields are only ever added, always with a default. Any record may carry `traceparent` and CloudEvents attributes (binary mode).",
        "A request without `content-type` is taken for JSON, and a bare object of features is a request.",
        "",
        "## Topics",
        "",
        "| topic | key | value | written by | read by | partitions | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for topic in TOPICS:
        name = f"`{topic.for_model('<model>')}`" + (" 🔒" if topic.personal else "")
        readers = ", ".join(topic.read_by)
        lines.append(
            f"| {name} | {topic.key} | {topic.value} | {topic.written_by} | {readers} | {topic.partitions} | {_kept(topic)} |"
        )
    lines += ["", "🔒: may hold personal data; short retention, its own access list.", ""]
    lines += _FORMATS
    for name, kinds in MESSAGES.items():
        for struct in kinds:
            lines += _struct_section(name, struct)
    for name, columns in BATCHES.items():
        lines += [
            f"## `{name}`: {'the answer to an Arrow request, ' if name in MESSAGES else ''}one Arrow IPC stream with one record batch",
            "",
            "| column | Arrow | ClickHouse | meaning |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{c.name}` | {_arrow_name(c.arrow)} | {f'`{c.clickhouse}`' if c.clickhouse else '–'} | {c.meaning} |"
            for c in columns
        ]
        lines.append("")
    lines += [
        "## `dead-letters`: headers",
        "",
        "The value, the key and all headers before these are the original's. These stand last, each once, in this order:",
        "",
        *(f"- `{name}`" for name in dead_letters.DEAD_LETTER_HEADERS),
        "",
        "## `redrives.<model>`, `feedback_redrives.<model>`: headers",
        "",
        "As above, but only those of the origin. On any other topic they mean nothing.",
        "",
        *(f"- `{name}`" for name in dead_letters.ORIGIN_HEADERS),
    ]
    return "\n".join(lines) + "\n"


def _struct_section(topic: str, struct: type[msgspec.Struct]) -> list[str]:
    schema = msgspec.json.schema_components([struct], ref_template="{name}")[1][struct.__name__]
    required = set(schema.get("required", ()))
    meaning = (struct.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    lines = [
        f"## `{topic}`: {struct.__name__}",
        "",
        " ".join(meaning.split()),
        "",
        "| field | type | required |",
        "|---|---|---|",
    ]
    for name, field in schema["properties"].items():
        default = f"default `{json.dumps(field.get('default'))}`"
        lines.append(f"| `{name}` | {_type_name(field)} | {'yes' if name in required else default} |")
    return [*lines, ""]


def _type_name(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type_name(part) for part in field["anyOf"])
    if "$ref" in field:
        return str(field["$ref"])
    if field.get("type") == "array":
        return f"list of {_type_name(field.get('items', {}))}"
    return str(field.get("type", "any"))


def _request_schema() -> dict[str, Any]:
    envelope = msgspec.json.schema_components([Envelope], ref_template=_REF)[1]["Envelope"]
    envelope["properties"]["features"] = {"type": "object", "description": "Feature → value"}
    features = {
        "type": "object",
        "description": "Feature → value, as the model's spec declares them",
        "not": {"required": ["features"]},
    }
    return {"description": "A bare object of features, or an envelope", "anyOf": [features, envelope]}


def _channel(topic: Topic) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "address": topic.for_model("{model}"),
        "title": topic.value,
        "messages": _messages(topic),
        "bindings": {
            "kafka": {
                "partitions": topic.partitions,
                "topicConfiguration": _topic_configuration(topic),
                "bindingVersion": "0.5.0",
            }
        },
    }
    if topic.per_model:
        channel["parameters"] = {"model": {"description": "The model's name, [a-z][a-z0-9_]*"}}
    return channel


def _topic_configuration(topic: Topic) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "cleanup.policy": ["compact" if topic.compacted else "delete"],
        "max.message.bytes": topic.max_message_bytes,
    }
    if not topic.compacted:
        configuration["retention.ms"] = -1 if topic.retention_ms is None else topic.retention_ms
    return configuration


def _messages(topic: Topic) -> dict[str, Any]:
    key = {"kafka": {"key": {"type": "string", "description": topic.key}, "bindingVersion": "0.5.0"}}
    common: dict[str, Any] = {"contentType": topic.media_type, "headers": _HEADERS, "bindings": key}
    found: dict[str, Any] = {
        struct.__name__: {**common, "payload": {"$ref": f"#/components/schemas/{struct.__name__}"}}
        for struct in MESSAGES.get(topic.name, ())
    }
    if topic.name == REQUESTS.name:
        request = {"$ref": "#/components/schemas/Request"}
        batch = {"type": "object", "description": "One row of the batch: feature → value, and request_id"}
        return {
            "Request": {**common, "payload": request},
            "RequestMessagePack": {**common, "contentType": MSGPACK_TYPE, "payload": request},
            "RequestBatch": {**common, "contentType": ARROW_TYPE, "payload": batch},
        }
    if topic.name in BATCHES:
        columns = {
            c.name: {"description": c.meaning, "x-arrow": _arrow_name(c.arrow)}
            | ({"x-clickhouse": c.clickhouse} if c.clickhouse else {})
            for c in BATCHES[topic.name]
        }
        payload = {"type": "object", "description": f"One row of the batch ({ARROW})", "properties": columns}
        found[f"{topic.name}Batch"] = {**common, "contentType": ARROW_TYPE, "payload": payload}
    return found or {"Bytes": {**common, "payload": {"description": topic.value}}}


def _operations(topic: Topic) -> dict[str, Any]:
    """What a client of Tidemill may do; the stages among themselves are no operations."""
    channel = {"$ref": f"#/channels/{topic.name}"}
    if topic.written_by == "people" or topic.written_by == "producers":
        return {f"send-{topic.name}": {"action": "send", "channel": channel, "summary": topic.value}}
    return {f"receive-{topic.name}": {"action": "receive", "channel": channel, "summary": topic.value}}


def _arrow_name(kind: pa.DataType) -> str:
    return str(kind).replace("item: ", "").replace(" not null", "")


def _kept(topic: Topic) -> str:
    if topic.compacted:
        return "compacted"
    return "for ever" if topic.retention_ms is None else f"{topic.retention_ms // DAY_MS} days"


def files() -> dict[Path, str]:
    """What is to stand in `docs/`."""
    return {
        JSON_FILE: json.dumps(document(), indent=1, ensure_ascii=False, sort_keys=False) + "\n",
        PAGE_FILE: page(),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")

"""One view per model in the database `models`: its predictions, labels and features under their own names."""

from __future__ import annotations

from schemas.spec import BoolFeature, FloatFeature, IntFeature, ModelSpec


def model_view(spec: ModelSpec) -> str:
    """`CREATE OR REPLACE VIEW models.<name>`: one row per live prediction, with its newest label if there is one."""
    columns: list[tuple[str, str, str, str]] = [
        ("prediction_id", "UUID", "p.prediction_id", "Deterministic id of the row"),
        ("requested_at", "DateTime64(3, 'UTC')", "p.requested_at", "Timestamp of the request"),
        ("entity", "String", "p.entity", "Key of the request"),
        ("request_id", "String", "p.request_id", "The producer's own id"),
        ("version", "LowCardinality(String)", "p.version", "Version that answered"),
        ("arm", "LowCardinality(String)", "p.arm", "Arm that answered"),
        ("label", "LowCardinality(String)", "p.label", "Predicted class"),
        ("score", "Float32", "p.score", "Probability of the predicted class, or the predicted value"),
        (
            "truth",
            "Nullable(String)",
            "if(o.revision_plus_one = 0, NULL, o.truth_text)",
            "Newest label, NULL while there is none",
        ),
        (
            "correct",
            "Nullable(UInt8)",
            "if(o.revision_plus_one = 0, NULL, o.correct)",
            "Whether the prediction was right",
        ),
    ]
    numbers, texts = 0, 0
    for name, feature in spec.features.items():
        if isinstance(feature, FloatFeature | IntFeature | BoolFeature):
            numbers += 1
            columns.append((name, "Float32", f"p.numbers[{numbers}]", f"Feature {name}, NaN if missing"))
        else:
            texts += 1
            columns.append((name, "String", f"p.texts[{texts}]", f"Feature {name}"))
    declared = ",\n".join(
        f"    `{name}` {kind} COMMENT {_quoted(meaning)}" for name, kind, _, meaning in columns
    )
    selected = ",\n".join(f"    {expression} AS `{name}`" for name, _, expression, _ in columns)
    return f"""CREATE OR REPLACE VIEW models.`{spec.name}` (
{declared}
) AS
SELECT
{selected}
FROM (SELECT * FROM default.predictions WHERE model = {_quoted(spec.name)} AND status = 'answered') AS p
LEFT JOIN (
    SELECT prediction_id, if(truth = '', toString(truth_value), toString(truth)) AS truth_text, correct, revision + 1 AS revision_plus_one
    FROM internal.outcomes FINAL
    WHERE model = {_quoted(spec.name)} AND role = 'live'
) AS o ON p.prediction_id = o.prediction_id
COMMENT {_quoted(spec.description or f"Predictions and labels of the model {spec.name}")}"""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"

"""The tensors between gateway and model: their names, types and shapes follow from the spec alone.

Inputs, in the order of `input_tensors`:

* `dense`, FP32 [rows, width]: numbers (standardised), then one-hot categories, in the spec's order; left out if the width is 0;
* per text feature `t`: `t_ids`, INT32 [n], the hashed n-grams of all rows one after the other, and `t_offsets`, INT32 [rows],
  where each row's n-grams begin (torch.nn.EmbeddingBag's own form, so that no text is padded).

Output: `scores`, FP32 [rows, outputs]: a probability per class, or a regression's value.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from schemas.spec import CategoryFeature, ModelSpec, Numeric, TextFeature

DENSE: Final = "dense"
SCORES: Final = "scores"
ARTIFACT_PARAMETER: Final = "artifact"
"""Request parameter that names the artifact that is to answer."""
UNLOAD_PARAMETER: Final = "unload"
"""Request parameter that names artifacts (comma-separated) which may be dropped from memory before the request is answered."""


class TensorSpec(NamedTuple):
    """One input tensor; -1 is a dimension that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class InputShape(NamedTuple):
    """What a model's module is constructed with."""

    dense: int
    """Width of the dense tensor, 0 if there is none."""
    texts: dict[str, int]
    """Text feature → number of buckets."""
    outputs: int
    """Width of the scores."""


def input_shape(spec: ModelSpec) -> InputShape:
    """The shapes that follow from `spec`."""
    dense = 0
    texts = {}
    for name, feature in spec.features.items():
        if isinstance(feature, TextFeature):
            texts[name] = feature.buckets
        elif isinstance(feature, CategoryFeature):
            dense += len(feature.values)
        elif isinstance(feature, Numeric):
            dense += 1
    return InputShape(dense, texts, spec.outputs)


def input_tensors(spec: ModelSpec) -> tuple[TensorSpec, ...]:
    """The input tensors of `spec`, in order."""
    shape = input_shape(spec)
    tensors = [TensorSpec(DENSE, "FP32", (-1, shape.dense))] if shape.dense else []
    for name in shape.texts:
        tensors += [TensorSpec(f"{name}_ids", "INT32", (-1,)), TensorSpec(f"{name}_offsets", "INT32", (-1,))]
    return tuple(tensors)

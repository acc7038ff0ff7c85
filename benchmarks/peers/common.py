"""What all peers share: where things are, how Triton is asked, what an answer looks like."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput

BOOTSTRAP: Final = os.environ["PEER_BOOTSTRAP"]
TRITON: Final = os.environ["PEER_TRITON"]
MODEL: Final = os.environ["PEER_MODEL"]
ARTIFACT: Final = os.environ["PEER_ARTIFACT"]
REQUESTS: Final = os.environ["PEER_REQUESTS"]
PREDICTIONS: Final = os.environ["PEER_PREDICTIONS"]
GROUP: Final = os.environ["PEER_GROUP"]
PARAMETERS: Final = {"artifact": ARTIFACT}
OUTPUTS: Final = [InferRequestedOutput("scores")]
CLASSES: Final = ("no", "yes")


def tensors(rows: Sequence[dict[str, float]]) -> list[Any]:
    """The model's input for these requests. They are spared the standardising that our gateway does."""
    dense = np.array([list(row.values()) for row in rows], np.float32)
    tensor = InferInput("dense", list(dense.shape), "FP32")
    tensor.set_data_from_numpy(dense)
    return [tensor]


def answer(scores: Sequence[float]) -> dict[str, Any]:
    """A prediction, without the id that ours has."""
    best = max(range(len(scores)), key=scores.__getitem__)
    return {
        "model": MODEL, "label": CLASSES[best], "score": scores[best], "scores": dict(zip(CLASSES, scores, strict=True)),
    }  # fmt: skip


def answer_bytes(scores: Sequence[float]) -> bytes:
    return json.dumps(answer(scores)).encode()

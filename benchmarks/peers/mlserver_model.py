"""The same perceptron inside MLServer, which serves models itself: in numpy, which at one row a call costs less than torch."""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

HIDDEN = 64


class Perceptron(MLModel):  # type: ignore[misc]  # published without type information here
    async def load(self) -> bool:
        rng = np.random.default_rng(0)
        widths = [(8, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2)]
        self.layers = [rng.standard_normal(shape, np.float32) / 8 for shape in widths]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        found = NumpyCodec.decode_input(payload.inputs[0])
        for layer in self.layers[:-1]:
            found = np.maximum(found @ layer, 0)
        logits = found @ self.layers[-1]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True)
        output = NumpyCodec.encode_output("scores", scores)
        return InferenceResponse(model_name=self.name, outputs=[output])

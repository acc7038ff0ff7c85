"""Labels joined with their predictions, as ClickHouse and Kafka tell of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.spec import ModelSpec
from training.rows import LABELS


class Joined(NamedTuple):
    """Outcomes of live answers of one model, in an order in which the revisions of a prediction ascend."""

    ids: list[bytes]
    """Prediction ids."""
    revisions: list[int]
    labels: NDArray[np.void]
    """`LABELS`; the target is NaN where the spec does not know the label (any more)."""


def joined(spec: ModelSpec, table: pa.Table, ids: list[bytes]) -> Joined:
    """The rows of `table`: revision, requested_ms, joined_ms, truth, truth_value, label and loss of the predictions `ids`."""
    labels = np.zeros(table.num_rows, LABELS)
    halves = np.frombuffer(b"".join(ids), dtype=">u8").reshape(-1, 2)
    classes = {name: index for index, name in enumerate(spec.classes)}
    labels["id_high"], labels["id_low"] = halves[:, 0], halves[:, 1]
    labels["requested_ms"], labels["joined_ms"] = (
        table["requested_ms"].to_numpy(),
        table["joined_ms"].to_numpy(),
    )
    labels["loss"] = table["loss"].to_numpy()
    labels["answered"] = [classes.get(label, -1) for label in table["label"].to_pylist()]
    if spec.task == "regression":
        labels["target"] = table["truth_value"].to_numpy()
    else:
        labels["target"] = [classes.get(truth, np.nan) for truth in table["truth"].to_pylist()]
    return Joined(ids, table["revision"].to_pylist(), labels)

"""Identities as text."""

import uuid

import numpy as np

from inference.predict import id_texts


def test_ids_are_written_as_uuids() -> None:
    given = [uuid.uuid4() for _ in range(5)]
    ids = np.frombuffer(b"".join(one.bytes for one in given), dtype="V16")
    assert id_texts(ids) == [str(one) for one in given]

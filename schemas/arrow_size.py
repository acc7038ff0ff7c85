"""How large an Arrow IPC stream is once unpacked, told without unpacking it.

Of a compressed body each buffer begins with its unpacked length (64 bits, little-endian, -1: as it is), which the reader allocates before it
looks further. So this reads the messages' metadata, a flatbuffer (https://arrow.apache.org/docs/format/Columnar.html, Message.fbs), and adds up.
"""

from __future__ import annotations

import struct
from typing import Final

_CONTINUES: Final = 0xFFFFFFFF
# Places of the fields in the tables of Message.fbs.
_HEADER_TYPE: Final = 1
_HEADER: Final = 2
_BODY_LENGTH: Final = 3
_DICTIONARY_BATCH: Final = 2
_DICTIONARY_DATA: Final = 1
_BUFFERS: Final = 2
_COMPRESSION: Final = 3


def unpacked_bytes(value: bytes) -> int:
    """Bytes of the bodies of all batches and dictionaries of a stream, unpacked.

    Raises:
        ValueError: its metadata points to where nothing is.
    """
    total = at = 0
    while at + 4 <= len(value):
        (size,) = _read("<I", value, at)
        at += 4
        if size == _CONTINUES:
            (size,) = _read("<I", value, at)
            at += 4
        if size == 0:
            break
        message = _Table(value, at + _read("<I", value, at)[0])
        at += size
        body_bytes = message.scalar("<q", _BODY_LENGTH)
        if body_bytes < 0:
            raise ValueError(f"a body of {body_bytes} bytes")
        total += _body_bytes(message, value, at, body_bytes)
        at += body_bytes
    return total


def first_message_bytes(value: bytes) -> int:
    """Bytes of a stream's first message, which has no body: the schema. 0: it is not all there."""
    if len(value) < 8:
        return 0
    first, second = _read("<II", value, 0)
    end = 8 + second if first == _CONTINUES else 4 + first
    return end if end <= len(value) else 0


def _body_bytes(message: _Table, value: bytes, body: int, packed_bytes: int) -> int:
    batch = message.table(_HEADER)
    if batch is not None and message.scalar("<B", _HEADER_TYPE) == _DICTIONARY_BATCH:
        batch = batch.table(_DICTIONARY_DATA)
    if batch is None or packed_bytes == 0 or batch.table(_COMPRESSION) is None:
        return packed_bytes
    total = 0
    for offset, length in batch.pairs(_BUFFERS):
        if length:
            (unpacked,) = _read("<q", value, body + offset)
            if unpacked < -1:
                raise ValueError(f"a buffer of {unpacked} bytes")
            total += length if unpacked == -1 else unpacked
    return total


class _Table:
    """A table of a flatbuffer: https://flatbuffers.dev/internals/."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def table(self, field: int) -> _Table | None:
        """The table that a field points to."""
        at = self._pointed(field)
        return None if at is None else _Table(self._data, at)

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of structs of two 64-bit integers."""
        at = self._pointed(field)
        if at is None:
            return []
        (count,) = _read("<I", self._data, at)
        if at + 4 + 16 * count > len(self._data):
            raise ValueError("a vector beyond the end")
        return list(struct.iter_unpack("<qq", self._data[at + 4 : at + 4 + 16 * count]))

    def scalar(self, form: str, field: int) -> int:
        """A number in the table itself; 0 where it is left out."""
        at = self._place(field)
        return 0 if at is None else _read(form, self._data, at)[0]

    def _pointed(self, field: int) -> int | None:
        at = self._place(field)
        return None if at is None else at + _read("<I", self._data, at)[0]

    def _place(self, field: int) -> int | None:
        places = self._at - _read("<i", self._data, self._at)[0]
        (size,) = _read("<H", self._data, places)
        if 4 + 2 * field + 2 > size:
            return None
        (place,) = _read("<H", self._data, places + 4 + 2 * field)
        return self._at + place if place else None


def _read(form: str, data: bytes, at: int) -> tuple[int, ...]:
    if at < 0 or at + struct.calcsize(form) > len(data):
        raise ValueError("a place beyond the end")
    return struct.unpack_from(form, data, at)

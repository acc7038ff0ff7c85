"""What is refused whatever a record's value says."""

from confluent_kafka import Message

from inference.admit import KEY_BYTES, admit
from inference.headers import said
from schemas.spec import decode_spec

SPEC = decode_spec(
    'name = "toy"\ntask = "regression"\nmodule = "m:T"\n[features]\nx = { type = "float" }\n[rollout]\nmetric = "squared_error"',
    "toy",
)


def record(offset: int, key: bytes | None) -> Message:
    return Message(
        topic="requests.toy", partition=0, offset=offset, key=key, value=b'{"x":1}', timestamp=(1, 1000)
    )


def test_a_key_too_long_to_be_copied_is_refused_and_goes_no_further() -> None:
    messages = [record(0, b"a"), record(1, bytes(KEY_BYTES + 1)), record(2, None)]
    admitted = admit(SPEC, messages, said(messages), largest_bytes=7)
    assert {index: (r.reason, r.field) for index, r in admitted.rejections.items()} == {
        1: ("oversized", "key")
    }
    assert admitted.keys == [b"a", None, None]
    assert admitted.entities == ["a", "", ""]

"""Canonical bytes, and the digest over what a client gave."""

from __future__ import annotations

from hashlib import sha256

import pytest
from google.protobuf.internal import api_implementation
from hypothesis import given
from hypothesis import strategies as st

from pli.canonical import FinishDigest, canonical
from pli.ingest.v1.ingest_pb2 import Answer, Choices, Cleared, Mark, Presence

ANSWER = Answer(item_id="math-07", choices=Choices(options=["B"]), seat=3, opening=2, elapsed_ms=900)
BYTES = b"\x0a\x07math-07\x12\x03\x0a\x01B\x38\x03\x40\x02\x48\x84\x07"


def test_the_bytes_are_those_of_the_protocol_document() -> None:
    assert canonical(ANSWER) == BYTES


@pytest.mark.parametrize(
    "wire",
    [
        b"\x48\x84\x07\x40\x02\x38\x03\x12\x03\x0a\x01B\x0a\x07math-07",
        BYTES + b"\x9a\x06\x05other",
        b"\x12\x08\x0a\x01B\x9a\x06\x02xx" + BYTES[:9] + BYTES[14:],
        BYTES[:9] + b"\x1a\x04text" + BYTES[9:],
        b"\x38\x07" + BYTES,
        BYTES.replace(b"\x38\x03", b"\x38\x83\x80\x00"),
    ],
    ids=["fields in another order", "an unknown field", "one inside", "two values", "a field twice", "a long varint"],
)
def test_other_bytes_of_the_same_answer_become_the_same(wire: bytes) -> None:
    assert wire != BYTES
    assert canonical(Answer.FromString(wire)) == BYTES


def test_defaults_are_left_out_and_a_chosen_empty_value_is_kept() -> None:
    assert canonical(Answer.FromString(b"\x0a\x01a\x38\x00\x40\x00")) == b"\x0a\x01a"
    assert canonical(Answer(item_id="a", text="")) == b"\x0a\x01a\x1a\x00"
    assert canonical(Answer(item_id="a", cleared=Cleared())) == b"\x0a\x01a\x32\x00"
    assert canonical(Mark(seq=1, seat=2, presence=Presence.PRESENCE_ABSENT)) == b"\x08\x01\x10\x02\x18\x01"


@given(st.builds(Answer, item_id=st.text(max_size=9), text=st.text(max_size=30), seat=st.integers(0, 2**32 - 1)))
def test_canonical_bytes_are_their_own_canonical_form(answer: Answer) -> None:
    first = canonical(answer)
    assert canonical(Answer.FromString(first)) == first
    assert Answer.FromString(first) == answer


def test_the_digest_is_over_seq_length_and_bytes_in_order() -> None:
    digest = FinishDigest()
    assert digest.digest() == sha256(b"").digest()
    digest.add(1, b"first")
    digest.add(3, b"")
    assert digest.count == 2
    assert digest.digest() == sha256(b"\0" * 7 + b"\1" + b"\0\0\0\5first" + b"\0" * 7 + b"\3" + bytes(4)).digest()


@given(st.lists(st.tuples(st.integers(1, 2**64 - 1), st.binary(max_size=20)), max_size=5, unique=True))
def test_digests_differ_when_anything_differs(entries: list[tuple[int, bytes]]) -> None:
    def over(some: list[tuple[int, bytes]]) -> bytes:
        digest = FinishDigest()
        for seq, content in some:
            digest.add(seq, content)
        return digest.digest()

    others = [entries[:-1], entries[::-1], [(seq, content + b"\0") for seq, content in entries]]
    assert all((over(other) == over(entries)) == (other == entries) for other in others)


def test_protobuf_runs_on_its_fast_implementation() -> None:
    assert api_implementation.Type() == "upb"

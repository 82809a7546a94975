"""The plaintext of a record, its padding, and the context it is bound to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.errors import IntegrityError
from pli.records import NONCE, PLACE, RECORD_DOMAIN, TAG_DOMAIN, RecordKind, pad, record_context, unpad

KINDS = st.sampled_from(list(RecordKind))


@given(KINDS, st.binary(max_size=9000))
def test_what_is_padded_comes_back_whole(kind: RecordKind, payload: bytes) -> None:
    assert unpad(pad(kind, payload)) == (kind, payload)


@pytest.mark.parametrize(
    ("payload_bytes", "padded_bytes"),
    [(0, 64), (1, 64), (59, 64), (60, 128), (123, 128), (124, 256), (8_192, 16_384), (16_379, 16_384)],
)
def test_lengths_show_in_powers_of_two_only(payload_bytes: int, padded_bytes: int) -> None:
    assert len(pad(RecordKind.ANSWER, b"x" * payload_bytes)) == padded_bytes


def test_a_choice_a_number_and_a_word_have_the_same_length() -> None:
    assert (
        len({len(pad(kind, payload)) for kind in RecordKind for payload in (b"", b"A", b"3,14159", b"photosynthesis")})
        == 1
    )


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        bytes(64),
        pad(1, b"x")[:63],
        b"\0" + pad(1, b"x")[1:],
        b"\x04" + pad(1, b"x")[1:],
        b"\xff" + pad(1, b"x")[1:],
        b"\x01\0\0\0\x3c" + bytes(59),
        b"\x01\xff\xff\xff\xff" + bytes(59),
    ],
)
def test_a_kind_or_length_that_cannot_be_is_refused(plaintext: bytes) -> None:
    with pytest.raises(IntegrityError):
        unpad(plaintext)


def test_the_longest_payload_of_a_padded_length_is_taken() -> None:
    assert unpad(b"\x01\0\0\0\x3b" + bytes(59)) == (1, bytes(59))


@given(st.binary(max_size=200))
def test_any_plaintext_is_read_or_refused(plaintext: bytes) -> None:
    try:
        kind, payload = unpad(plaintext)
    except IntegrityError:
        return
    assert kind in set(RecordKind)
    assert len(payload) <= len(plaintext) - 5


IDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=64)
EPOCHS = st.binary(min_size=16, max_size=16)


@given(st.tuples(IDS, EPOCHS), st.tuples(IDS, EPOCHS))
def test_two_places_never_share_a_context(one: tuple[str, bytes], other: tuple[str, bytes]) -> None:
    assert (record_context(*one) == record_context(*other)) == (one == other)


def test_the_context_of_a_record_is_as_documented() -> None:
    place = PLACE.pack(b"p" * 16, 7, b"w" * 16, 3, 9)
    assert record_context("c-1", b"e" * 16) + place == (
        b"pli/record/v1\0\x03c-1" + b"e" * 16 + b"p" * 16 + b"\0\0\0\7" + b"w" * 16 + b"\0\3" + b"\0" * 7 + b"\x09"
    )


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_nonce_names_its_domain_and_counter(one: int, other: int) -> None:
    assert len(NONCE.pack(RECORD_DOMAIN, one)) == 12
    assert NONCE.pack(RECORD_DOMAIN, one) != NONCE.pack(TAG_DOMAIN, other)
    assert (NONCE.pack(TAG_DOMAIN, one) == NONCE.pack(TAG_DOMAIN, other)) == (one == other)

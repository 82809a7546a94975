"""Sealed rows: they open at their own place, and nowhere else."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.errors import IntegrityError
from pli.secret import Secret
from vault.rows import NONCE_BYTES, RowCipher

KEY = Secret(bytes(range(32)))


def cipher(campaign_id: str = "c-1", key: Secret = KEY) -> RowCipher:
    return RowCipher(campaign_id, key, os.urandom)


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_what_was_sealed_for_a_row_is_opened_from_it(content: bytes, row: bytes) -> None:
    assert cipher().open("codes", row, cipher().seal("codes", row, content)) == content


@pytest.mark.parametrize(
    ("campaign_id", "table", "row"),
    [
        ("c-2", "codes", b"row"),
        ("c-1", "identities", b"row"),
        ("c-1", "codes", b"other"),
        ("c-1", "code", b"s\0row"),
        ("c-1", "codes", b""),
    ],
)
def test_a_row_moved_to_another_place_does_not_open(campaign_id: str, table: str, row: bytes) -> None:
    sealed = cipher().seal("codes", b"row", b"content")
    with pytest.raises(IntegrityError, match=table):
        cipher(campaign_id).open(table, row, sealed)


def test_a_row_does_not_open_under_another_key() -> None:
    sealed = cipher().seal("codes", b"row", b"content")
    with pytest.raises(IntegrityError):
        cipher(key=Secret(bytes(32))).open("codes", b"row", sealed)


def test_a_row_with_any_bit_changed_does_not_open() -> None:
    sealed = cipher().seal("codes", b"row", b"content")
    for at in range(len(sealed)):
        for bit in range(8):
            altered = bytearray(sealed)
            altered[at] ^= 1 << bit
            with pytest.raises(IntegrityError):
                cipher().open("codes", b"row", bytes(altered))


@pytest.mark.parametrize("length", range(NONCE_BYTES + 17))
def test_a_row_cut_short_does_not_open(length: int) -> None:
    sealed = cipher().seal("codes", b"row", b"content")
    with pytest.raises(IntegrityError):
        cipher().open("codes", b"row", sealed[:length])


def test_the_same_content_is_never_sealed_alike() -> None:
    one = cipher()
    assert len({one.seal("codes", b"row", b"content") for _ in range(100)}) == 100


def test_a_cipher_shows_nothing_of_its_key() -> None:
    assert repr(cipher()) == "RowCipher(…)"

"""HPKE with the hybrid KEM: what opens, what does not, and how long it is."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.errors import IntegrityError
from pli.hpke import OVERHEAD_BYTES, PRIVATE_KEY_BYTES, PUBLIC_KEY_BYTES, PrivateKey, PublicKey, key_id
from pli.secret import Secret

KEY = PrivateKey.generate()
PUBLIC = PublicKey(KEY.public_raw)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_what_is_sealed_opens_under_the_same_info_and_is_1136_bytes_longer(plaintext: bytes, info: bytes) -> None:
    sealed = PUBLIC.encrypt(plaintext, info)
    assert KEY.decrypt(sealed, info) == plaintext
    assert len(sealed) == len(plaintext) + OVERHEAD_BYTES == len(plaintext) + 1_136


def test_another_info_another_key_and_every_flipped_byte_open_nothing() -> None:
    sealed = PUBLIC.encrypt(b"pseudonym key", b"info")
    for info in (b"", b"inf", b"info\0", b"Info"):
        with pytest.raises(IntegrityError, match="does not open"):
            KEY.decrypt(sealed, info)
    with pytest.raises(IntegrityError, match="does not open"):
        PrivateKey.generate().decrypt(sealed, b"info")
    for place in range(len(sealed)):
        altered = bytearray(sealed)
        altered[place] ^= 1
        with pytest.raises(IntegrityError):
            KEY.decrypt(bytes(altered), b"info")


@pytest.mark.parametrize("length", [0, 1, 1_119, 1_120, 1_135])
def test_a_ciphertext_shorter_than_its_overhead_is_refused(length: int) -> None:
    with pytest.raises(IntegrityError):
        KEY.decrypt(PUBLIC.encrypt(b"x", b"")[:length], b"")


def test_two_ciphertexts_of_the_same_plaintext_differ() -> None:
    assert PUBLIC.encrypt(b"x", b"") != PUBLIC.encrypt(b"x", b"")


def test_a_key_comes_back_from_its_raw_form() -> None:
    again = PrivateKey(KEY.raw())
    assert again.public_raw == KEY.public_raw
    assert again.decrypt(PUBLIC.encrypt(b"x", b"i"), b"i") == b"x"
    assert (len(KEY.raw()), len(KEY.public_raw)) == (PRIVATE_KEY_BYTES, PUBLIC_KEY_BYTES) == (96, 1_216)


def test_a_key_id_is_the_hash_of_the_raw_public_key() -> None:
    assert PUBLIC.key_id == key_id(KEY.public_raw) == sha256(KEY.public_raw).digest()[:16]


@pytest.mark.parametrize("length", [0, 64, 95, 97])
def test_a_private_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(IntegrityError, match="96 bytes"):
        PrivateKey(Secret(bytes(length)))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        KEY.public_raw[:-1],
        KEY.public_raw + b"\0",
        b"\xff" * PUBLIC_KEY_BYTES,
        b"\xff" * 1_184 + KEY.public_raw[1_184:],
    ],
)
def test_bytes_that_are_no_public_key_are_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError, match="public key"):
        PublicKey(raw)


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_nothing_is_sealed_to_a_point_of_low_order(point: bytes) -> None:
    public = PublicKey(KEY.public_raw[:1_184] + point)
    with pytest.raises(IntegrityError, match="sealed to"):
        public.encrypt(b"pseudonym key", b"info")


def test_a_private_key_prints_its_id_alone() -> None:
    shown = f"{KEY!r} {KEY} {KEY.raw()!r}"
    assert KEY.raw().reveal().hex()[:16] not in shown
    assert repr(KEY.raw().reveal())[2:20] not in shown
    assert key_id(KEY.public_raw).hex()[:8] in shown

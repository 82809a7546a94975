"""Pseudonyms and the shard that holds them."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.codes import new_code, parse_code
from pli.pseudonym import PSEUDONYM_BYTES, pseudonym_of, shard_of
from pli.secret import Secret

CODE = new_code(lambda bits: 0x2_1234_5678_9ABC & ((1 << bits) - 1))


def test_a_pseudonym_is_the_labelled_keyed_hash_of_the_normalised_code() -> None:
    key = bytes(range(32))
    message = b"pli/pseudonym/v1\0" + CODE.reveal().encode()
    assert pseudonym_of(Secret(key), CODE) == hmac.new(key, message, hashlib.sha256).digest()[:16]


def test_however_a_code_is_typed_it_has_one_pseudonym() -> None:
    key = Secret(os.urandom(32))
    typed = CODE.printed().lower().replace("0", "o").replace("1", "l")
    assert pseudonym_of(key, parse_code(typed)) == pseudonym_of(key, CODE)


def test_the_same_code_has_unrelated_pseudonyms_in_two_campaigns() -> None:
    assert pseudonym_of(Secret(b"a" * 32), CODE) != pseudonym_of(Secret(b"b" * 32), CODE)


@given(st.binary(min_size=16, max_size=16), st.integers(1, 64))
def test_a_shard_is_one_of_those_there_are_and_always_the_same(pseudonym: bytes, shards: int) -> None:
    assert 0 <= shard_of(pseudonym, shards) < shards
    assert shard_of(pseudonym, shards) == shard_of(bytes(pseudonym), shards)
    assert shard_of(pseudonym, 1) == 0


def test_shards_never_move_between_versions() -> None:
    # A campaign's registry and its sessions would part if this ever changed.
    assert [shard_of(bytes([n]) * PSEUDONYM_BYTES, 64) for n in range(6)] == [21, 13, 54, 6, 30, 62]


@pytest.mark.parametrize("shards", [2, 7, 64])
@pytest.mark.parametrize("step", [1, 1 << 64, 1 << 110])
def test_pseudonyms_in_order_spread_evenly_over_shards(shards: int, step: int) -> None:
    found = Counter(shard_of((n * step).to_bytes(16, "big"), shards) for n in range(shards * 400))
    # 400 expected, standard deviation 20: five of them either way.
    assert len(found) == shards
    assert all(300 <= count <= 500 for count in found.values()), found

"""Root keys wrapped by a passphrase or a key file."""

from __future__ import annotations

import os

import pytest

from pli.errors import Forbidden, InputError
from pli.secret import Secret
from tests.support.vault_parts import FAST_ARGON2
from vault.config import Argon2Parameters
from vault.root_slots import RootSlot, make_slot

ROOT = Secret(bytes(range(32)))
PASSPHRASE = Secret(b"correct horse battery staple")
KEY_FILE = Secret(b"k" * 32)


def by_passphrase() -> RootSlot:
    return make_slot("answers", ROOT, PASSPHRASE, FAST_ARGON2, os.urandom)


def by_key_file() -> RootSlot:
    return make_slot("answers", ROOT, KEY_FILE, None, os.urandom)


def test_the_right_passphrase_or_key_file_opens_the_slot() -> None:
    assert by_passphrase().open("answers", PASSPHRASE) == ROOT
    assert by_key_file().open("answers", KEY_FILE) == ROOT


@pytest.mark.parametrize("wrong", [b"correct horse battery stapl", b"correct horse battery staple ", b"x", b""])
def test_a_wrong_passphrase_is_refused_and_not_repeated(wrong: bytes) -> None:
    with pytest.raises(Forbidden, match="scope answers stays locked: this passphrase does not open it") as caught:
        by_passphrase().open("answers", Secret(wrong))
    assert "horse" not in caught.value.message


def test_another_key_file_is_refused() -> None:
    with pytest.raises(Forbidden, match="this key file does not open it"):
        by_key_file().open("answers", Secret(b"K" * 32))


def test_a_slot_opens_for_its_own_scope_alone() -> None:
    with pytest.raises(Forbidden):
        by_passphrase().open("identities", PASSPHRASE)


def test_an_altered_slot_does_not_open() -> None:
    slot = by_key_file()
    flipped = bytes.fromhex(slot.sealed)
    altered = slot.model_copy(update={"sealed": (flipped[:-1] + bytes((flipped[-1] ^ 1,))).hex()})
    with pytest.raises(Forbidden):
        altered.open("answers", KEY_FILE)


def test_a_slot_remembers_how_its_passphrase_was_stretched() -> None:
    other = Argon2Parameters(time_cost=2, memory_kib=128, parallelism=2)
    slot = make_slot("answers", ROOT, PASSPHRASE, other, os.urandom)
    read = RootSlot.model_validate_json(slot.model_dump_json())
    assert read.argon2 == other
    assert read.open("answers", PASSPHRASE) == ROOT
    with pytest.raises(Forbidden):
        read.model_copy(update={"argon2": FAST_ARGON2}).open("answers", PASSPHRASE)


def test_two_slots_of_one_root_have_nothing_in_common() -> None:
    first, second = by_passphrase(), by_passphrase()
    assert first.salt != second.salt
    assert first.sealed != second.sealed


def test_a_slot_as_written_holds_neither_root_nor_wrapping_in_clear() -> None:
    for slot in (by_passphrase(), by_key_file()):
        written = slot.model_dump_json()
        for secret in (ROOT, PASSPHRASE, KEY_FILE):
            assert secret.reveal().hex() not in written
            assert secret.reveal().decode("latin-1") not in written


def test_short_passphrases_and_short_key_files_are_refused() -> None:
    with pytest.raises(InputError, match="at least 15 bytes"):
        make_slot("answers", ROOT, Secret(b"x" * 14), FAST_ARGON2, os.urandom)
    with pytest.raises(InputError, match="at least 32 random bytes"):
        make_slot("answers", ROOT, Secret(b"x" * 31), None, os.urandom)

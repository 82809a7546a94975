"""The pseudonym key while the vault is being locked."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pli.errors import VaultLocked
from pli.hpke import PrivateKey
from pli.secret import Secret
from vault.keyring import AnswerKeys, KeyRing
from vault.pseudonym_key import pseudonym_key
from vault.rows import RowCipher

KEY = b"\xaa" * 4096
"""Longer than a key is: wiping it takes long enough to be met half done."""


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns after almost every step, so that unlucky moments happen in every run."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("quick_switches")
def test_it_is_whole_or_locked_and_never_half_wiped() -> None:
    ring = KeyRing()
    answer, signing = PrivateKey.generate(), Ed25519PrivateKey.generate()
    rows = RowCipher("c1", Secret(bytes(32)), os.urandom)
    stop = threading.Event()

    def lock_and_unlock() -> None:
        while not stop.is_set():
            ring.put_answers(AnswerKeys("c1", answer, Secret(KEY), signing, rows))
            ring.forget_answers()

    locking = threading.Thread(target=lock_and_unlock)
    locking.start()
    whole = locked = 0
    try:
        while whole < 300 or locked < 300:
            try:
                assert pseudonym_key(ring, "c1").reveal() == KEY
                whole += 1
            except VaultLocked:
                locked += 1
    finally:
        stop.set()
        locking.join()


def test_a_copy_outlives_locking_until_it_is_wiped() -> None:
    ring = KeyRing()
    rows = RowCipher("c1", Secret(bytes(32)), os.urandom)
    ring.put_answers(AnswerKeys("c1", PrivateKey.generate(), Secret(KEY), Ed25519PrivateKey.generate(), rows))
    copy = pseudonym_key(ring, "c1")
    ring.forget_answers()
    assert copy.reveal() == KEY
    with pytest.raises(VaultLocked):
        pseudonym_key(ring, "c1")


class LockedInBetween(KeyRing):
    """A ring that somebody locks right after each time it was asked."""

    def answers(self, campaign_id: str) -> AnswerKeys:
        keys = super().answers(campaign_id)
        self.forget_answers()
        return keys


def test_a_key_wiped_between_asking_and_reading_is_not_used() -> None:
    ring = LockedInBetween()
    rows = RowCipher("c1", Secret(bytes(32)), os.urandom)
    ring.put_answers(AnswerKeys("c1", PrivateKey.generate(), Secret(KEY), Ed25519PrivateKey.generate(), rows))
    with pytest.raises(VaultLocked):
        pseudonym_key(ring, "c1")

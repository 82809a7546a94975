"""The pseudonym key at its places of use: code issue and enrolment."""

from __future__ import annotations

from pli.secret import Secret
from vault.keyring import KeyRing


def pseudonym_key(keyring: KeyRing, campaign_id: str) -> Secret:
    """A copy of the campaign's pseudonym key, whole even if the vault is locked at this moment.

    A key wiped in the middle of its use would give pseudonyms that anybody can compute. Wipe the copy
    after use.

    Raises:
        VaultLocked: scope answers is locked.
    """
    while True:
        keys = keyring.answers(campaign_id)
        copy = Secret(keys.pseudonym.reveal())
        # Locking takes keys out of the ring before it wipes them: still there now means not wiped then.
        if keyring.answers(campaign_id) is keys:
            return copy

"""Keys in memory while the vault is unlocked, per campaign and scope.

The keystore fills and empties the ring (vault/keystore.py); everything else asks it at the moment of
use and keeps nothing, so that locking takes effect at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pli.errors import VaultLocked
from pli.hpke import PrivateKey
from pli.secret import Secret
from vault.rows import RowCipher


@dataclass(frozen=True, slots=True, repr=False)
class AnswerKeys:
    """What opens answers, by pseudonym: never a name, never a code."""

    campaign_id: str
    answer: PrivateKey
    pseudonym: Secret
    signing: Ed25519PrivateKey
    rows: RowCipher

    def __repr__(self) -> str:
        return f"AnswerKeys({self.campaign_id})"


@dataclass(frozen=True, slots=True, repr=False)
class IdentityKeys:
    """What opens names and codes, and which pseudonym is whose."""

    campaign_id: str
    rows: RowCipher

    def __repr__(self) -> str:
        return f"IdentityKeys({self.campaign_id})"


class KeyRing:
    """The unlocked keys."""

    def __init__(self) -> None:
        self._answers: dict[str, AnswerKeys] = {}
        self._identities: dict[str, IdentityKeys] = {}

    def answers(self, campaign_id: str) -> AnswerKeys:
        """Keys of the scope answers.

        Raises:
            VaultLocked: the scope is locked (or this campaign is unknown to the keystore).
        """
        keys = self._answers.get(campaign_id)
        if keys is None:
            raise VaultLocked(
                f"the answers of campaign {campaign_id} are locked; unlock scope answers: KeyService.Unlock"
            )
        return keys

    def identities(self, campaign_id: str) -> IdentityKeys:
        """Keys of the scope identities.

        Raises:
            VaultLocked: the scope is locked (or this campaign is unknown to the keystore).
        """
        keys = self._identities.get(campaign_id)
        if keys is None:
            raise VaultLocked(
                f"the identities of campaign {campaign_id} are locked; unlock scope identities: KeyService.Unlock"
            )
        return keys

    def put_answers(self, keys: AnswerKeys) -> None:
        """Called by the keystore alone."""
        self._answers[keys.campaign_id] = keys

    def put_identities(self, keys: IdentityKeys) -> None:
        """Called by the keystore alone."""
        self._identities[keys.campaign_id] = keys

    def forget_answers(self) -> None:
        """Locks the scope answers for every campaign."""
        forgotten = list(self._answers.values())
        # Out of the ring first: whoever still finds its keys there afterwards has read a key not yet wiped.
        self._answers.clear()
        for keys in forgotten:
            keys.pseudonym.wipe()

    def forget_identities(self) -> None:
        """Locks the scope identities for every campaign."""
        self._identities.clear()

"""Rows encrypted at rest: each sealed to its own place in its own table."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pli.errors import IntegrityError
from pli.secret import Secret

NONCE_BYTES = 12
LABEL = b"pli/row/v1\0"


class RowCipher:
    """AES-256-GCM under one scope key of one campaign; additional data = campaign, table and row.

    A row copied to another place, table or campaign does not open. Nonces are random: at 2³² rows a
    key the risk of a repetition is 2⁻³² (NIST SP 800-38D), and a campaign has some millions.
    """

    __slots__ = ("_aes", "_campaign", "_random_bytes")

    def __init__(self, campaign_id: str, key: Secret, random_bytes: Callable[[int], bytes]) -> None:
        self._aes = AESGCM(key.reveal())
        self._campaign = campaign_id.encode()
        self._random_bytes = random_bytes

    def seal(self, table: str, row: bytes, content: bytes) -> bytes:
        """Nonce ‖ ciphertext, to be stored in `table` under `row`."""
        nonce = self._random_bytes(NONCE_BYTES)
        return nonce + self._aes.encrypt(nonce, content, self._place(table, row))

    def open(self, table: str, row: bytes, sealed: bytes) -> bytes:
        """The content.

        Raises:
            IntegrityError: altered, or not sealed for this place.
        """
        try:
            return self._aes.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._place(table, row))
        except (InvalidTag, ValueError) as error:
            # ValueError: so short that not even a nonce is left of it.
            raise IntegrityError(
                f"a row of table {table} does not open: the database was altered or mixed with another"
            ) from error

    def _place(self, table: str, row: bytes) -> bytes:
        campaign = self._campaign
        return b"".join((LABEL, bytes((len(campaign),)), campaign, table.encode(), b"\0", row))

    def __repr__(self) -> str:
        return "RowCipher(…)"

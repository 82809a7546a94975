"""Pseudonyms: the only name that the platform stores for a code."""

from __future__ import annotations

import hmac
from hashlib import sha256

from pli.codes import Code
from pli.secret import Secret

LABEL = b"pli/pseudonym/v1\0"
PSEUDONYM_BYTES = 16
PREFIX_BYTES = 4
"""What operators and receipts see of a pseudonym: enough to find a session, too little to be it."""


def pseudonym_of(key: Secret, code: Code) -> bytes:
    """First 16 bytes of HMAC-SHA256(pseudonym key of the campaign, label ‖ normalised code)."""
    return hmac.digest(key.reveal(), LABEL + code.reveal().encode("ascii"), "sha256")[:PSEUDONYM_BYTES]


def shard_of(pseudonym: bytes, shards: int) -> int:
    """The shard (0 … shards-1) that holds this pseudonym.

    Hashed once more so that a registry sorted by pseudonym still spreads evenly over shards.
    """
    return 0 if shards == 1 else int.from_bytes(sha256(pseudonym).digest()[:8], "big") % shards

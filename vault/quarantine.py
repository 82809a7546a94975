"""Quarantine: what did not authenticate is kept for examination and never stops the rest."""

from __future__ import annotations

from hashlib import sha256

import structlog
from sqlalchemy import Connection, func, insert, select

from vault.store.landing_tables import QUARANTINE

BLOCK, HEADER, CLOSING = "block", "header", "closing"

log = structlog.get_logger()


def quarantine(
    connection: Connection, campaign_id: str, shard: int, kind: str, content: bytes, reason: str, now_ms: int
) -> None:
    """Keeps `content` once; the same bytes again change nothing. An incident either way.

    `reason` is a sentence of pli's own and holds nothing of the content.
    """
    digest = sha256(content).digest()
    log.error(f"{kind}_quarantined", campaign=campaign_id, shard=shard, block=digest.hex()[:16], why=reason)
    place = (QUARANTINE.c.campaign_id == campaign_id, QUARANTINE.c.digest == digest)
    if connection.execute(select(QUARANTINE.c.kind).where(*place)).one_or_none() is not None:
        return
    connection.execute(
        insert(QUARANTINE),
        {
            "campaign_id": campaign_id,
            "digest": digest,
            "kind": kind,
            "shard": shard,
            "reason": reason,
            "received_at_ms": now_ms,
            "content": content,
        },
    )


def quarantined_blocks(connection: Connection, campaign_id: str) -> int:
    """How many distinct blocks are in quarantine."""
    return connection.execute(
        select(func.count()).where(QUARANTINE.c.campaign_id == campaign_id, QUARANTINE.c.kind == BLOCK)
    ).scalar_one()

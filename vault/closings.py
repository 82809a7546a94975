"""The frozen tables of epochs that the shards wrote when they were closed, as they arrive."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from pli.closings import Closing, read_closing
from pli.errors import IntegrityError
from vault.quarantine import CLOSING, quarantine
from vault.store.landing_tables import CLOSINGS


def take_closing(connection: Connection, campaign_id: str, shard: int, raw: bytes, now_ms: int) -> bool:
    """Stores a shard's table; True when it is, or was already, the stored one.

    A shard closes once: a second table that differs from the first, and one that is not readable or
    belongs elsewhere, is quarantined and not taken.
    """
    try:
        closing = read_closing(raw)
        if closing.campaign_id != campaign_id or closing.shard != shard:
            raise IntegrityError("a closing was written for another campaign or shard")
    except IntegrityError as error:
        quarantine(connection, campaign_id, shard, CLOSING, raw, error.message, now_ms)
        return False
    known = connection.execute(
        select(CLOSINGS.c.closing).where(CLOSINGS.c.campaign_id == campaign_id, CLOSINGS.c.shard == shard)
    ).scalar_one_or_none()
    if known is None:
        connection.execute(insert(CLOSINGS), {"campaign_id": campaign_id, "shard": shard, "closing": raw})
        return True
    if known != raw:
        reason = "a second closing of this shard differs from the first"
        quarantine(connection, campaign_id, shard, CLOSING, raw, reason, now_ms)
        return False
    return True


def load_closings(connection: Connection, campaign_id: str) -> dict[int, Closing]:
    """The stored tables by shard."""
    rows = connection.execute(select(CLOSINGS.c.shard, CLOSINGS.c.closing).where(CLOSINGS.c.campaign_id == campaign_id))
    return {shard: read_closing(raw) for shard, raw in rows}

"""The heads of append-only logs: how far each had come, and the hashes needed to go on."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, insert, select, update

from vault.merkle import Frontier
from vault.store.campaign_tables import LOG_HEADS


def read_head(connection: Connection, campaign_id: str, log: str) -> Frontier:
    """The frontier of a log; the empty one for a log that has no entry. `campaign_id` "" = whole vault.

    Raises:
        IntegrityError: the stored head is damaged.
    """
    row = connection.execute(select(LOG_HEADS.c.size, LOG_HEADS.c.frontier).where(_is(campaign_id, log))).one_or_none()
    return Frontier() if row is None else Frontier.read(row.size, row.frontier)


def write_head(connection: Connection, campaign_id: str, log: str, head: Frontier) -> None:
    """Stores the frontier; in the same transaction as the entries that it covers."""
    content = {"size": head.size, "frontier": head.serialise()}
    if connection.execute(update(LOG_HEADS).where(_is(campaign_id, log)).values(**content)).rowcount == 0:
        connection.execute(insert(LOG_HEADS), {"campaign_id": campaign_id, "log": log, **content})


def _is(campaign_id: str, log: str) -> ColumnElement[bool]:
    return and_(LOG_HEADS.c.campaign_id == campaign_id, LOG_HEADS.c.log == log)

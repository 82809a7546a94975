"""The campaign's instruments at rest: file name and content, sealed under the key of the answers.

Until publication an instrument may be replaced by one of another version; a version never names two
contents, because nodes and clients know an instrument by its version alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Never

from sqlalchemy import Connection, insert, select

from pli.errors import IntegrityError, StateError
from pli.instrument_file import read_instrument_file
from vault.campaigns import find
from vault.instrument import Instrument, parse_instrument
from vault.keyring import AnswerKeys
from vault.store.campaign_tables import INSTRUMENTS

_NUL = b"\0"


def put_instrument(
    connection: Connection, keys: AnswerKeys, instrument: Instrument, content: bytes, file_name: str
) -> None:
    """Puts an instrument in force, in the caller's transaction; the one in force again changes nothing.

    `instrument` is what `content` was parsed to; `file_name` holds no NUL.

    Raises:
        InputError: its version was used for other content.
        StateError: the campaign is published.
    """
    campaign = find(connection, keys.campaign_id)
    digest = instrument.content_digest()
    stored = list(_instruments(connection, keys))
    if any(known.version == instrument.version and known.content_digest() != digest for known in stored):
        _refuse_version(content, file_name)
    if stored and stored[-1].content_digest() == digest:
        return
    if campaign.published:
        raise StateError(f"campaign {campaign.campaign_id} is published, its instrument is fixed; make a new campaign")
    number = len(stored) + 1
    sealed = keys.rows.seal(INSTRUMENTS.name, _row_of(number), file_name.encode() + _NUL + content)
    place = {"campaign_id": keys.campaign_id, "number": number}
    connection.execute(insert(INSTRUMENTS), {**place, "version": instrument.version, "sealed": sealed})


def current_instrument(connection: Connection, keys: AnswerKeys) -> Instrument:
    """The instrument in force.

    Raises:
        StateError: none was put yet.
        IntegrityError: its row was altered.
    """
    columns = INSTRUMENTS.c
    row = connection.execute(
        select(columns.number, columns.sealed)
        .where(columns.campaign_id == keys.campaign_id)
        .order_by(columns.number.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        raise StateError(f"campaign {keys.campaign_id} has no instrument; put one: CampaignService.PutInstrument")
    return _opened(keys, row.number, row.sealed)


def has_instrument(connection: Connection, campaign_id: str) -> bool:
    """Whether one was put. Needs no keys."""
    found = select(INSTRUMENTS.c.number).where(INSTRUMENTS.c.campaign_id == campaign_id).limit(1)
    return connection.execute(found).one_or_none() is not None


def _refuse_version(content: bytes, file_name: str) -> Never:
    file = read_instrument_file(content, file_name)
    rule = "version reused with other content; give this content a version of its own"
    file.toml.root.fault("version", rule, file.public.version)
    file.faults.refuse()


def _instruments(connection: Connection, keys: AnswerKeys) -> Iterator[Instrument]:
    columns = INSTRUMENTS.c
    rows = connection.execute(
        select(columns.number, columns.sealed).where(columns.campaign_id == keys.campaign_id).order_by(columns.number)
    )
    for number, sealed in rows:
        yield _opened(keys, number, sealed)


def _opened(keys: AnswerKeys, number: int, sealed: bytes) -> Instrument:
    name, separator, content = keys.rows.open(INSTRUMENTS.name, _row_of(number), sealed).partition(_NUL)
    if not separator:
        raise IntegrityError(f"instrument {number} of campaign {keys.campaign_id} is not readable; restore a backup")
    return parse_instrument(content, name.decode())


def _row_of(number: int) -> bytes:
    return number.to_bytes(8, "big")

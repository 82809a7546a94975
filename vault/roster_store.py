"""The campaign's roster at rest: imported once, whole or not at all, every row sealed.

A row of `identities` is a JSON array of the nine columns of `roster.csv` in the order of
`vault.roster.COLUMNS`, sealed under the identity key for its ordinal. The file's SHA-256 is kept
sealed as well (a hash in clear would let a name be tried): it tells a repeated import from another.

The file is parsed while it arrives and never written down: names exist in clear in memory only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from itertools import islice
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, Table, insert, select

from pli.csv_input import MAX_FILE_BYTES
from pli.errors import AlreadyExists, StateError
from vault.campaigns import Campaign, find
from vault.keyring import IdentityKeys
from vault.roster import COLUMNS, Pupil, Roster, parse_roster
from vault.store.campaign_tables import IDENTITIES, ROSTERS

ROSTER_ROW = b"roster"
ROWS_AT_ONCE = 5_000
"""Rows in one statement: large enough for speed, small beside the roster itself."""

_columns = attrgetter(*COLUMNS)
_BIRTH_DATE = COLUMNS.index("birth_date")


@dataclass(frozen=True, slots=True)
class RosterSize:
    """How many there are of each."""

    pupils: int
    classes: int
    schools: int


@dataclass(frozen=True, slots=True, repr=False)
class RosterFile:
    """A clean roster and the SHA-256 of the bytes it was read from."""

    roster: Roster
    digest: bytes

    @property
    def size(self) -> RosterSize:
        """What is in it."""
        return RosterSize(len(self.roster.pupils), len(self.roster.classes), len(self.roster.schools))

    def __repr__(self) -> str:
        return f"RosterFile({self.roster!r})"


def read_roster(chunks: Iterable[bytes], file_name: str, today: date, *, max_bytes: int = MAX_FILE_BYTES) -> RosterFile:
    """Reads a file that arrives in pieces.

    Raises:
        InputError: the first faults of the file by line, and how many there are.
    """
    digest = sha256()

    def passing() -> Iterator[bytes]:
        for chunk in chunks:
            digest.update(chunk)
            yield chunk

    roster = parse_roster(passing(), file_name, today, max_bytes=max_bytes)
    return RosterFile(roster, digest.digest())


def store_roster(connection: Connection, keys: IdentityKeys, file: RosterFile) -> RosterSize:
    """Stores the roster in the caller's transaction; the same file again changes nothing.

    Raises:
        AlreadyExists: the campaign has another roster.
        StateError: the campaign is published.
    """
    campaign = find(connection, keys.campaign_id)
    size = file.size
    if _is_repeated(connection, keys, file):
        return size
    _refuse_when_published(campaign)
    connection.execute(
        insert(ROSTERS),
        {
            "campaign_id": keys.campaign_id,
            "pupils": size.pupils,
            "classes": size.classes,
            "schools": size.schools,
            "sealed": keys.rows.seal(ROSTERS.name, ROSTER_ROW, file.digest),
        },
    )
    rows = _sealed_rows(keys, file.roster.pupils)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        connection.execute(insert(IDENTITIES), some)
    return size


def roster_size(connection: Connection, campaign_id: str) -> RosterSize | None:
    """What the campaign's roster holds; None before the import. Needs no keys."""
    columns = ROSTERS.c
    row = connection.execute(
        select(columns.pupils, columns.classes, columns.schools).where(columns.campaign_id == campaign_id)
    ).one_or_none()
    return None if row is None else RosterSize(row.pupils, row.classes, row.schools)


def pupils(connection: Connection, keys: IdentityKeys) -> Iterator[Pupil]:
    """All pupils in the order of the roster.

    Raises:
        IntegrityError: a row was altered or moved.
    """
    for _, content in opened_rows(connection, keys, IDENTITIES):
        cells = json.loads(content)
        cells[_BIRTH_DATE] = date.fromisoformat(cells[_BIRTH_DATE])
        yield Pupil(*cells)


def opened_rows(connection: Connection, keys: IdentityKeys, table: Table) -> Iterator[tuple[int, bytes]]:
    """(place in the roster, content) of every row of a table of this campaign, in the order of the roster.

    Raises:
        IntegrityError: a row was altered or moved.
    """
    columns = table.c
    rows = connection.execute(
        select(columns.ordinal, columns.sealed)
        .where(columns.campaign_id == keys.campaign_id)
        .order_by(columns.ordinal),
        execution_options={"yield_per": ROWS_AT_ONCE},
    )
    for ordinal, sealed in rows:
        yield ordinal, keys.rows.open(table.name, row_of(ordinal), sealed)


def row_of(ordinal: int) -> bytes:
    """The row key of a pupil's place in the roster, from 0."""
    return ordinal.to_bytes(8, "big")


def _is_repeated(connection: Connection, keys: IdentityKeys, file: RosterFile) -> bool:
    sealed = connection.execute(
        select(ROSTERS.c.sealed).where(ROSTERS.c.campaign_id == keys.campaign_id)
    ).scalar_one_or_none()
    if sealed is None:
        return False
    if keys.rows.open(ROSTERS.name, ROSTER_ROW, sealed) != file.digest:
        raise AlreadyExists(
            f"campaign {keys.campaign_id} has another roster already, and nothing of this file was taken; "
            "to work with this one, make a new campaign"
        )
    return True


def _refuse_when_published(campaign: Campaign) -> None:
    if campaign.published:
        raise StateError(f"campaign {campaign.campaign_id} is published, its roster is fixed; make a new campaign")


def _sealed_rows(keys: IdentityKeys, roster: Iterable[Pupil]) -> Iterator[dict[str, Any]]:
    for ordinal, pupil in enumerate(roster):
        cells = list(_columns(pupil))
        cells[_BIRTH_DATE] = cells[_BIRTH_DATE].isoformat()
        content = json.dumps(cells, ensure_ascii=False, separators=(",", ":")).encode()
        sealed = keys.rows.seal(IDENTITIES.name, row_of(ordinal), content)
        yield {"campaign_id": keys.campaign_id, "ordinal": ordinal, "sealed": sealed}

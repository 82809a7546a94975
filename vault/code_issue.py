"""Issue of codes: one per pupil, drawn in memory, stored in one transaction or not at all.

Which code and pseudonym are whose is sealed under the identity key (`codes`, a row per pupil). The
platform's list of pseudonyms (`registry`) is in clear, and is written in one go in ascending order of
pseudonym: neither row numbers nor the order of writing tie an entry to a pupil.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select

from pli.codes import Code, new_code
from pli.errors import StateError
from pli.pseudonym import PSEUDONYM_BYTES, pseudonym_of
from pli.secret import Secret
from vault.campaigns import find
from vault.keyring import IdentityKeys, KeyRing
from vault.pseudonym_key import pseudonym_key
from vault.registry import LIVE, PUPIL
from vault.roster_store import ROWS_AT_ONCE, opened_rows, row_of
from vault.store.campaign_tables import CODES, IDENTITIES, REGISTRY
from vault.store.database import Database


@dataclass(frozen=True, slots=True)
class Issued:
    """`issued` by this call, `total` in all."""

    issued: int
    total: int


@dataclass(frozen=True, slots=True, repr=False)
class _Drawn:
    """New codes, not stored yet: per ordinal its sealed row, and all pseudonyms in ascending order."""

    found: int
    rows: list[tuple[int, bytes]]
    pseudonyms: list[bytes]


async def issue_codes(
    database: Database, keyring: KeyRing, campaign_id: str, random_bits: Callable[[int], int]
) -> Issued:
    """Gives a code to every pupil who has none. `random_bits(k)` returns k random bits.

    Cut off at any moment, it has stored all of them or none; repeated, it issues what is missing.

    Raises:
        VaultLocked: one of the two scopes is locked, or was locked meanwhile: nothing is stored.
        StateError: there is no roster, the campaign is published, or another call issues at this time.
    """
    identities = keyring.identities(campaign_id)
    key = pseudonym_key(keyring, campaign_id)
    try:
        drawn = await database.read(lambda connection: _draw(connection, identities, key, random_bits))
    finally:
        key.wipe()

    def store(connection: Connection) -> Issued:
        # Locking takes effect at once: what was drawn under keys that are gone by now is thrown away.
        keyring.answers(campaign_id)
        keyring.identities(campaign_id)
        return _store(connection, campaign_id, drawn)

    return await database.write(store)


def count_codes(connection: Connection, campaign_id: str) -> int:
    """Pupils who have a code. Needs no keys."""
    return _count(connection, CODES, campaign_id)


def issued_codes(connection: Connection, keys: IdentityKeys) -> Iterator[tuple[int, bytes, Code]]:
    """(place in the roster, pseudonym, code) of every pupil who has one, in the order of the roster.

    Raises:
        IntegrityError: a row was altered or moved.
    """
    for ordinal, content in opened_rows(connection, keys, CODES):
        yield ordinal, content[:PSEUDONYM_BYTES], Code(content[PSEUDONYM_BYTES:].decode("ascii"))


def _draw(connection: Connection, identities: IdentityKeys, key: Secret, random_bits: Callable[[int], int]) -> _Drawn:
    campaign_id = identities.campaign_id
    without = _without_code(connection, campaign_id)
    if _count(connection, IDENTITIES, campaign_id) == 0:
        raise StateError(f"campaign {campaign_id} has no roster; import one: CampaignService.ImportRoster")
    taken = set(connection.execute(select(REGISTRY.c.pseudonym).where(REGISTRY.c.campaign_id == campaign_id)).scalars())
    seal, table = identities.rows.seal, CODES.name
    rows: list[tuple[int, bytes]] = []
    pseudonyms: list[bytes] = []
    for ordinal in without:
        code, pseudonym = _fresh(key, taken, random_bits)
        taken.add(pseudonym)
        pseudonyms.append(pseudonym)
        rows.append((ordinal, seal(table, row_of(ordinal), pseudonym + code.reveal().encode("ascii"))))
    pseudonyms.sort()
    return _Drawn(_count(connection, CODES, campaign_id), rows, pseudonyms)


def _fresh(key: Secret, taken: set[bytes], random_bits: Callable[[int], int]) -> tuple[Code, bytes]:
    """A code whose pseudonym nobody has; one code has one pseudonym, so nobody has the code either."""
    while True:
        code = new_code(random_bits)
        pseudonym = pseudonym_of(key, code)
        if pseudonym not in taken:
            return code, pseudonym


def _store(connection: Connection, campaign_id: str, drawn: _Drawn) -> Issued:
    total = drawn.found + len(drawn.rows)
    if _count(connection, CODES, campaign_id) != drawn.found:
        raise StateError(f"codes of campaign {campaign_id} were issued at the same time; repeat the call")
    if not drawn.rows:
        return Issued(0, total)
    if find(connection, campaign_id).published:
        raise StateError(f"campaign {campaign_id} is published, its codes are fixed; make a new campaign")
    shared = {"campaign_id": campaign_id}
    _insert(connection, CODES, ({**shared, "ordinal": ordinal, "sealed": sealed} for ordinal, sealed in drawn.rows))
    entry = {**shared, "kind": PUPIL, "seats": 0, "status": LIVE}
    _insert(connection, REGISTRY, ({**entry, "pseudonym": pseudonym} for pseudonym in drawn.pseudonyms))
    return Issued(len(drawn.rows), total)


def _insert(connection: Connection, table: Table, rows: Iterable[dict[str, Any]]) -> None:
    waiting = iter(rows)
    while some := list(islice(waiting, ROWS_AT_ONCE)):
        connection.execute(insert(table), some)


def _without_code(connection: Connection, campaign_id: str) -> Sequence[int]:
    having = select(CODES.c.ordinal).where(CODES.c.campaign_id == campaign_id)
    return (
        connection.execute(
            select(IDENTITIES.c.ordinal)
            .where(IDENTITIES.c.campaign_id == campaign_id, IDENTITIES.c.ordinal.not_in(having))
            .order_by(IDENTITIES.c.ordinal)
        )
        .scalars()
        .all()
    )


def _count(connection: Connection, table: Table, campaign_id: str) -> int:
    counted = select(func.count()).select_from(table).where(table.c.campaign_id == campaign_id)
    return connection.execute(counted).scalar_one()

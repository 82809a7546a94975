"""Scripts as they lie in the database: sealed, one row per pseudonym, the losers of conflicts apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import Connection, select

from vault.keyring import AnswerKeys
from vault.scripts import Script, split
from vault.store.landing_tables import SCRIPT_CONFLICTS, SCRIPTS

SCRIPTS_AT_ONCE = 500
"""Scripts (some kilobytes each) read into memory at one time."""


@dataclass(frozen=True, slots=True, repr=False)
class StoredScript:
    """A script, and how many times it has changed since it was first settled (1 at first)."""

    script: Script
    version: int

    def __repr__(self) -> str:
        return f"StoredScript(version {self.version})"


def load_scripts(connection: Connection, keys: AnswerKeys, pseudonyms: Sequence[bytes]) -> dict[bytes, StoredScript]:
    """The scripts of these pseudonyms (at most SCRIPTS_AT_ONCE), of those that have one.

    Raises:
        IntegrityError: a stored script was altered.
    """
    scripts, campaign_id = SCRIPTS.c, keys.campaign_id
    rows = connection.execute(
        select(SCRIPTS).where(scripts.campaign_id == campaign_id, scripts.pseudonym.in_(pseudonyms))
    ).all()
    if not rows:
        return {}
    conflicts = SCRIPT_CONFLICTS.c
    beside = connection.execute(
        select(conflicts.pseudonym, conflicts.sealed).where(
            conflicts.campaign_id == campaign_id, conflicts.pseudonym.in_(pseudonyms)
        )
    )
    sealed_losers = {row.pseudonym: row.sealed for row in beside}
    found: dict[bytes, StoredScript] = {}
    for row in rows:
        kept = split(keys.rows.open(SCRIPTS.name, row.pseudonym, row.sealed))
        losers: list[bytes] = []
        if (sealed := sealed_losers.get(row.pseudonym)) is not None:
            losers = split(keys.rows.open(SCRIPT_CONFLICTS.name, row.pseudonym, sealed))
        script = Script(kept, losers, row.answers, row.digests_agree, row.digests_differ)
        found[row.pseudonym] = StoredScript(script, row.version)
    return found


def load_script(connection: Connection, keys: AnswerKeys, pseudonym: bytes) -> StoredScript | None:
    """The script of one pseudonym; None if nothing of it was settled.

    Raises:
        IntegrityError: the stored script was altered.
    """
    return load_scripts(connection, keys, (pseudonym,)).get(pseudonym)


def all_scripts(connection: Connection, keys: AnswerKeys) -> Iterator[tuple[bytes, list[bytes]]]:
    """(pseudonym, records kept) of every script in ascending order of pseudonym, one in memory at a time.

    Raises:
        IntegrityError: a stored script was altered.
    """
    scripts = SCRIPTS.c
    rows = connection.execute(
        select(scripts.pseudonym, scripts.sealed)
        .where(scripts.campaign_id == keys.campaign_id)
        .order_by(scripts.pseudonym)
    )
    for pseudonym, sealed in rows:
        yield pseudonym, split(keys.rows.open(SCRIPTS.name, pseudonym, sealed))


class OldScripts:
    """The scripts that a partition adds to, read a few hundred at a time.

    `find` may be asked for any of `pseudonyms`, in their order, which is ascending.
    """

    def __init__(self, connection: Connection, keys: AnswerKeys, pseudonyms: Iterable[bytes]) -> None:
        self._connection = connection
        self._keys = keys
        self._due = iter(pseudonyms)
        self._last = b""
        self._found: dict[bytes, StoredScript] = {}

    def find(self, pseudonym: bytes) -> StoredScript | None:
        """The script as it was before this partition."""
        while pseudonym > self._last:
            some = list(islice(self._due, SCRIPTS_AT_ONCE))
            self._last = some[-1]
            self._found = load_scripts(self._connection, self._keys, some)
        return self._found.get(pseudonym)

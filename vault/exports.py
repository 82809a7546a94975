"""Exports: the named files that leave the vault, `results.csv` and `codes.csv`.

A security decision in numbered steps:

1. the person says why, in words that can be read later;
2. both scopes are unlocked;
3. the file can be made whole: every pupil has a code and, for results, all that landed is settled and
   scored;
4. the audit entry is on disk: who, what, why, how many, and sealed, about whom (I12);
5. the bytes, each piece only while both scopes are unlocked still.

What the caller must still do: let nobody in who is not a reporter (pli/rpc/roles.py), and write the
file where only its owner reads it.

A file of a whole country is never held whole: it is made piece by piece as the reader takes it, by a
thread of its own on one snapshot of the database. Names exist in clear in memory only.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from itertools import islice
from typing import TypeVar

from sqlalchemy import Connection, text

from pli.codes import Code
from pli.errors import InputError, StateError
from pli.identity import Peer
from pli.plain_text import has_forbidden_text
from vault.audit import Audit
from vault.campaigns import find
from vault.code_issue import issued_codes
from vault.instrument_store import current_instrument
from vault.keyring import AnswerKeys, IdentityKeys, KeyRing
from vault.results import RESULTS_AT_ONCE, load_results
from vault.results_csv import write_codes, write_results
from vault.roster_store import pupils
from vault.scoring import Result, Scorer
from vault.settlement import is_settled
from vault.store.database import Database, own_errors

T = TypeVar("T")

MIN_PURPOSE_CHARACTERS = 3
"""As the contract says: shorter is no reason."""

MAX_PURPOSE_CHARACTERS = 500
"""A reason, not a report; it stays in the audit log for ever."""

EXPORTS_AT_ONCE = 2
"""Each holds a thread, a snapshot and a database connection for as long as its reader takes."""


class ExportFile(StrEnum):
    """What may leave, by the name under which the audit log has it."""

    RESULTS = "results.csv"
    CODES = "codes.csv"


@dataclass(frozen=True, slots=True, repr=False)
class _Keys:
    answers: AnswerKeys
    identities: IdentityKeys


class Exports:
    """Makes exports. One per vault process."""

    def __init__(self, database: Database, keyring: KeyRing, audit: Audit) -> None:
        self._database = database
        self._keyring = keyring
        self._audit = audit
        self._places = asyncio.Semaphore(EXPORTS_AT_ONCE)

    async def stream(self, actor: Peer, campaign_id: str, file: ExportFile, purpose: str) -> AsyncGenerator[bytes]:
        """The file in pieces of about 64 kB. Close the iterator if it is not read to its end.

        Raises:
            InputError: the purpose is missing, too long, or not plain text.
            NotFound: there is no such campaign.
            VaultLocked: a scope is locked, or was locked meanwhile.
            StateError: codes are missing, or not all that landed is settled.
            IntegrityError: a row was altered, or the audit log is damaged; no name has left then, or
                no further one.
        """
        purpose = checked_purpose(purpose)
        await self._database.read(lambda connection: find(connection, campaign_id))
        keys = self._unlocked(campaign_id)
        async with self._places, _snapshot(self._database) as snapshot:
            count, subjects = await snapshot.run(lambda connection: _check_whole(connection, keys, file))
            await self._audit.record(actor, f"export {file}", campaign_id, purpose, subjects, count)
            pieces = await snapshot.run(lambda connection: _pieces(connection, keys, file))
            while (piece := await snapshot.run(lambda _connection: next(pieces, None))) is not None:
                self._unlocked(campaign_id)
                yield piece

    def _unlocked(self, campaign_id: str) -> _Keys:
        return _Keys(self._keyring.answers(campaign_id), self._keyring.identities(campaign_id))


def checked_purpose(purpose: str) -> str:
    """The purpose without blanks around it.

    Raises:
        InputError: it cannot stand in the audit log as a reason.
    """
    purpose = purpose.strip()
    if not MIN_PURPOSE_CHARACTERS <= len(purpose) <= MAX_PURPOSE_CHARACTERS:
        raise InputError(
            f"an export needs a purpose of {MIN_PURPOSE_CHARACTERS} to {MAX_PURPOSE_CHARACTERS} characters; "
            "say why these names are needed"
        )
    if has_forbidden_text(purpose):
        raise InputError("the purpose holds a control character or a direction override; write it in plain text")
    return purpose


def _check_whole(connection: Connection, keys: _Keys, file: ExportFile) -> tuple[int, bytes]:
    """Step 3. How many pupils there are, and what the audit entry says of them when it is opened."""
    campaign_id = keys.answers.campaign_id
    if file is ExportFile.RESULTS and not is_settled(connection, campaign_id):
        raise StateError(
            f"not all that has landed of campaign {campaign_id} is settled and scored; "
            "settle it first: CampaignService.Settle"
        )
    count, ids = 0, sha256()
    for pupil_id, _, _ in _enrolled(connection, keys.identities):
        count += 1
        ids.update(pupil_id.encode() + b"\n")
    if count == 0:
        raise StateError(f"campaign {campaign_id} has no roster; import one: CampaignService.ImportRoster")
    about = {"pupils": "all of the roster", "sha256_of_pupil_ids": ids.hexdigest()}
    return count, json.dumps(about, sort_keys=True).encode()


def _pieces(connection: Connection, keys: _Keys, file: ExportFile) -> Iterator[bytes]:
    """Step 5."""
    if file is ExportFile.CODES:
        enrolled = _enrolled(connection, keys.identities)
        return write_codes((pupil_id, code.printed()) for pupil_id, _, code in enrolled)
    instrument = current_instrument(connection, keys.answers)
    item_ids = [item.id for item in instrument.items]
    return write_results(_results(connection, keys, Scorer(instrument).score({})), item_ids)


def _results(connection: Connection, keys: _Keys, nothing_given: Result) -> Iterator[tuple[str, Result]]:
    enrolled = _enrolled(connection, keys.identities)
    while some := list(islice(enrolled, RESULTS_AT_ONCE)):
        found = load_results(connection, keys.answers, [pseudonym for _, pseudonym, _ in some])
        for pupil_id, pseudonym, _ in some:
            yield pupil_id, found.get(pseudonym, nothing_given)


def _enrolled(connection: Connection, keys: IdentityKeys) -> Iterator[tuple[str, bytes, Code]]:
    """(pupil id, pseudonym, code) in the order of the roster.

    Raises:
        StateError: a pupil has no code.
    """
    codes = issued_codes(connection, keys)
    for place, pupil in enumerate(pupils(connection, keys)):
        ordinal, pseudonym, code = next(codes, _NO_CODE)
        if ordinal != place:
            raise StateError(
                f"not every pupil of campaign {keys.campaign_id} has a code; issue them: CampaignService.IssueCodes"
            )
        yield pupil.pupil_id, pseudonym, code


_NO_CODE = (-1, b"", Code(""))


class _Snapshot:
    """One read transaction, always worked with by the same thread."""

    def __init__(self, database: Database) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vault-export")
        self._database = database
        self._connection: Connection | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` on the snapshot."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    async def end(self) -> None:
        """Ends the transaction, after what the thread is at."""
        ended = asyncio.get_running_loop().run_in_executor(self._thread, self._end)
        self._thread.shutdown(wait=False)
        await asyncio.shield(ended)

    def _run(self, work: Callable[[Connection], T]) -> T:
        with own_errors():
            if self._connection is None:
                self._connection = self._database.engine.connect()
                self._connection.execute(text("BEGIN"))
            return work(self._connection)

    def _end(self) -> None:
        if self._connection is not None:
            with own_errors(), self._connection as connection:
                connection.rollback()


@asynccontextmanager
async def _snapshot(database: Database) -> AsyncIterator[_Snapshot]:
    snapshot = _Snapshot(database)
    try:
        yield snapshot
    finally:
        await snapshot.end()

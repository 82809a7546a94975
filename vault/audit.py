"""The audit log: who did what to which campaign and why, append-only under a Merkle root.

An entry is canonical JSON. What it says about persons (`subjects`) is sealed under the campaign's
identity key, so that the log can be proved after names are destroyed, and says no name then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import structlog
from sqlalchemy import Connection, insert, select

from pli.errors import IntegrityError, PliError
from pli.identity import Peer
from vault.keyring import KeyRing
from vault.merkle import Frontier, leaf_hash
from vault.store.campaign_tables import AUDIT
from vault.store.database import Database
from vault.store.log_heads import read_head, write_head

LOG = "audit"
WHOLE_VAULT = ""
"""Campaign id of entries, and of the log itself, that belong to no campaign."""

VAULT_ITSELF = Peer("vault", "clock")
"""The actor of what happens by schedule."""

log = structlog.get_logger()


class Audit:
    """Appends entries; each is on disk before the call returns."""

    def __init__(self, database: Database, keyring: KeyRing, clock_ms: Callable[[], int]) -> None:
        self._database = database
        self._keyring = keyring
        self._clock_ms = clock_ms
        self._damage = ""

    async def record(
        self, actor: Peer, action: str, campaign_id: str, purpose: str, subjects: bytes | None, count: int
    ) -> None:
        """Appends one entry; what it permits may happen only after this returned.

        Raises:
            IntegrityError: the log was found damaged: no audit, no name.
            VaultLocked: there are subjects and identities are locked.
        """
        if self._damage:
            raise IntegrityError(self._damage)
        await self._append(actor, action, campaign_id, purpose, subjects, count)

    async def note(self, actor: Peer, action: str, campaign_id: str, purpose: str = "", count: int = 0) -> None:
        """`record` for what lets no name out: a failing log is said aloud and does not stop collection."""
        try:
            await self._append(actor, action, campaign_id, purpose, None, count)
        except (PliError, OSError) as error:
            log.error("audit_failed", action=action, campaign=campaign_id, error=type(error).__name__)

    async def check(self) -> bool:
        """Reads the whole log against its root. False, and no name leaves, if an entry was changed,
        removed or moved.
        """
        try:
            await self._database.read(verify_audit)
        except IntegrityError as error:
            self._damage = error.message
            log.error("audit_damaged", reason=error.reason, why=error.message)
        return not self._damage

    async def _append(
        self, actor: Peer, action: str, campaign_id: str, purpose: str, subjects: bytes | None, count: int
    ) -> None:
        rows = None if subjects is None else self._keyring.identities(campaign_id).rows
        entry = {
            "action": action,
            "actor": actor.name,
            "campaign": campaign_id,
            "count": count,
            "purpose": purpose,
            "role": actor.role,
            "time_ms": self._clock_ms(),
        }

        def append(connection: Connection) -> None:
            head = read_head(connection, WHOLE_VAULT, LOG)
            if rows is not None and subjects is not None:
                entry["subjects"] = rows.seal(LOG, head.size.to_bytes(8, "big"), subjects).hex()
            content = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            connection.execute(insert(AUDIT), {"number": head.size, "entry": content})
            write_head(connection, WHOLE_VAULT, LOG, head.append(content))

        await self._database.write(append)


def read_audit(connection: Connection) -> Iterator[bytes]:
    """All entries in order, as canonical JSON."""
    rows = connection.execute(select(AUDIT.c.number, AUDIT.c.entry).order_by(AUDIT.c.number))
    for expected, row in enumerate(rows):
        # SQLite keeps whatever type a statement wrote: an entry that is no bytes was not written here.
        if row.number != expected or not isinstance(row.entry, bytes):
            raise IntegrityError(f"the audit log has lost entry {expected}: restore the database, and find who did it")
        yield row.entry


def verify_audit(connection: Connection) -> Frontier:
    """The head of the log, proved by all its entries.

    Raises:
        IntegrityError: an entry was changed, removed, inserted or moved.
    """
    stated = read_head(connection, WHOLE_VAULT, LOG)
    found = Frontier().extend(leaf_hash(entry) for entry in read_audit(connection))
    if found != stated:
        raise IntegrityError(
            f"the audit log ({found.size} entries) does not fit its root ({stated.size} entries): "
            "restore the database, and find who changed it"
        )
    return stated

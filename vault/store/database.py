"""The vault's database as the services see it: work handed to threads, one writer.

SQLite in WAL mode with synchronous = FULL: what `write` returned from survives a power loss (NORMAL
may lose committed transactions). PostgreSQL takes the same schema when one machine is outgrown.

What the file or the disk does to us becomes an error of ours here, before any service sees it: callers
are told to keep what they have and to try again.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError, OperationalError

from pli.errors import IntegrityError, VaultUnavailable

T = TypeVar("T")

BUSY_TIMEOUT_MS = 30_000
"""A migration or a long transaction of another process may hold the file that long."""

READERS = 2
"""Settlement reads for long; a second thread keeps short questions answered meanwhile."""

_PRIMARY_CODE = 0xFF
"""SQLite's extended result codes hold the primary one in their lowest byte."""

_TROUBLE = {
    sqlite3.SQLITE_BUSY: "another process holds it: stop that one",
    sqlite3.SQLITE_LOCKED: "another process holds it: stop that one",
    sqlite3.SQLITE_FULL: "its disk is full: free space",
    sqlite3.SQLITE_IOERR: "its disk reports an error: look at the system's log",
    sqlite3.SQLITE_READONLY: "it may only be read: make file and directory writable",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: look at file, directory and open descriptors",
    sqlite3.SQLITE_NOMEM: "memory is exhausted: free some",
}
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def sqlite_engine(path: Path) -> Engine:
    """An engine whose connections are durable (WAL, FULL) and begin transactions explicitly."""
    # Without hide_parameters the text of an error would quote the row that it was about.
    engine = create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA secure_delete = ON")
        cursor.close()

    return engine


@contextmanager
def own_errors() -> Iterator[None]:
    """What the database's file or disk does, as an error of ours; a wrong statement stays what it is.

    Raises:
        VaultUnavailable: locked, full, read-only, I/O: nothing was written, the call may be repeated.
        IntegrityError: the file is damaged.
    """
    try:
        yield
    except (sqlite3.DatabaseError, DatabaseError) as error:
        cause = error.orig if isinstance(error, DatabaseError) else error
        # -1: another database than SQLite, whose operational errors are all of this kind.
        code = getattr(cause, "sqlite_errorcode", -1)
        if code != -1:
            code &= _PRIMARY_CODE
        if code in _DAMAGE:
            raise IntegrityError("the vault's database is damaged; stop the vault and restore a backup") from error
        if code in _TROUBLE or (code == -1 and isinstance(error, OperationalError)):
            why = _TROUBLE.get(code, "it does not answer")
            raise VaultUnavailable(f"the vault's database cannot be used, {why}; then repeat") from error
        raise


class Database:
    """Runs functions of a connection in threads; a function that raises leaves nothing behind.

    `failing` says why the last write did not succeed; empty when it did.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failing = ""
        self._closed = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="vault-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="vault-read")

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one transaction (BEGIN IMMEDIATE), alone, and returns once it is on disk.

        Raises:
            VaultUnavailable: the file cannot be written now; nothing was.
        """
        return await self._run(self._writer, self.write_now, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` on a consistent snapshot.

        Raises:
            VaultUnavailable: the file cannot be read now.
        """
        return await self._run(self._readers, self.read_now, work)

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """`write`, for a caller that is in a thread already."""
        try:
            with own_errors(), self.engine.connect() as connection:
                connection.execute(text("BEGIN IMMEDIATE"))
                try:
                    result = work(connection)
                except BaseException:
                    connection.rollback()
                    raise
                connection.commit()
        except VaultUnavailable as error:
            self.failing = error.message
            raise
        self.failing = ""
        return result

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """`read`, for a caller that is in a thread already."""
        with own_errors(), self.engine.connect() as connection:
            connection.execute(text("BEGIN"))
            try:
                return work(connection)
            finally:
                connection.rollback()

    def close(self) -> None:
        """Waits for running work, then closes the file. Later calls are refused."""
        self._closed = True
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self.engine.dispose()

    async def _run(
        self, threads: Executor, run: Callable[[Callable[[Connection], T]], T], work: Callable[[Connection], T]
    ) -> T:
        if self._closed:
            raise VaultUnavailable("the vault is stopping; repeat when it runs again")
        return await asyncio.get_running_loop().run_in_executor(threads, run, work)

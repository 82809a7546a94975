"""The vault's database as the services see it: work handed to threads, one writer.

SQLite in WAL mode with synchronous = FULL: what `write` returned from survives a power loss (NORMAL
may lose committed transactions). PostgreSQL takes the same schema when one machine is outgrown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text

T = TypeVar("T")

BUSY_TIMEOUT_MS = 30_000
"""A migration or a long transaction of another process may hold the file that long."""

READERS = 2
"""Settlement reads for long; a second thread keeps short questions answered meanwhile."""


def sqlite_engine(path: Path) -> Engine:
    """An engine whose connections are durable (WAL, FULL) and begin transactions explicitly."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False})

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


class Database:
    """Runs functions of a connection in threads; a function that raises leaves nothing behind."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="vault-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="vault-read")

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one transaction (BEGIN IMMEDIATE), alone, and returns once it is on disk."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self.write_now, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` on a consistent snapshot."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_now, work)

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """`write`, for a caller that is in a thread already."""
        with self.engine.connect() as connection:
            connection.execute(text("BEGIN IMMEDIATE"))
            try:
                result = work(connection)
            except BaseException:
                connection.rollback()
                raise
            connection.commit()
            return result

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """`read`, for a caller that is in a thread already."""
        with self.engine.connect() as connection:
            connection.execute(text("BEGIN"))
            try:
                return work(connection)
            finally:
                connection.rollback()

    def close(self) -> None:
        """Waits for running work, then closes the file."""
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self.engine.dispose()

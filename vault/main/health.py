"""Health: SERVING while the database can be read and written, NOT_SERVING as soon as it cannot."""

from __future__ import annotations

import asyncio

import structlog
from sqlalchemy import Connection, text

from pli.errors import PliError
from pli.rpc.server import Health
from vault.store.database import Database

log = structlog.get_logger()

_PROBE = "SELECT version_num FROM alembic_version"
_TOUCH = "UPDATE alembic_version SET version_num = version_num"
"""Writes a page without changing it: where the disk is full, this fails like any other write."""


class DatabaseWatch:
    """Looks at the database and says what it sees. `look` before the process is ready, then `run`."""

    def __init__(self, database: Database, health: Health, every_ms: int) -> None:
        self._database = database
        self._health = health
        self._every_ms = every_ms
        self._why = ""

    async def look(self) -> None:
        """Reads; and, where the last write of anybody failed, tries to write."""
        why = ""
        try:
            await self._database.read(lambda connection: _run(connection, _PROBE))
            if self._database.failing:
                await self._database.write(lambda connection: _run(connection, _TOUCH))
        except PliError as error:
            why = error.message
        if why != self._why:
            log.error("database_unusable", why=why) if why else log.info("database_usable")
        self._why = why
        await self._health.set(serving=not why)

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await asyncio.sleep(self._every_ms / 1000)
            await self.look()


def _run(connection: Connection, statement: str) -> None:
    connection.execute(text(statement))

"""The database: durable settings, whole transactions, and migrations that make exactly this version's tables."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, select, text

from pli.errors import ConfigError, IntegrityError, VaultUnavailable
from vault.store import campaign_tables, landing_tables
from vault.store.database import Database, sqlite_engine
from vault.store.metadata import METADATA
from vault.store.migrate import upgrade

TABLE_MODULES = (campaign_tables, landing_tables)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(sqlite_engine(tmp_path / "vault.sqlite3"))
    upgrade(database.engine)
    yield database
    database.close()


def put(connection: Connection, number: int) -> None:
    connection.execute(text("INSERT INTO receipt_counter (id, last) VALUES (:number, 0)"), {"number": number})


def numbers(connection: Connection) -> list[int]:
    return list(connection.execute(text("SELECT id FROM receipt_counter ORDER BY id")).scalars())


# Migrations


def schema(path: Path) -> dict[str, str]:
    """Every table and index as SQLite was told to make it, blanks and quotes aside."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {name: re.sub(r'[\s"]+', " ", sql).replace(" ,", ",").strip() for name, sql in rows}


def test_migrations_add_up_to_the_tables_that_the_code_works_with(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, METADATA) == []


def test_migrations_make_the_very_statements_that_the_code_would(database: Database, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'made.sqlite3'}")
    METADATA.create_all(engine)
    engine.dispose()
    migrated = schema(tmp_path / "vault.sqlite3")
    assert migrated.pop("alembic_version")
    assert migrated == schema(tmp_path / "made.sqlite3")


def test_a_database_that_is_up_to_date_is_left_alone(database: Database, tmp_path: Path) -> None:
    database.write_now(lambda connection: put(connection, 1))
    before = schema(tmp_path / "vault.sqlite3")
    upgrade(database.engine)
    assert schema(tmp_path / "vault.sqlite3") == before
    assert database.read_now(numbers) == [1]


def test_a_database_of_a_newer_version_is_refused_and_left_alone(database: Database, tmp_path: Path) -> None:
    database.write_now(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(ConfigError, match="newer version"):
        upgrade(database.engine)
    assert "scripts" in schema(tmp_path / "vault.sqlite3")


# Transactions


def test_every_connection_waits_for_the_disk(database: Database) -> None:
    def pragmas(connection: Connection) -> list[object]:
        return [
            connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        ]

    full = 2
    assert database.read_now(pragmas) == ["wal", full, 1, 1]


async def test_what_write_returned_from_is_seen_by_another_process(database: Database, tmp_path: Path) -> None:
    await database.write(lambda connection: put(connection, 1))
    other = sqlite3.connect(tmp_path / "vault.sqlite3")
    assert other.execute("SELECT id FROM receipt_counter").fetchall() == [(1,)]
    other.close()


async def test_a_function_that_raises_leaves_nothing_behind(database: Database) -> None:
    def half(connection: Connection) -> None:
        put(connection, 1)
        raise ArithmeticError("in the middle")

    with pytest.raises(ArithmeticError):
        await database.write(half)
    assert await database.read(numbers) == []
    await database.write(lambda connection: put(connection, 2))
    assert await database.read(numbers) == [2]


async def test_a_read_sees_one_moment_however_long_it_takes(database: Database) -> None:
    reading, written = threading.Event(), threading.Event()

    def read_twice(connection: Connection) -> tuple[list[int], list[int]]:
        before = numbers(connection)
        reading.set()
        assert written.wait(10)
        return before, numbers(connection)

    read = asyncio.create_task(database.read(read_twice))
    assert await asyncio.to_thread(reading.wait, 10)
    await database.write(lambda connection: put(connection, 1))
    written.set()
    assert await read == ([], [])
    assert await database.read(numbers) == [1]


async def test_a_read_cannot_keep_what_it_wrote(database: Database) -> None:
    await database.read(lambda connection: put(connection, 1))
    assert await database.read(numbers) == []


async def test_writes_come_one_after_another(database: Database) -> None:
    inside, most = 0, 0

    def write(connection: Connection, number: int) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        put(connection, number)
        inside -= 1

    await asyncio.gather(*(database.write(partial(write, number=number)) for number in range(20)))
    assert most == 1
    assert await database.read(numbers) == list(range(20))


async def test_a_database_that_another_process_holds_is_unavailable_and_recovers(
    database: Database, tmp_path: Path
) -> None:
    def impatient(connection: Connection) -> None:
        connection.execute(text("PRAGMA busy_timeout = 1"))

    database.read_now(impatient)
    other = sqlite3.connect(tmp_path / "vault.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(VaultUnavailable, match="another process"):
        await database.write(lambda connection: put(connection, 1))
    assert "another process" in database.failing
    other.execute("ROLLBACK")
    other.close()
    await database.write(lambda connection: put(connection, 1))
    assert database.failing == ""


async def test_a_damaged_file_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "vault.sqlite3"
    path.write_bytes(b"not a database, but longer than a header of one" * 50)
    database = Database(sqlite_engine(path))
    with pytest.raises(IntegrityError, match="damaged"):
        await database.read(numbers)
    database.close()


async def test_a_closed_database_takes_no_more_work(database: Database) -> None:
    database.close()
    with pytest.raises(VaultUnavailable, match="stopping"):
        await database.read(lambda connection: connection.execute(select(1)).scalar_one())


def test_an_error_of_a_statement_quotes_no_row(database: Database) -> None:
    def twice(connection: Connection) -> None:
        for _ in range(2):
            connection.execute(
                text("INSERT INTO audit (number, entry) VALUES (:number, :entry)"),
                {"number": 1, "entry": b"MARKER-OF-A-NAME"},
            )

    with pytest.raises(Exception, match="UNIQUE") as caught:
        database.write_now(twice)
    assert "MARKER" not in str(caught.value)

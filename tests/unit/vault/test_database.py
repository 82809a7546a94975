"""What the database's file and disk do to the vault becomes an error of pli's, and nothing else does."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import IntegrityError as ConstraintError
from sqlalchemy.exc import OperationalError

from pli.errors import IntegrityError, StateError, VaultUnavailable
from vault.store.database import Database, sqlite_engine

SECRET = "Nadia Fernández"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vault.sqlite3"


@pytest.fixture
def database(file: Path) -> Iterator[Database]:
    database = Database(sqlite_engine(file))
    database.write_now(lambda connection: connection.execute(text("CREATE TABLE t (name TEXT PRIMARY KEY)")))
    yield database
    database.close()


def insert(connection: Connection, name: str = SECRET) -> None:
    connection.execute(text("INSERT INTO t (name) VALUES (:name)"), {"name": name})


def count(database: Database) -> int:
    return int(database.read_now(lambda connection: connection.execute(text("SELECT count(*) FROM t")).scalar_one()))


def impatient(connection: Any, _record: object, _proxy: object) -> None:
    """Waits for a lock no longer than a moment, where a vault waits for half a minute."""
    connection.execute("PRAGMA busy_timeout = 10")


async def test_a_file_that_another_process_holds_is_unavailable(database: Database, file: Path) -> None:
    event.listen(database.engine, "checkout", impatient)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(VaultUnavailable, match="another process holds it: stop that one; then repeat"):
            await database.write(insert)
        assert "another process" in database.failing
        assert count(database) == 0
        other.execute("ROLLBACK")
    await database.write(insert)
    assert (database.failing, count(database)) == ("", 1)


async def test_a_damaged_file_is_an_integrity_error_and_not_empty(tmp_path: Path) -> None:
    file = tmp_path / "damaged.sqlite3"
    file.write_bytes(b"this is text and no database" * 100)
    database = Database(sqlite_engine(file))
    with pytest.raises(IntegrityError, match="is damaged; stop the vault and restore a backup"):
        await database.read(lambda connection: connection.execute(text("SELECT 1")))
    database.close()


async def test_a_directory_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    database = Database(sqlite_engine(tmp_path / "nowhere" / "vault.sqlite3"))
    with pytest.raises(VaultUnavailable, match="it cannot be opened"):
        await database.write(insert)
    database.close()


async def test_a_wrong_statement_and_a_broken_rule_stay_what_they_are(database: Database) -> None:
    with pytest.raises(OperationalError):
        await database.read(lambda connection: connection.execute(text("SELECT * FROM nothing")))
    await database.write(insert)
    with pytest.raises(ConstraintError):
        await database.write(insert)
    assert database.failing == ""


async def test_no_error_of_the_database_quotes_a_row(database: Database) -> None:
    await database.write(insert)
    with pytest.raises(ConstraintError) as broken:
        await database.write(insert)
    assert SECRET not in f"{broken.value!s} {broken.value!r}"


async def test_work_that_fails_leaves_nothing_and_the_database_well(database: Database) -> None:
    def half_done(connection: Connection) -> None:
        insert(connection)
        raise StateError("no")

    with pytest.raises(StateError):
        await database.write(half_done)
    assert (database.failing, count(database)) == ("", 0)


async def test_a_closed_database_is_unavailable(file: Path) -> None:
    database = Database(sqlite_engine(file))
    database.close()
    with pytest.raises(VaultUnavailable, match="the vault is stopping"):
        await database.write(insert)
    with pytest.raises(VaultUnavailable, match="the vault is stopping"):
        await database.read(insert)

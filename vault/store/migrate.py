"""Brings a database to the schema that this version of the vault works with."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from pli.errors import ConfigError

SCRIPTS = Path(__file__).parent / "migrations"


def upgrade(engine: Engine) -> None:
    """Applies what is missing, all of it in one transaction or nothing.

    Raises:
        ConfigError: the database was written by a newer version of pli.
    """
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    with engine.connect() as connection:
        connection.execute(text("BEGIN IMMEDIATE"))
        present = MigrationContext.configure(connection).get_current_heads()
        if not known.issuperset(present):
            raise ConfigError(
                f"the database is of a newer version of pli (schema {', '.join(present)}); "
                "start that version, or restore a backup made by this one"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()

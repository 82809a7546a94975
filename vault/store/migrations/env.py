"""Run by Alembic: applies the scripts on the connection that vault/store/migrate.py hands over."""

from __future__ import annotations

from alembic import context

from vault.store import campaign_tables, landing_tables
from vault.store.metadata import METADATA

# Importing the table modules fills the metadata that autogeneration compares with.
TABLE_MODULES = (campaign_tables, landing_tables)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite changes a column by copying the table.
    render_as_batch=True,
)
context.run_migrations()

"""Alembic scripts: the history of the vault's schema, oldest first."""

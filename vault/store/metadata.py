"""The one collection of tables that Alembic's scripts must add up to."""

from __future__ import annotations

from sqlalchemy import MetaData

METADATA = MetaData()
"""Filled by vault/store/*_tables.py when they are imported."""

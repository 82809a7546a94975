"""The landing log, settlement's progress and counts, scripts and results.

There is no way back: an older version of pli gets a backup of its own time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Creates the tables of vault/store/landing_tables.py."""
    op.create_table(
        "closings",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("shard", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("closing", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "shard"),
    )
    op.create_table(
        "deposit_receipts",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "number"),
    )
    op.create_table(
        "epoch_headers",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("epoch_id", sa.LargeBinary(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("process_id", sa.LargeBinary(), nullable=False),
        sa.Column("previous_epoch", sa.LargeBinary(), nullable=False),
        sa.Column("previous_last", sa.BigInteger(), nullable=False),
        sa.Column("started_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("header", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "epoch_id"),
    )
    op.create_table(
        "landed_blocks",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("block", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "position"),
    )
    op.create_table(
        "landing_conflicts",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("epoch_id", sa.LargeBinary(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("block", sa.LargeBinary(), nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "digest"),
    )
    op.create_table(
        "landing_log",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("epoch_id", sa.LargeBinary(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "position"),
        sa.UniqueConstraint("campaign_id", "epoch_id", "number", name="landing_log_once"),
    )
    op.create_table(
        "landing_totals",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("blocks", sa.BigInteger(), nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.Column("conflict_records", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id"),
    )
    op.create_table(
        "quarantine",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("received_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "digest"),
    )
    op.create_table(
        "receipt_counter",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "results",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("pseudonym", sa.LargeBinary(), nullable=False),
        sa.Column("script_version", sa.Integer(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "pseudonym"),
    )
    op.create_index("results_versions", "results", ["campaign_id", "pseudonym", "script_version"])
    op.create_table(
        "script_conflicts",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("pseudonym", sa.LargeBinary(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "pseudonym"),
    )
    op.create_table(
        "scripts",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("pseudonym", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("answers", sa.Integer(), nullable=False),
        sa.Column("digests_agree", sa.Integer(), nullable=False),
        sa.Column("digests_differ", sa.Integer(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "pseudonym"),
    )
    op.create_index("scripts_versions", "scripts", ["campaign_id", "pseudonym", "version"])
    op.create_table(
        "settlement_counts",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("settled", sa.BigInteger(), nullable=False),
        sa.Column("duplicate", sa.BigInteger(), nullable=False),
        sa.Column("conflict", sa.BigInteger(), nullable=False),
        sa.Column("quarantined", sa.BigInteger(), nullable=False),
        sa.Column("scripts", sa.BigInteger(), nullable=False),
        sa.Column("answers", sa.BigInteger(), nullable=False),
        sa.Column("digests_agree", sa.BigInteger(), nullable=False),
        sa.Column("digests_differ", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id"),
    )
    op.create_table(
        "settlement_progress",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("epoch_id", sa.LargeBinary(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("contiguous", sa.BigInteger(), nullable=False),
        sa.Column("extras", sa.LargeBinary(), nullable=False),
        sa.Column("target_contiguous", sa.BigInteger(), nullable=False),
        sa.Column("target_extras", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "epoch_id"),
    )
    op.create_table(
        "settlement_runs",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("partitions", sa.Integer(), nullable=False),
        sa.Column("next_partition", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id"),
    )

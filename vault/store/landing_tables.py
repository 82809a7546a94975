"""Tables of what has landed and what settlement made of it.

In clear are pseudonyms, counts, places of blocks and hashes of sealed bytes; never a hash of an
answer. Columns named `sealed` hold what `vault.rows.RowCipher` made, `block` and `header` what nodes
sealed. Every table but `receipt_counter` belongs to campaigns and has `campaign_id` first.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, Table, Text, UniqueConstraint

from vault.store.metadata import METADATA

EPOCH_HEADERS = Table(
    "epoch_headers",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("epoch_id", LargeBinary, primary_key=True),
    Column("shard", Integer, nullable=False),
    Column("process_id", LargeBinary, nullable=False),
    Column("previous_epoch", LargeBinary, nullable=False),
    Column("previous_last", BigInteger, nullable=False),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("header", LargeBinary, nullable=False),
)
"""Headers that passed every check. Their epoch keys are inside, sealed to the answer key."""

LANDING_LOG = Table(
    "landing_log",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("shard", Integer, nullable=False),
    Column("epoch_id", LargeBinary, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("records", Integer, nullable=False),
    UniqueConstraint("campaign_id", "epoch_id", "number", name="landing_log_once"),
)
"""Append-only. `position` counts from 0 and is the leaf's place in the Merkle tree, nothing else."""

LANDED_BLOCKS = Table(
    "landed_blocks",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("block", LargeBinary, nullable=False),
)
"""The bytes of the log's blocks, apart so that questions about the log do not read gigabytes."""

LANDING_CONFLICTS = Table(
    "landing_conflicts",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    Column("shard", Integer, nullable=False),
    Column("epoch_id", LargeBinary, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("records", Integer, nullable=False),
    Column("block", LargeBinary, nullable=False),
    Column("run", BigInteger, nullable=False),
)
"""Authentic blocks beside another one of the same epoch and number. `run` is the settlement run that
took their records, 0 before."""

LANDING_TOTALS = Table(
    "landing_totals",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("blocks", BigInteger, nullable=False),
    Column("records", BigInteger, nullable=False),
    Column("conflict_records", BigInteger, nullable=False),
)
"""Sums of the log, and of the conflicts beside it. Its Merkle head is in `log_heads`."""

QUARANTINE = Table(
    "quarantine",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("shard", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("received_at_ms", BigInteger, nullable=False),
    Column("content", LargeBinary, nullable=False),
)
"""What did not authenticate: `kind` is block, header or closing. Kept for examination."""

CLOSINGS = Table(
    "closings",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("closing", LargeBinary, nullable=False),
)
"""The frozen table of epochs of each shard (pli/closings.py), the first one that came."""

DEPOSIT_RECEIPTS = Table(
    "deposit_receipts",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)
"""Every receipt as it was signed."""

RECEIPT_COUNTER = Table(
    "receipt_counter",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
)
"""One row (id 1): the number of the last receipt of this vault, whatever the campaign."""

SETTLEMENT_PROGRESS = Table(
    "settlement_progress",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("epoch_id", LargeBinary, primary_key=True),
    Column("shard", Integer, nullable=False),
    Column("contiguous", BigInteger, nullable=False),
    Column("extras", LargeBinary, nullable=False),
    Column("target_contiguous", BigInteger, nullable=False),
    Column("target_extras", LargeBinary, nullable=False),
)
"""Which blocks are settled, and which the running settlement will have settled: 1 … contiguous, and
extras beyond (8 bytes each, big-endian)."""

SETTLEMENT_RUNS = Table(
    "settlement_runs",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("run", BigInteger, nullable=False),
    Column("partitions", Integer, nullable=False),
    Column("next_partition", Integer, nullable=False),
)
"""The last run. While `next_partition` is below `partitions` it is under way, or was cut off there."""

SETTLEMENT_COUNTS = Table(
    "settlement_counts",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("settled", BigInteger, nullable=False),
    Column("duplicate", BigInteger, nullable=False),
    Column("conflict", BigInteger, nullable=False),
    Column("quarantined", BigInteger, nullable=False),
    Column("scripts", BigInteger, nullable=False),
    Column("answers", BigInteger, nullable=False),
    Column("digests_agree", BigInteger, nullable=False),
    Column("digests_differ", BigInteger, nullable=False),
)
"""Sums over partitions; all of records but `scripts` and the digests."""

SCRIPTS = Table(
    "scripts",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("pseudonym", LargeBinary, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("records", Integer, nullable=False),
    Column("answers", Integer, nullable=False),
    Column("digests_agree", Integer, nullable=False),
    Column("digests_differ", Integer, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Index("scripts_versions", "campaign_id", "pseudonym", "version"),
)
"""One script per pseudonym (vault/scripts.py). The index answers what is to be scored without reading
the scripts themselves."""

SCRIPT_CONFLICTS = Table(
    "script_conflicts",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("pseudonym", LargeBinary, primary_key=True),
    Column("records", Integer, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)
"""Records of the same place with other content than the one in the script: the losers, kept."""

RESULTS = Table(
    "results",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("pseudonym", LargeBinary, primary_key=True),
    Column("script_version", Integer, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Index("results_versions", "campaign_id", "pseudonym", "script_version"),
)
"""One result per script (vault/results.py), of the version it was scored from."""

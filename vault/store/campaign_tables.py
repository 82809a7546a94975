"""Tables of campaigns, identities, codes and audit.

Columns named `sealed` hold `RowCipher` output. In clear stand pseudonyms, counts, states and times,
and nothing that leads to a person: rows that tie a pupil to a code are sealed under the identity
key, and `registry` is stored in the order of pseudonyms so that no row number ties them either.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Integer, LargeBinary, PrimaryKeyConstraint, Table, Text

from vault.store.metadata import METADATA

CAMPAIGNS = Table(
    "campaigns",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("title", Text, nullable=False),
    Column("rehearsal", Boolean, nullable=False),
    Column("shards", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("node_authorities_pem", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    # The published bundle, signed (pli.vault.v1.Signed); version 0 and empty before publication.
    Column("bundle_version", BigInteger, nullable=False),
    Column("bundle", LargeBinary, nullable=False),
    # Highest version that a relay reported as loaded in every shard.
    Column("bundle_loaded", BigInteger, nullable=False),
    # The last order about the window, signed (pli.vault.v1.Signed); empty before publication.
    Column("window_version", BigInteger, nullable=False),
    Column("window_order", LargeBinary, nullable=False),
)

SHARDS = Table(
    "shards",
    METADATA,
    Column("campaign_id", Text, nullable=False),
    Column("shard", Integer, nullable=False),
    # The identity of the store that was adopted first; empty before.
    Column("marker", LargeBinary, nullable=False),
    # What the relay said last.
    Column("reported_marker", LargeBinary, nullable=False),
    Column("window_version", BigInteger, nullable=False),
    Column("blocks_waiting", BigInteger, nullable=False),
    Column("closed", Boolean, nullable=False),
    Column("reported_at_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("campaign_id", "shard"),
)

TRANSITIONS = Table(
    "transitions",
    METADATA,
    Column("campaign_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("from_state", Text, nullable=False),
    Column("to_state", Text, nullable=False),
    # Arguments of the step, JSON: whatever carrying it out after a crash needs.
    Column("terms", Text, nullable=False),
    Column("intended_at_ms", BigInteger, nullable=False),
    # Empty until the step is complete.
    Column("done_at_ms", BigInteger, nullable=True),
    PrimaryKeyConstraint("campaign_id", "number"),
)

ROSTERS = Table(
    "rosters",
    METADATA,
    Column("campaign_id", Text, primary_key=True),
    Column("pupils", Integer, nullable=False),
    Column("classes", Integer, nullable=False),
    Column("schools", Integer, nullable=False),
    # SHA-256 of the file, sealed under the identity key: tells a repeated import from another file.
    Column("sealed", LargeBinary, nullable=False),
)

IDENTITIES = Table(
    "identities",
    METADATA,
    Column("campaign_id", Text, nullable=False),
    # Position in the roster, from 0.
    Column("ordinal", Integer, nullable=False),
    # The pupil, sealed under the identity key.
    Column("sealed", LargeBinary, nullable=False),
    PrimaryKeyConstraint("campaign_id", "ordinal"),
    sqlite_with_rowid=False,
)

CODES = Table(
    "codes",
    METADATA,
    Column("campaign_id", Text, nullable=False),
    # The pupil's position in the roster.
    Column("ordinal", Integer, nullable=False),
    # Pseudonym and code, sealed under the identity key.
    Column("sealed", LargeBinary, nullable=False),
    PrimaryKeyConstraint("campaign_id", "ordinal"),
    sqlite_with_rowid=False,
)

REGISTRY = Table(
    "registry",
    METADATA,
    Column("campaign_id", Text, nullable=False),
    Column("pseudonym", LargeBinary, nullable=False),
    # 1 pupil, 2 class, 3 reserve.
    Column("kind", Integer, nullable=False),
    Column("seats", Integer, nullable=False),
    # 1 live, 2 revoked.
    Column("status", Integer, nullable=False),
    PrimaryKeyConstraint("campaign_id", "pseudonym"),
    sqlite_with_rowid=False,
)

INSTRUMENTS = Table(
    "instruments",
    METADATA,
    Column("campaign_id", Text, nullable=False),
    # 1, 2, 3 … in the order they were put; the highest is in force.
    Column("number", Integer, nullable=False),
    # The version that the file names.
    Column("version", Text, nullable=False),
    # File name and content with all keys, sealed under the campaign's answer scope.
    Column("sealed", LargeBinary, nullable=False),
    PrimaryKeyConstraint("campaign_id", "number"),
)

LOG_HEADS = Table(
    "log_heads",
    METADATA,
    # Empty for a log of the whole vault.
    Column("campaign_id", Text, nullable=False),
    Column("log", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("frontier", LargeBinary, nullable=False),
    PrimaryKeyConstraint("campaign_id", "log"),
)

AUDIT = Table(
    "audit",
    METADATA,
    # 0, 1, 2 …: the index in the Merkle log.
    Column("number", Integer, primary_key=True, autoincrement=False),
    # Canonical JSON; the leaf of the log is its hash.
    Column("entry", LargeBinary, nullable=False),
)

"""The registry: which pseudonyms this vault has issued codes for, and of what kind.

The platform's copy of it is a hint for speed; settlement asks this one (DESIGN 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct

from sqlalchemy import Connection, select

from vault.store.campaign_tables import REGISTRY

PUPIL, CLASS, RESERVE = 1, 2, 3
"""`RegistryEntry.kind`. Only a class code has seats."""

LIVE, REVOKED = 1, 2
"""`RegistryEntry.status`."""

ENTRY = Struct(">16sBHB")
"""pseudonym, kind, seats, status: an entry of RegistryChunk (protos/pli/vault/v1/bundle.proto), 20 bytes."""

CHUNK_ENTRIES = 50_000
"""A chunk of 1 MB, within the 1 MiB that RegistryChunk allows."""

NAMES_AT_ONCE = 500
"""Parameters of one statement; SQLite takes 32 766, and more bring nothing."""


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """What the vault issued a code as."""

    kind: int
    seats: int
    status: int


def known_pseudonyms(
    connection: Connection, campaign_id: str, pseudonyms: Sequence[bytes]
) -> dict[bytes, RegistryEntry]:
    """The entries of those of the given pseudonyms that belong to a code of this vault."""
    registry = REGISTRY.c
    found: dict[bytes, RegistryEntry] = {}
    for start in range(0, len(pseudonyms), NAMES_AT_ONCE):
        rows = connection.execute(
            select(registry.pseudonym, registry.kind, registry.seats, registry.status).where(
                registry.campaign_id == campaign_id,
                registry.pseudonym.in_(pseudonyms[start : start + NAMES_AT_ONCE]),
            )
        )
        for pseudonym, kind, seats, status in rows:
            found[pseudonym] = RegistryEntry(kind, seats, status)
    return found


def registry_chunks(connection: Connection, campaign_id: str) -> Iterator[bytes]:
    """The registry as RegistryChunk wants it: whole 20-byte entries in ascending order of pseudonym.

    Every chunk has between 1 and CHUNK_ENTRIES of them.
    """
    registry = REGISTRY.c
    rows = connection.execute(
        select(registry.pseudonym, registry.kind, registry.seats, registry.status)
        .where(registry.campaign_id == campaign_id)
        .order_by(registry.pseudonym)
    )
    for some in rows.partitions(CHUNK_ENTRIES):
        yield b"".join([ENTRY.pack(*row) for row in some])

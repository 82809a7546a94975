"""The relay's client of the spool: blocks out, bundle and window in. It cannot write a cursor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from pli.errors import SpoolUnsafe
from pli.pseudonym import PSEUDONYM_BYTES
from server.store.keys import GROUP, ShardKeys
from server.store.spool import asked, library_source

REGISTRY_BATCH = 5_000
"""Entries per HSET: about 150 kB, a millisecond of the store."""

CLOSING = b"closing"
"""In place of a digest, for the frozen table of epochs."""

CLOSED_PHASE = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the Redis stream: a block, or the closing."""

    entry_id: bytes
    epoch_id: bytes
    number: int
    digest: bytes
    block: bytes
    header: bytes
    closing: bytes

    @property
    def size(self) -> int:
        """Bytes it adds to a deposit."""
        return len(self.block) + len(self.header) + len(self.closing)


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What the relay reports about a shard."""

    marker: bytes
    window_version: int
    waiting: int
    closed: bool


class RelaySpool:
    """One shard, as a relay may use it."""

    def __init__(self, redis: Redis, keys: ShardKeys, consumer: str) -> None:
        self._call = cast(Callable[..., Awaitable[Any]], redis.execute_command)
        self.keys = keys
        self._consumer = consumer

    async def load_functions(self) -> None:
        """Installs the library and the consumer group; harmless when repeated."""
        await asked(self._call("FUNCTION LOAD", "REPLACE", library_source()))
        try:
            await asked(self._call("XGROUP CREATE", self.keys.spool, GROUP, "0", "MKSTREAM"))
        except SpoolUnsafe as error:
            if "BUSYGROUP" not in error.message:
                raise

    async def read_own_pending(self, after: bytes, count: int) -> list[Entry]:
        """What this relay took and did not remove, from `after` (exclusive) on."""
        reply = await asked(
            self._call("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", count, "STREAMS", self.keys.spool, after)
        )
        return _entries(reply)

    async def read_new(self, count: int, block_ms: int) -> list[Entry]:
        """What nobody took yet; waits up to `block_ms` for the first."""
        reply = await asked(
            self._call(
                "XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", count, "BLOCK", block_ms,
                "STREAMS", self.keys.spool, ">",
            )
        )  # fmt: skip
        return _entries(reply)

    async def claim(self, idle_ms: int, count: int) -> list[Entry]:
        """Takes over what another relay took and left for so long."""
        reply = await asked(
            self._call("XAUTOCLAIM", self.keys.spool, GROUP, self._consumer, idle_ms, "0-0", "COUNT", count)
        )
        return [entry for entry in (_entry(*row) for row in reply[1]) if entry is not None]

    async def remove(self, entries: Iterable[Entry]) -> int:
        """Removes what a verified receipt names; how many were there."""
        pairs = [part for e in entries for part in (e.entry_id, CLOSING if e.closing else e.digest)]
        return int(await asked(self._call("FCALL", "pli_remove", 1, self.keys.spool, GROUP, *pairs))) if pairs else 0

    async def header(self, epoch_id: bytes) -> bytes:
        """An epoch's header, as it was first committed; empty when unknown."""
        return bytes(await asked(self._call("HGET", self.keys.headers, epoch_id)) or b"")

    async def facts(self) -> ShardFacts:
        """Marker, window and length of the shard."""
        marker = await asked(self._call("GET", self.keys.marker))
        version, phase = await asked(self._call("HMGET", self.keys.window, "version", "phase"))
        waiting = await asked(self._call("XLEN", self.keys.spool))
        return ShardFacts(bytes(marker or b""), int(version or 0), int(waiting), int(phase or 0) == CLOSED_PHASE)

    async def oldest_ms(self) -> int | None:
        """When the oldest waiting entry was written, by the store's clock; None when none waits."""
        entry_id = await asked(self._call("FCALL", "pli_oldest", 1, self.keys.spool))
        return int(bytes(entry_id).split(b"-")[0]) if entry_id else None

    async def adopt(self, marker: bytes) -> bytes:
        """Gives a store without identity one; returns the one it has."""
        await asked(self._call("SET", self.keys.marker, marker, "NX"))
        return bytes(await asked(self._call("GET", self.keys.marker)))

    async def put_registry(self, entries: Sequence[bytes]) -> None:
        """Writes registry rows (pseudonym 16 | kind | seats | status)."""
        for at in range(0, len(entries), REGISTRY_BATCH):
            row: list[bytes] = []
            for entry in entries[at : at + REGISTRY_BATCH]:
                row += (entry[:PSEUDONYM_BYTES], entry[PSEUDONYM_BYTES:])
            await asked(self._call("HSET", self.keys.registry, *row))

    async def put_bundle(self, signed: bytes, version: int) -> None:
        """Marks the bundle as loaded in this shard: the last step of loading."""
        await asked(self._call("SET", self.keys.bundle, signed))
        await asked(self._call("SET", self.keys.loaded, version))

    async def loaded_version(self) -> int:
        """Version of the bundle that is loaded here; 0 when none."""
        return int(await asked(self._call("GET", self.keys.loaded)) or 0)

    async def set_window(self, version: int, phase: int, opens: int, closes: int, grace: int) -> int:
        """Applies an order of the vault; returns the version that holds now."""
        return int(
            await asked(
                self._call("FCALL", "pli_set_window", 1, self.keys.window, version, phase, opens, closes, grace)
            )
        )

    async def close_window(self, version: int) -> None:
        """Flips the shard for ever and appends its frozen table of epochs; harmless when repeated."""
        await asked(self._call("FCALL", "pli_close_window", 1, self.keys.window, version))

    async def enrolments(self) -> dict[bytes, bytes]:
        """Requests of nodes that have no answer yet: key id → SignedEnrolment."""
        asked_for = _pairs(await asked(self._call("HGETALL", self.keys.enrolments)))
        answered = _pairs(await asked(self._call("HGETALL", self.keys.enrolled)))
        return {key: request for key, request in asked_for.items() if key not in answered}

    async def put_enrolled(self, key_id: bytes, signed: bytes) -> None:
        """The vault's answer for a node."""
        await asked(self._call("HSET", self.keys.enrolled, key_id, signed))
        await asked(self._call("HDEL", self.keys.enrolments, key_id))

    async def publish(self, field: str, row: str) -> None:
        """One row of the platform's status."""
        await asked(self._call("HSET", self.keys.status, field, row))

    async def time_ms(self) -> int:
        """The store's clock."""
        seconds, micros = await asked(self._call("TIME"))
        return int(seconds) * 1000 + int(micros) // 1000


def _entries(reply: Any) -> list[Entry]:
    if not reply:
        return []
    streams = reply.values() if isinstance(reply, dict) else [stream[1] for stream in reply]
    rows: list[Any] = []
    for stream in streams:
        # RESP3 nests the rows once more than RESP2.
        for row in stream:
            rows.extend(row if row and isinstance(row[0], list | tuple) else [row])
    return [entry for entry in (_entry(*row) for row in rows) if entry is not None]


def _entry(entry_id: bytes, fields: Any) -> Entry | None:
    """None for an entry that was removed while it was pending: it reads back empty."""
    if not fields:
        return None
    row = _pairs(fields)
    return Entry(
        bytes(entry_id),
        row.get(b"e", b""),
        int(row.get(b"n", b"0")),
        row.get(b"d", b""),
        row.get(b"b", b""),
        row.get(b"h", b""),
        row.get(b"c", b""),
    )


def _pairs(reply: Any) -> dict[bytes, bytes]:
    if isinstance(reply, dict):
        return {bytes(key): bytes(value) for key, value in reply.items()}
    return {bytes(key): bytes(value) for key, value in zip(reply[::2], reply[1::2], strict=True)}

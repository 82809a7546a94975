"""One shard of a store, as the roles use it: what the contract tests speak through."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from struct import pack
from typing import Any

from pli.pseudonym import PSEUDONYM_BYTES
from server.store.keys import ShardKeys
from server.store.relay_spool import RelaySpool
from server.store.spool import COMMIT_ENTRY, OPEN_ENTRY, REJECTION, Commit, Committed, IngestSpool, OpenedSession
from tests.support.stores import ProgramStore

OPEN, CLOSING = 2, 3
MARKER = bytes(range(16))
FAR_FUTURE_MS = 2**52


@dataclass(frozen=True)
class Writer:
    """A queue on some device."""

    pseudonym: bytes
    writer: bytes
    opening: int = 1


@dataclass
class Epoch:
    """An epoch as far as the store sees it: an id, and numbers."""

    epoch_id: bytes
    number: int = 0


def part(
    writer: Writer,
    first: int,
    last: int,
    *,
    finish: bool = False,
    rejections: Sequence[tuple[int, int]] = (),
    receipt: bytes = b"",
) -> bytes:
    """One session's entry of a commit."""
    head = COMMIT_ENTRY.pack(
        writer.pseudonym, writer.writer, writer.opening, first, last, finish, len(rejections), len(receipt)
    )
    return head + b"".join(REJECTION.pack(*each) for each in rejections) + receipt


class Shard:
    """A campaign of its own in a store that many tests share."""

    def __init__(self, store: ProgramStore, campaign_id: str, ingest: Any, relay: Any) -> None:
        self.store = store
        self.keys = ShardKeys(campaign_id, 0)
        self.ingest = IngestSpool(ingest, self.keys)
        self.relay = RelaySpool(relay, self.keys, "relay-1")
        self.ingest_redis = ingest
        self.relay_redis = relay
        self.node = os.urandom(16)
        self.calls = 0
        self.window_version = 0

    async def prepare(self) -> None:
        """Functions, marker, group and an open window."""
        await self.relay.load_functions()
        await self.relay.adopt(MARKER)
        await self.window(OPEN)

    async def window(self, phase: int, closes: int = 0, grace: int = 0) -> int:
        """The next order."""
        self.window_version += 1
        return await self.relay.set_window(self.window_version, phase, 0, closes, grace)

    async def close(self) -> None:
        """Flips the shard."""
        self.window_version += 1
        await self.relay.close_window(self.window_version)

    async def code(self, kind: int = 1, seats: int = 0, status: int = 1) -> bytes:
        """Registers a code; its pseudonym."""
        pseudonym = os.urandom(PSEUDONYM_BYTES)
        await self.relay.put_registry([pseudonym + pack(">BHB", kind, seats, status)])
        return pseudonym

    async def opened(
        self,
        pseudonym: bytes,
        writer: bytes = b"",
        token: bytes = b"",
        *,
        number: int = 0,
        valid_until: int = FAR_FUTURE_MS,
        admit: bool = True,
    ) -> OpenedSession:
        """Opens one code in a call of its own."""
        self.calls += 1
        entry = OPEN_ENTRY.pack(pseudonym, writer or os.urandom(16), token or os.urandom(16))
        _, verdicts = await self.ingest.open_sessions(self.node, number or self.calls, valid_until, admit, [entry])
        return verdicts[0]

    async def writer(self, kind: int = 1, seats: int = 0) -> Writer:
        """A new code, opened."""
        pseudonym, writer = await self.code(kind, seats), os.urandom(16)
        return Writer(pseudonym, writer, (await self.opened(pseudonym, writer)).opening)

    async def writers(self, count: int) -> list[Writer]:
        """Many new codes, opened in a few calls."""
        fresh = [Writer(os.urandom(PSEUDONYM_BYTES), os.urandom(16)) for _ in range(count)]
        await self.relay.put_registry([each.pseudonym + pack(">BHB", 1, 0, 1) for each in fresh])
        for at in range(0, count, 500):
            self.calls += 1
            entries = [OPEN_ENTRY.pack(each.pseudonym, each.writer, os.urandom(16)) for each in fresh[at : at + 500]]
            await self.ingest.open_sessions(self.node, self.calls, FAR_FUTURE_MS, True, entries)
        return fresh

    def block(self, epoch: Epoch, *parts: bytes, content: bytes = b"", number: int = 0) -> Commit:
        """The next block of an epoch; `content` tells two blocks of one number apart."""
        number = number or epoch.number + 1
        block = content or os.urandom(64)
        return Commit(
            epoch_id=epoch.epoch_id,
            number=number,
            digest=sha256(block).digest(),
            block=block,
            header=b"header" if number == 1 else b"",
            session_count=len(parts),
            entries=b"".join(parts),
            records=1,
        )

    async def commit(self, epoch: Epoch, *parts: bytes, content: bytes = b"") -> Committed:
        """Commits the next block and counts it when it was taken."""
        verdict = await self.ingest.commit(self.block(epoch, *parts, content=content))
        if not verdict.closed and not verdict.superseded:
            epoch.number += 1
        return verdict

    def epoch(self) -> Epoch:
        """A new one."""
        return Epoch(os.urandom(16))

    async def cursor(self, writer: Writer) -> OpenedSession:
        """What the store knows of a writer, asked by opening it again."""
        return await self.opened(writer.pseudonym, writer.writer)

    async def everything(self) -> dict[bytes, Any]:
        """All that is stored under this shard, to see that nothing changed."""
        found: dict[bytes, Any] = {}
        for name in ("epochs", "headers", "cursors", "window", "registry", "calls"):
            found[name.encode()] = await self.store.administer("HGETALL", getattr(self.keys, name))
        found[b"spool"] = await self.store.administer("XRANGE", self.keys.spool, "-", "+")
        return found


def reopened(writer: Writer, opening: int) -> Writer:
    """The same queue under a later opening."""
    return replace(writer, opening=opening)

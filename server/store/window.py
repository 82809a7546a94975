"""The window as a shard's store holds it, and what it lets through at a moment of the store's clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from pli.vault.v1.bundle_pb2 import WindowPhase
from server.store.keys import ShardKeys
from server.store.spool import asked


@dataclass(frozen=True, slots=True)
class Window:
    """Version 0: none was ever set, which means closed. Times are Unix ms, 0 = not scheduled."""

    version: int
    phase: int
    opens_ms: int
    closes_ms: int
    grace_ms: int

    @property
    def last_moment_ms(self) -> int:
        """When the last commit can be taken; 0 when not scheduled."""
        return self.closes_ms + self.grace_ms if self.closes_ms else 0

    def phase_at(self, now_ms: int) -> int:
        """The phase in force, as pli.lua judges it: the schedule closes by itself."""
        if not self.version:
            return WindowPhase.WINDOW_PHASE_CLOSED
        if self.closes_ms and self.phase in (WindowPhase.WINDOW_PHASE_OPEN, WindowPhase.WINDOW_PHASE_CLOSING):
            if now_ms > self.last_moment_ms:
                return WindowPhase.WINDOW_PHASE_CLOSED
            if now_ms > self.closes_ms:
                return WindowPhase.WINDOW_PHASE_CLOSING
        return self.phase


async def read_window(redis: Redis, keys: ShardKeys) -> Window:
    """One shard's window.

    Raises:
        SpoolUnavailable, SpoolUnsafe: no answer, or none of this kind.
    """
    call = cast(Callable[..., Awaitable[Any]], redis.execute_command)
    row = await asked(call("HMGET", keys.window, "version", "phase", "opens", "closes", "grace"))
    return Window(*(int(value or 0) for value in row))

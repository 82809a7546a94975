"""What was read and waits for a block: measured in bytes, bounded over all sessions of a worker."""

from __future__ import annotations

import asyncio

from pli.blocks import RECORD, TAG_BYTES
from pli.records import MIN_PADDED_BYTES

_ADDED_BYTES = RECORD.size + TAG_BYTES
_PREFIX_BYTES = 5
"""Kind and length before the payload, pli/records.py."""


def sealed_bytes(payload_bytes: int) -> int:
    """Exactly what a record with this payload takes in a block, padding included."""
    size = payload_bytes + _PREFIX_BYTES
    return (MIN_PADDED_BYTES if size <= MIN_PADDED_BYTES else 1 << (size - 1).bit_length()) + _ADDED_BYTES


class Backlog:
    """Bytes waiting in one worker. A reader asks before it reads on; a slow disk thus stops the reading."""

    __slots__ = ("_limit_bytes", "_room", "waiting_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._room = asyncio.Event()
        self.waiting_bytes = 0

    @property
    def full(self) -> bool:
        """Whether nothing more may be read."""
        return self.waiting_bytes > self._limit_bytes

    def release(self, size_bytes: int) -> None:
        """So much was handed to a block, or dropped with its session."""
        self.waiting_bytes -= size_bytes
        if self.waiting_bytes <= self._limit_bytes:
            self._room.set()

    async def room(self, stalled_seconds: float) -> bool:
        """Waits until there is room; False when there was none for so long."""
        self._room.clear()
        try:
            async with asyncio.timeout(stalled_seconds):
                await self._room.wait()
        except TimeoutError:
            return False
        return True

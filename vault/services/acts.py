"""Acts of people that leave an audit note: finished, note included, even when the caller goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Acts:
    """The acts of one service that are under way."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, act: Coroutine[Any, Any, T]) -> T:
        """Runs an act to its end. Cancelling the caller does not cancel the act."""
        task = asyncio.create_task(act)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def finish(self) -> None:
        """Waits for what is under way; called when no call comes in any more, before the database closes."""
        if self._running:
            await asyncio.wait(self._running)

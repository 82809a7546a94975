"""Waiting for a condition with a deadline, instead of sleeping for a time that is hoped to be enough."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

T = TypeVar("T")

LOOK_EVERY_SECONDS = 0.02


async def until(condition: Callable[[], Awaitable[T]], what: str, seconds: float = 40.0) -> T:
    """The first true value of `condition`.

    Raises:
        AssertionError: it stayed false for `seconds`; says `what` was waited for.
    """
    deadline = monotonic() + seconds
    while True:
        value = await condition()
        if value:
            return value
        if monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what}; last seen: {value!r}")
        await asyncio.sleep(LOOK_EVERY_SECONDS)

"""Running a command's work so that Ctrl-C and SIGTERM end it in order."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import typer
import uvloop

T = TypeVar("T")

EXIT_CODE = 130
"""128 + SIGINT, as shells report it."""


class Interrupted(typer.Exit):
    """The command was told to stop, and has."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


def run_until_told(work: Callable[[], Awaitable[T]]) -> T:
    """Runs `work` on a loop of its own; SIGINT and SIGTERM cancel it, and what it started is stopped.

    Raises:
        Interrupted: it was told to stop.
    """

    async def run() -> T:
        task = asyncio.ensure_future(work())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            print("interrupted", file=sys.stderr)
            raise Interrupted from None

    return uvloop.run(run())

"""The benchmark's own child processes: they cannot outlive it, and are stopped by process id."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from bench.generator import Job
from bench.machine import pinned
from pli.errors import StateError

STOP_SECONDS = 5.0
"""From SIGTERM to SIGKILL."""


@asynccontextmanager
async def running(
    module: str, *arguments: str, cores: frozenset[int] | None = None, takes_input: bool = False
) -> AsyncIterator[Process]:
    """`python -m module …` for as long as the block lasts; on `cores`, or on those of this process."""
    with pinned(cores or frozenset(os.sched_getaffinity(0))):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pli.tied", str(os.getpid()), module, *arguments,
            stdin=PIPE if takes_input else DEVNULL,
            stdout=PIPE,
            # Ctrl-C reaches the benchmark alone, which then stops its processes in order.
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        await asyncio.shield(_stop(process))


@asynccontextmanager
async def serving(module: str, *arguments: str, cores: frozenset[int] | None = None) -> AsyncIterator[tuple[str, int]]:
    """A server for as long as the block lasts: where it listens, and its process id."""
    async with running(module, *arguments, cores=cores) as process:
        line = await process.stdout.readline() if process.stdout is not None else b""
        if not line:
            raise StateError(f"{module} ended while starting")
        yield str(json.loads(line)["listen"]), process.pid


async def generate(job: Job) -> dict[str, Any]:
    """Does a job in a process of its own; the fields of its `Run` or `Memory`.

    Raises:
        StateError: the clients failed; what they printed says why.
    """
    async with running("bench.generator", takes_input=True) as process:
        printed, _ = await process.communicate(json.dumps(asdict(job)).encode())
        if process.returncode:
            raise StateError("the clients of the benchmark failed, as told above; nothing was measured")
        result: dict[str, Any] = json.loads(printed)
        return result


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

"""Child processes of a test: started, watched and stopped by their process id, never by name."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

READY_SECONDS = 60.0
STOP_SECONDS = 15.0

_BOUND_TO_US = (
    "import os,sys;from pli.process import die_with_parent;die_with_parent();os.execv(sys.argv[1],sys.argv[1:])"
)
"""Lets a foreign program die with the test run."""

TIED = [sys.executable, "-m", "pli.tied", str(os.getpid())]
"""Starts a module of ours so that it cannot outlive the test run."""


class Child:
    """One child process; `log` takes its stderr, and its stdout too unless it `says_ready` there.

    Start it from the main thread: it dies with the thread that started it.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environ: Mapping[str, str] | None = None,
        *,
        says_ready: bool = True,
    ) -> None:
        self.arguments = list(arguments)
        self.log = log
        self.facts: dict[str, Any] = {}
        """What the process said when it was ready."""
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if says_ready else stderr,
                stderr=stderr,
                env=dict(os.environ if environ is None else environ),
            )

    @classmethod
    def module(
        cls, name: str, *arguments: str, log: Path, environ: Mapping[str, str] | None = None, says_ready: bool = True
    ) -> Child:
        """`python -m name …`, one of pli's processes."""
        return cls([*TIED, name, *arguments], log, environ, says_ready=says_ready)

    @classmethod
    def program(cls, path: Path, *arguments: str, log: Path) -> Child:
        """A foreign program, which dies with this test run all the same."""
        return cls([sys.executable, "-c", _BOUND_TO_US, str(path), *arguments], log, says_ready=False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, None while it runs; -9 when it was killed."""
        return self._process.poll()

    async def ready(self, seconds: float = READY_SECONDS) -> dict[str, Any]:
        """Waits for the line that says where it listens.

        Raises:
            AssertionError: it ended or said nothing; shows the end of its log.
        """
        stdout = self._process.stdout
        assert stdout is not None
        try:
            async with asyncio.timeout(seconds):
                line = await asyncio.to_thread(stdout.readline)
        except TimeoutError:
            await self.stop(signal.SIGKILL)
            line = b""
        if not line:
            raise AssertionError(f"{self.arguments[1:]} did not become ready:\n{self.tail()}")
        self.facts = json.loads(line)
        return self.facts

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, if the process is still there."""
        if self.status is None:
            self._process.send_signal(number)

    async def ended(self, seconds: float = STOP_SECONDS) -> int:
        """The exit status.

        Raises:
            AssertionError: it still runs.
        """
        try:
            return await asyncio.to_thread(self._process.wait, seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.arguments[1:]} still runs after {seconds} s:\n{self.tail()}") from None

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it for good: with the signal, and after a while with SIGKILL."""
        self.send(number)
        try:
            return await asyncio.to_thread(self._process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()

    def output(self) -> str:
        """Everything it wrote to stderr."""
        return self.log.read_text(errors="replace")

    def tail(self, characters: int = 3_000) -> str:
        """The end of its stderr."""
        return self.output()[-characters:]


async def run(arguments: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Runs `python -m …` to its end; exit status and stderr."""
    child = Child([*TIED, *arguments], log, environ)
    try:
        return await child.ended(30.0), child.output()
    finally:
        await child.stop(signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"

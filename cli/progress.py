"""What a person at a terminal sees while a campaign runs; nothing where there is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from cli.pupils import Attendance

PHASES = {
    "read": "reading the input",
    "start": "starting spool, vault, relay and node",
    "enrol": "roster, instrument and codes",
    "open": "publishing and opening",
    "answer": "pupils answer",
    "close": "closing and draining",
    "settle": "settling and scoring",
    "compare": "comparing with what clients were told",
    "stop": "stopping the services",
}


class Display:
    """A progress bar on a terminal; troubles are always told, on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def phase(self, name: str) -> None:
        """A phase begins."""
        self._progress.update(self._task, description=PHASES[name], total=None, completed=0)

    def progress(self, attendance: Attendance, pupils: int) -> None:
        """Pupils who have finished, of all."""
        self._progress.update(self._task, total=pupils, completed=attendance.finished)

    def trouble(self, what: str) -> None:
        """Something that a person should know; words of other processes are never read as markup."""
        self._console.print(Text(f"! {what}"))

"""Collecting everything that is wrong in one file before refusing it."""

from __future__ import annotations

from typing import Never

from pli.errors import Fault, InputError

MAX_EXCERPT = 60
"""Characters of a faulty value, and of the names of file and column, that are shown to its owner."""

_MAX_KEPT = 1_000


class FaultList:
    """The faults of one file. All are counted; the first ones by line are shown."""

    def __init__(self, file: str) -> None:
        self.file = _excerpt(file)
        self.total = 0
        self._kept: list[Fault] = []

    def add(self, line: int, column: str, value: str, rule: str) -> None:
        """Notes one fault. `line` counts from 1, 0 means the whole file."""
        self.total += 1
        if len(self._kept) < _MAX_KEPT:
            self._kept.append(Fault(self.file, line, _excerpt(column), _excerpt(value), rule))

    def raise_if_any(self) -> None:
        """Raises InputError when at least one fault was noted."""
        if self.total:
            self.refuse()

    def refuse(self) -> Never:
        """Raises InputError with what was noted so far."""
        count = "one fault" if self.total == 1 else f"{self.total} faults"
        faults = tuple(sorted(self._kept, key=lambda fault: fault.line))
        raise InputError(
            f"{self.file} was refused and nothing of it was taken ({count}); correct it and try again:",
            faults,
            self.total,
        )


def _excerpt(text: str) -> str:
    return text if len(text) <= MAX_EXCERPT else text[:MAX_EXCERPT] + "…"

"""Full-jitter exponential back-off between two attempts to open.

The project's retry library, stamina, repeats a function and adds a small jitter to a fixed wait. Here
the thing that is repeated is a stream which may have lived for an hour in between, the wait may come
from the server instead, and the jitter must be full (a draw from 0 to the bound): ten thousand clients
cut off at one moment must not come back at one moment. So the few lines stand here.
"""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Draws waits from 0 to a bound that doubles from `first_seconds` up to `max_seconds`."""

    __slots__ = ("_bound", "_first", "_max", "_random")

    def __init__(self, first_seconds: float, max_seconds: float, random: Callable[[], float]) -> None:
        """`random` returns a number from 0 (included) to 1 (excluded)."""
        self._first = first_seconds
        self._max = max_seconds
        self._random = random
        self._bound = first_seconds

    def next(self) -> float:
        """The next wait, in seconds."""
        bound = self._bound
        self._bound = min(self._max, 2 * bound)
        return self._random() * bound

    def reset(self) -> None:
        """Starts again at `first_seconds`."""
        self._bound = self._first

"""Figures of several runs: what stays of them is the median, shown with the least and the greatest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pli.errors import StateError

US = 1e6

OURS, ECHO, NAIVE = "ours", "echo", "naive"


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity over all rounds."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float], digits: int = 2) -> Figure:
        """Rounded for people."""
        return cls(*(round(value, digits) for value in (min(values), median(values), max(values))))


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of one server."""

    server_us: float
    """CPU time of the server per acknowledged answer."""
    store_us: float
    """CPU time of the store per acknowledged answer."""
    busy: float
    """Share of its core that the server used: a server that waits pays more wake-ups for each answer."""
    answers_per_second: float
    answers_per_ack: float

    @classmethod
    def of(cls, acknowledged: int, acks: int, seconds: float, server_seconds: float, store_seconds: float) -> Cost:
        """From what was counted in the measured window.

        Raises:
            StateError: nothing was acknowledged in it.
        """
        if not acknowledged or not acks:
            raise StateError("nothing was acknowledged while it was measured: the figures are worth nothing")
        return cls(
            server_us=server_seconds / acknowledged * US,
            store_us=store_seconds / acknowledged * US,
            busy=server_seconds / seconds,
            answers_per_second=acknowledged / seconds,
            answers_per_ack=acknowledged / acks,
        )


Round = Mapping[str, Cost]
"""ours, echo, naive → what it cost. The three ran one after another, so that they met the same machine."""


def order_of(number: int) -> list[str]:
    """Who runs first, second, third in a round: each is at each place equally often."""
    names = [ECHO, OURS, NAIVE]
    shift = number % len(names)
    return names[shift:] + names[:shift]


def summary(rounds: Sequence[Round]) -> dict[str, Figure]:
    """Every figure. Ratios are taken within a round, never between rounds."""

    def each(name: str, attribute: str, digits: int = 2) -> Figure:
        return Figure.of([getattr(costs[name], attribute) for costs in rounds], digits)

    figures = {
        "ratio_to_echo": Figure.of([costs[OURS].server_us / costs[ECHO].server_us for costs in rounds], 3),
        "ratio_to_naive": Figure.of([costs[OURS].server_us / costs[NAIVE].server_us for costs in rounds], 3),
        "redis_us": each(OURS, "store_us"),
        "naive_redis_us": each(NAIVE, "store_us"),
    }
    for name in (OURS, ECHO, NAIVE):
        figures[f"{name}_us"] = each(name, "server_us")
        figures[f"{name}_busy"] = each(name, "busy")
        figures[f"{name}_answers_per_second"] = each(name, "answers_per_second", 0)
    figures["ours_answers_per_ack"] = each(OURS, "answers_per_ack")
    return figures

"""Running rehearsals in tests: in this process, with a hook where a test strikes."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from random import Random

from cli.pupils import NO_MISHAPS, Mishaps
from cli.rehearsal import Outcome, Rehearsal, RehearsalOptions
from cli.simulation import CampaignFiles, simulate
from tests.support.waiting import until

NAMES = {"roster": "roster.csv", "instrument": "instrument.toml", "responses": "responses.csv"}
DEADLINE_SECONDS = 60.0

Strike = Callable[[Rehearsal], Awaitable[None]]


async def rehearse(
    out: Path,
    *,
    pupils: int = 20,
    files: CampaignFiles | None = None,
    mishaps: Mishaps = NO_MISHAPS,
    pace_ms: float = 0.0,
    workers: int = 1,
    drain_seconds: float = 60.0,
    modules: Mapping[str, str] | None = None,
    during_sessions: Strike | None = None,
) -> Outcome:
    """One whole campaign of simulated pupils, or of these files."""
    options = RehearsalOptions(
        out=out,
        campaign_id="demo",
        files=files or simulate(pupils, Random(3)),
        names=NAMES,
        mishaps=mishaps,
        seed=3,
        pace_ms=pace_ms,
        workers=workers,
        drain_seconds=drain_seconds,
        modules=modules or {},
    )
    rehearsal = Rehearsal(
        options,
        on_phase=lambda phase: None,
        on_progress=lambda attendance, of: None,
        on_trouble=lambda what: None,
        during_sessions=during_sessions,
    )
    return await rehearsal.run()


async def until_some_are_acknowledged(rehearsal: Rehearsal, share: float) -> None:
    """Returns once clients were told of this share of the answers that they are on disk."""

    async def there() -> bool:
        return rehearsal.ledger is not None and rehearsal.ledger.settled >= share * rehearsal.answers_expected

    await until(there, f"{share:.0%} of the answers", DEADLINE_SECONDS)


def kill(pid: int) -> None:
    """SIGKILL: no handler runs, nothing is flushed."""
    os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Process ids of a process's children (Linux)."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]

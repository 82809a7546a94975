"""SIGKILL of each process in the middle of a run: clients resume by themselves, nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.rehearsal import Rehearsal
from tests.integration.demo.rehearsals import Strike, children, kill, rehearse, until_some_are_acknowledged

PACE_MS = 120.0
"""Sixteen answers take two seconds: time to die in the middle, and to come back."""


async def kill_worker(rehearsal: Rehearsal) -> None:
    await until_some_are_acknowledged(rehearsal, 0.3)
    for worker in children(rehearsal.pid("server")):
        kill(worker)


async def kill_node(rehearsal: Rehearsal) -> None:
    await until_some_are_acknowledged(rehearsal, 0.3)
    kill(rehearsal.pid("server"))


async def kill_relay(rehearsal: Rehearsal) -> None:
    await until_some_are_acknowledged(rehearsal, 0.3)
    kill(rehearsal.pid("relay"))


async def kill_vault(rehearsal: Rehearsal) -> None:
    await until_some_are_acknowledged(rehearsal, 0.3)
    kill(rehearsal.pid("vault"))


async def kill_spool(rehearsal: Rehearsal) -> None:
    await until_some_are_acknowledged(rehearsal, 0.3)
    kill(rehearsal.pid("spool"))


async def kill_everything(rehearsal: Rehearsal) -> None:
    await until_some_are_acknowledged(rehearsal, 0.3)
    for name in ("spool", "vault", "server", "relay"):
        kill(rehearsal.pid(name))


@pytest.mark.parametrize(
    "strike",
    [kill_worker, kill_node, kill_relay, kill_vault, kill_spool, kill_everything],
    ids=lambda one: one.__name__,
)
async def test_a_process_killed_in_the_middle_loses_nothing(tmp_path: Path, strike: Strike) -> None:
    outcome = await rehearse(tmp_path / "out", pupils=40, pace_ms=PACE_MS, during_sessions=strike)
    assert outcome.failures == []
    assert (outcome.lost, outcome.duplicated, outcome.unexpected) == (0, 0, 0)
    assert outcome.acknowledged == outcome.in_vault == outcome.answers_sent
    assert outcome.sessions == 40
    assert outcome.is_good

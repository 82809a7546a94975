"""The rehearsal's counts can fail: services with a seeded fault each turn it red, and say which way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cli.pupils import Mishaps
from cli.rehearsal import Outcome
from tests.integration.demo.rehearsals import rehearse

LIVELY = Mishaps(changed=0.1, second_device=0.5, invalid=0.5)
DRAIN_SECONDS = 4.0
"""A campaign with a gap never drains: the test need not wait for a minute to see it."""

FAULTS: Mapping[str, tuple[Mapping[str, str], Callable[[Outcome], bool]]] = {
    "a block is dropped": (
        {"relay": "tests.seeded.relay_drops_a_block"},
        lambda outcome: outcome.lost > 0 and outcome.state != "DRAINED" and bool(outcome.waiting_for),
    ),
    "a record is altered": (
        {"relay": "tests.seeded.relay_alters_a_record"},
        lambda outcome: outcome.lost > 0 and outcome.quarantined > 0 and outcome.state != "DRAINED",
    ),
    "a record is settled twice": (
        {"vault": "tests.seeded.vault_keeps_second_copies"},
        lambda outcome: outcome.duplicated > 0,
    ),
    "another writer's durable seq is believed": (
        {"relay": "tests.seeded.spool_believes_another_writer"},
        lambda outcome: outcome.lost > 0 or bool(outcome.failures),
    ),
    "a rejection is lost": (
        {"server": "tests.seeded.node_loses_rejections"},
        lambda outcome: outcome.lost > 0,
    ),
    "acknowledged before the commit": (
        {"server": "tests.seeded.node_acks_before_commit"},
        lambda outcome: outcome.lost > 0,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_seeded_fault_is_seen(tmp_path: Path, fault: str) -> None:
    modules, seen = FAULTS[fault]
    outcome = await rehearse(tmp_path / "out", pupils=12, mishaps=LIVELY, modules=modules, drain_seconds=DRAIN_SECONDS)
    assert not outcome.is_good
    assert seen(outcome), outcome


async def test_lively_pupils_alone_are_no_fault(tmp_path: Path) -> None:
    outcome = await rehearse(tmp_path / "out", pupils=12, mishaps=LIVELY)
    assert outcome.is_good
    assert outcome.second_devices > 0
    assert outcome.rejected > 0
    assert outcome.answers_sent == outcome.acknowledged + outcome.rejected
    assert outcome.in_vault == outcome.acknowledged


async def test_blocks_that_are_deposited_twice_count_once(tmp_path: Path) -> None:
    outcome = await rehearse(tmp_path / "out", pupils=12, modules={"relay": "tests.seeded.relay_repeats_blocks"})
    assert outcome.is_good
    assert outcome.in_vault == outcome.acknowledged > 0

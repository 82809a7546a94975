"""The drain: a lie in the table, a lost block and a dropped epoch are each found, by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pli.blocks import block_hash
from pli.closings import ClosedEpoch, write_closing
from pli.development_ca import DevelopmentAuthority
from pli.vault.v1.bundle_pb2 import WindowPhase
from pli.vault.v1.deposit_pb2 import DepositReceipt, DepositRequest, SyncResponse, Verdict
from tests.support.played_platform import RELAY_NAME, PlayedNode, PlayedPlatform
from tests.support.vault_parts import CAMPAIGN, NOW, NOW_MS, VaultParts, vault_parts
from vault.drain import MAX_SENTENCES, Drain
from vault.landing import Landing
from vault.sync import synchronise

NEW, CONFLICT, QUARANTINED = Verdict.VERDICT_NEW, Verdict.VERDICT_CONFLICT, Verdict.VERDICT_QUARANTINED


class Drained:
    """A vault and a platform of two shards, of which most tests use the first."""

    def __init__(self, parts: VaultParts, authority: DevelopmentAuthority) -> None:
        self.parts = parts
        self.landing = Landing(parts.database, parts.keyring, lambda: NOW_MS)
        self.platform = PlayedPlatform(CAMPAIGN, parts.answers.answer.public_raw, authority, 2, lambda: NOW_MS)
        self.drain = Drain()
        self.sync()
        self.platform.follow(SyncResponse())

    def sync(self) -> None:
        """The relay's report."""
        report = self.platform.report()
        self.parts.database.write_now(lambda connection: synchronise(connection, report, NOW_MS))

    def missing(self) -> list[str]:
        """What the drain still misses."""
        return self.parts.database.read_now(lambda connection: self.drain.missing(connection, CAMPAIGN))

    async def deposit(self, *blocks: bytes, node: PlayedNode, shard: int = 0) -> list[Verdict.ValueType]:
        """Deposits blocks with their node's present header."""
        request = DepositRequest(
            campaign_id=CAMPAIGN, shard=shard, relay=RELAY_NAME, headers=[node.epoch.header], blocks=blocks
        )
        receipt = DepositReceipt.FromString((await self.landing.deposit(request)).receipt.body)
        return [block.verdict for block in receipt.blocks]

    async def close(self, *tables: bytes) -> None:
        """Flips every shard and deposits all that waits; `tables` in place of the shards' own."""
        for shard in self.platform.shards:
            shard.window_version, shard.phase = 9, WindowPhase.WINDOW_PHASE_CLOSED
            shard.close(CAMPAIGN)
        for number, table in enumerate(tables):
            self.platform.shards[number].closing = table
        for shard in self.platform.shards:
            request = self.platform.deposit(shard.number)
            assert request is not None
            receipt = DepositReceipt.FromString((await self.landing.deposit(request)).receipt.body)
            if all(receipt.closings):
                self.platform.forget(shard.number)
        self.sync()


@pytest.fixture
async def drained(tmp_path: Path) -> AsyncIterator[Drained]:
    with vault_parts(tmp_path) as parts:
        authority = DevelopmentAuthority(tmp_path / "authority", NOW)
        await parts.create(authority, shards=2)
        drained = Drained(parts, authority)
        try:
            yield drained
        finally:
            drained.landing.close()


def named(node: PlayedNode) -> str:
    return f"shard {node.shard.number}, epoch {node.epoch.epoch_id.hex()[:8]}"


async def test_nothing_is_missing_when_every_block_of_every_shard_has_landed(drained: Drained) -> None:
    for shard in (0, 1):
        node = drained.platform.node(shard)
        for _ in range(3):
            node.commit(2)
        node.next_epoch()
        node.commit()
    await drained.close()
    assert drained.missing() == []


async def test_an_empty_campaign_is_drained_once_its_tables_have_landed(drained: Drained) -> None:
    assert len(drained.missing()) == 4
    await drained.close()
    assert drained.missing() == []


async def test_a_shard_that_has_not_closed_is_named(drained: Drained) -> None:
    drained.platform.shards[0].close(CAMPAIGN)
    drained.sync()
    assert drained.missing() == [
        "shard 0: entries waiting in the spool for the relay: 1",
        "shard 0: its frozen table of epochs has not landed",
        "shard 1: it has not closed yet",
        "shard 1: its frozen table of epochs has not landed",
    ]


async def test_blocks_that_wait_in_the_spool_are_counted(drained: Drained) -> None:
    await drained.close()
    drained.platform.shards[1].blocks = [b"one", b"two"]
    drained.sync()
    assert drained.missing() == ["shard 1: entries waiting in the spool for the relay: 2"]


async def test_a_lost_block_in_the_middle_is_named(drained: Drained) -> None:
    node = drained.platform.node()
    for _ in range(4):
        node.commit()
    lost = drained.platform.shards[0].blocks.pop(1)
    await drained.close()
    assert drained.missing() == [f"{named(node)}: of 4 blocks these have not landed: 2"]
    await drained.deposit(lost, node=node)
    assert drained.missing() == []


async def test_a_lost_last_block_is_named(drained: Drained) -> None:
    node = drained.platform.node()
    for _ in range(3):
        node.commit()
    drained.platform.shards[0].blocks.pop()
    await drained.close()
    assert drained.missing() == [f"{named(node)}: of 3 blocks these have not landed: 3"]


async def test_of_many_lost_blocks_the_first_are_named_and_the_rest_counted(drained: Drained) -> None:
    node = drained.platform.node()
    for _ in range(10):
        node.commit()
    del drained.platform.shards[0].blocks[1:9]
    await drained.close()
    assert drained.missing() == [f"{named(node)}: of 10 blocks these have not landed: 2, 3, 4, 5, 6 and 3 more"]


async def test_an_epoch_of_which_nothing_landed_is_named(drained: Drained) -> None:
    node = drained.platform.node()
    node.commit()
    node.commit()
    drained.platform.forget()
    await drained.close()
    assert drained.missing() == [f"{named(node)}: nothing of it has landed, the frozen table ends at block 2"]


async def test_a_table_that_leaves_out_what_landed_is_found(drained: Drained) -> None:
    node = drained.platform.node()
    node.commit()
    drained.platform.shards[0].epochs.clear()
    await drained.close()
    assert drained.missing() == [
        f"{named(node)}: blocks up to 1 have landed, the shard's frozen table does not know it"
    ]


async def test_a_table_that_ends_before_what_landed_is_found(drained: Drained) -> None:
    node = drained.platform.node()
    first = ClosedEpoch(node.epoch.epoch_id, 1, block_hash(node.commit()))
    node.commit()
    await drained.close(write_closing(CAMPAIGN, 0, drained.platform.shards[0].marker, [first]))
    assert drained.missing() == [f"{named(node)}: block 2 has landed, the frozen table ends at 1"]


async def test_a_table_with_another_hash_of_the_last_block_is_found(drained: Drained) -> None:
    node = drained.platform.node()
    node.commit()
    lie = ClosedEpoch(node.epoch.epoch_id, 1, bytes(32))
    await drained.close(write_closing(CAMPAIGN, 0, drained.platform.shards[0].marker, [lie]))
    assert drained.missing() == [f"{named(node)}: block 1 has another hash than the frozen table says"]


async def test_a_table_of_another_store_is_found(drained: Drained) -> None:
    await drained.close(write_closing(CAMPAIGN, 0, b"another store...", []))
    assert drained.missing() == ["shard 0: its frozen table of epochs was written by another store"]


async def test_a_table_that_names_another_shards_epoch_is_found(drained: Drained) -> None:
    node = drained.platform.node(1)
    node.commit()
    drained.platform.shards[0].epochs |= drained.platform.shards[1].epochs
    await drained.close()
    stolen = f"shard 0, epoch {node.epoch.epoch_id.hex()[:8]}"
    assert drained.missing() == [f"{stolen}: it landed from shard 1"]


async def test_a_second_table_that_differs_keeps_the_drain_open(drained: Drained) -> None:
    await drained.close()
    other = write_closing(CAMPAIGN, 0, drained.platform.shards[0].marker, [ClosedEpoch(bytes(16), 1, bytes(32))])
    request = DepositRequest(campaign_id=CAMPAIGN, shard=0, relay=RELAY_NAME, closings=[other])
    receipt = DepositReceipt.FromString((await drained.landing.deposit(request)).receipt.body)
    assert list(receipt.closings) == [False]
    assert drained.missing() == ["shard 0: in quarantine, of kind closing: 1; examine why they do not authenticate"]


async def test_an_epoch_that_was_dropped_and_left_out_of_the_table_is_found(drained: Drained) -> None:
    node = drained.platform.node()
    node.commit()
    node.commit()
    dropped = node.epoch.epoch_id
    drained.platform.forget()
    del drained.platform.shards[0].epochs[dropped], drained.platform.shards[0].headers[dropped]
    node.next_epoch()
    node.commit()
    await drained.close()
    assert drained.missing() == [
        f"{named(node)}: it follows block 2 of epoch {dropped.hex()[:8]}, of which nothing has landed"
    ]


async def test_the_end_of_an_epoch_that_was_cut_from_log_and_table_is_found(drained: Drained) -> None:
    node = drained.platform.node()
    first = node.commit()
    node.commit()
    cut = node.epoch.epoch_id
    drained.platform.shards[0].blocks.pop()
    drained.platform.shards[0].epochs[cut] = ClosedEpoch(cut, 1, block_hash(first))
    node.next_epoch()
    node.commit()
    await drained.close()
    assert drained.missing() == [
        f"{named(node)}: it follows block 2 of epoch {cut.hex()[:8]}, of which only blocks up to 1 have landed"
    ]


async def test_an_epoch_that_follows_one_of_another_process_is_found(drained: Drained) -> None:
    node, other = drained.platform.node(), drained.platform.node()
    other.commit()
    node.epoch, node.number = other.epoch, other.number
    node.next_epoch()
    node.commit()
    await drained.close()
    assert drained.missing() == [
        f"{named(node)}: it follows epoch {other.epoch.epoch_id.hex()[:8]}, which belongs to another process or shard"
    ]


async def test_a_block_that_was_stored_after_the_node_gave_up_is_no_fault(drained: Drained) -> None:
    # The outcome of block 2 stayed unknown to the node: its next header says 1, the store has 2.
    node = drained.platform.node()
    node.commit()
    node.commit()
    node.next_epoch(known_last=1)
    node.commit()
    await drained.close()
    assert drained.missing() == []


async def test_an_epoch_that_was_given_up_before_its_first_block_returned_is_no_fault(drained: Drained) -> None:
    # Stored although the node gave up: no later header names it.
    node = drained.platform.node()
    node.commit()
    known, number = node.epoch, node.number
    node.next_epoch()
    node.commit()
    node.epoch, node.number = known, number
    node.next_epoch()
    node.commit()
    await drained.close()
    assert drained.missing() == []


async def test_a_block_that_does_not_follow_the_one_before_is_found(drained: Drained) -> None:
    node = drained.platform.node()
    node.commit()
    node.keep(node.seal(previous_hash=bytes(32)))
    node.commit()
    await drained.close()
    assert drained.missing() == [f"{named(node)}: block 2 does not follow the one before it"]


async def test_a_first_block_that_names_one_before_it_is_found(drained: Drained) -> None:
    node = drained.platform.node()
    node.keep(node.seal(previous_hash=b"\1" * 32))
    await drained.close()
    assert drained.missing() == [f"{named(node)}: block 1 does not follow the one before it"]


@pytest.mark.parametrize("first_to_come", ["followed", "abandoned"])
async def test_of_two_blocks_in_conflict_either_may_be_followed(drained: Drained, first_to_come: str) -> None:
    node = drained.platform.node()
    node.commit()
    abandoned, followed = node.seal(), node.seal()
    early, late = (followed, abandoned) if first_to_come == "followed" else (abandoned, followed)
    assert await drained.deposit(*drained.platform.shards[0].blocks, early, late, node=node) == [NEW, NEW, CONFLICT]
    node.keep(followed)
    node.commit()
    await drained.close()
    assert drained.missing() == []


async def test_a_chain_that_goes_on_from_neither_block_in_conflict_is_found(drained: Drained) -> None:
    node = drained.platform.node()
    assert await drained.deposit(node.seal(), node.seal(), node=node) == [NEW, CONFLICT]
    node.keep(node.seal())
    node.commit()
    drained.platform.shards[0].blocks.pop(0)
    await drained.close()
    assert drained.missing() == [f"{named(node)}: block 2 does not follow any block before it"]


async def test_what_is_in_quarantine_keeps_the_drain_open(drained: Drained) -> None:
    node = drained.platform.node()
    block = node.seal()
    altered = block[:-1] + bytes((block[-1] ^ 1,))
    assert await drained.deposit(altered, node=node) == [QUARANTINED]
    await drained.close()
    assert drained.missing() == ["shard 0: in quarantine, of kind block: 1; examine why they do not authenticate"]


async def test_an_exchanged_store_keeps_the_drain_open(drained: Drained) -> None:
    await drained.close()
    assert drained.missing() == []
    drained.platform.shards[1].marker = b"another store..."
    drained.sync()
    assert drained.missing() == ["shard 1: the relay has another store than the one that was adopted; restore that one"]


async def test_what_is_missing_is_looked_for_again_only_when_something_changed(drained: Drained) -> None:
    node = drained.platform.node()
    node.commit()
    lost = drained.platform.shards[0].blocks.pop()
    await drained.close()
    first = drained.missing()
    first.append("a caller's own note")
    assert drained.missing() == first[:-1]
    await drained.deposit(lost, node=node)
    assert drained.missing() == []


async def test_a_long_list_is_cut_and_counted(drained: Drained) -> None:
    shard = drained.platform.shards[0]
    for number in range(MAX_SENTENCES + 5):
        epoch = number.to_bytes(16, "big")
        shard.epochs[epoch] = ClosedEpoch(epoch, 1, bytes(32))
    await drained.close()
    missing = drained.missing()
    assert len(missing) == MAX_SENTENCES + 1
    assert missing[-1] == "and 5 more"

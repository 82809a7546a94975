"""What `set_window`, `close_window` and `remove` promise, on every server that a spool may run on."""

from __future__ import annotations

import os
from hashlib import sha256

import pytest

from pli.closings import ClosedEpoch, read_closing
from pli.errors import IntegrityError
from server.store.relay_spool import Entry
from server.store.window import read_window
from tests.contract.shard import CLOSING, FAR_FUTURE_MS, MARKER, OPEN, Shard, part

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_close_freezes_the_epochs_as_the_last_entry(shard: Shard) -> None:
    writer, one, other = await shard.writer(), shard.epoch(), shard.epoch()
    await shard.commit(one, part(writer, 1, 1))
    await shard.commit(one, part(writer, 2, 2), content=b"last of one")
    await shard.commit(other, part(writer, 3, 3), content=b"last of the other")
    await shard.close()
    entries = await shard.relay.read_new(10, 10)
    assert [bool(entry.closing) for entry in entries] == [False, False, False, True]
    closing = read_closing(entries[-1].closing)
    assert (closing.campaign_id, closing.shard, closing.marker) == (shard.keys.campaign_id, 0, MARKER)
    assert set(closing.epochs) == {
        ClosedEpoch(one.epoch_id, 2, sha256(b"last of one").digest()),
        ClosedEpoch(other.epoch_id, 1, sha256(b"last of the other").digest()),
    }


async def test_no_commit_after_the_flip(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 1))
    await shard.close()
    before = await shard.everything()
    assert (await shard.commit(epoch, part(writer, 2, 2))).closed
    assert (await shard.commit(shard.epoch(), part(writer, 2, 2))).closed
    assert await shard.everything() == before


async def test_a_repeated_close_appends_nothing(shard: Shard) -> None:
    await shard.close()
    before = await shard.everything()
    await shard.close()
    assert await shard.everything() == before


async def test_a_closed_window_never_opens_again(shard: Shard) -> None:
    await shard.close()
    closed = shard.window_version
    assert await shard.window(OPEN) == closed
    assert (await read_window(shard.ingest_redis, shard.keys)).phase == 4


async def test_an_order_of_an_older_version_changes_nothing(shard: Shard) -> None:
    await shard.window(CLOSING)
    assert await shard.relay.set_window(1, OPEN, 0, 0, 0) == shard.window_version
    assert (await read_window(shard.ingest_redis, shard.keys)).phase == CLOSING


async def test_closing_may_be_taken_back(shard: Shard) -> None:
    await shard.window(CLOSING)
    await shard.window(OPEN, closes=123_456, grace=7)
    window = await read_window(shard.ingest_redis, shard.keys)
    assert (window.phase, window.closes_ms, window.grace_ms) == (OPEN, 123_456, 7)


@pytest.mark.parametrize("phase", [0, 4, 5])
async def test_the_window_is_closed_by_the_close_alone(shard: Shard, phase: int) -> None:
    with pytest.raises(IntegrityError, match="PHASE"):
        await shard.window(phase)


@pytest.mark.parametrize("phase", [1, 2, 3])
@pytest.mark.parametrize(("closes", "grace"), [(0, 0), (-5_000, 0), (-5_000, 60_000), (60_000, 0), (0, 60_000)])
async def test_a_node_judges_the_window_as_the_store_does(shard: Shard, phase: int, closes: int, grace: int) -> None:
    now = await shard.relay.time_ms()
    await shard.window(phase, closes=now + closes if closes else 0, grace=grace)
    enforced, _ = await shard.ingest.open_sessions(shard.node, 1, FAR_FUTURE_MS, True, [])
    window = await read_window(shard.ingest_redis, shard.keys)
    assert window.phase_at(await shard.relay.time_ms()) == enforced


async def test_without_window_or_marker_nothing_is_closed(shard: Shard) -> None:
    await shard.store.administer("DEL", shard.keys.marker)
    with pytest.raises(IntegrityError, match="NO_MARKER"):
        await shard.close()
    await shard.store.administer("DEL", shard.keys.window)
    with pytest.raises(IntegrityError, match="NO_WINDOW"):
        await shard.close()
    assert await shard.store.administer("XLEN", shard.keys.spool) == 0


async def test_an_empty_shard_closes_with_an_empty_table(shard: Shard) -> None:
    await shard.close()
    (entry,) = await shard.relay.read_new(10, 10)
    assert read_closing(entry.closing).epochs == ()


async def test_a_block_is_removed_only_by_its_digest(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 1))
    (entry,) = await shard.relay.read_new(10, 10)
    wrong = Entry(entry.entry_id, b"", 0, sha256(b"another").digest(), b"x", b"", b"")
    assert await shard.relay.remove([wrong]) == 0
    closing = Entry(entry.entry_id, b"", 0, b"", b"", b"", b"closing")
    assert await shard.relay.remove([closing]) == 0
    assert await shard.relay.remove([entry]) == 1
    assert (await shard.relay.facts()).waiting == 0


async def test_a_removal_is_harmless_when_repeated_and_leaves_nothing_pending(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 1))
    entries = await shard.relay.read_new(10, 10)
    assert await shard.relay.remove(entries) == 1
    assert await shard.relay.remove(entries) == 0
    assert await shard.relay.read_own_pending(b"0", 10) == []


async def test_a_malformed_removal_removes_nothing(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 1))
    (entry,) = await shard.relay.read_new(10, 10)
    bad = Entry(b"not an id", b"", 0, entry.digest, b"x", b"", b"")
    with pytest.raises(IntegrityError, match="MALFORMED"):
        await shard.relay.remove([entry, bad])
    assert (await shard.relay.facts()).waiting == 1


async def test_the_closing_is_removed_like_a_block(shard: Shard) -> None:
    await shard.close()
    entries = await shard.relay.read_new(10, 10)
    assert await shard.relay.remove(entries) == 1


async def test_what_was_read_and_not_removed_stays_pending_and_can_be_claimed(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    for seq in range(1, 4):
        await shard.commit(epoch, part(writer, seq, seq))
    first, second, third = await shard.relay.read_new(10, 10)
    assert await shard.relay.read_new(10, 10) == []
    assert await shard.relay.read_own_pending(b"0", 2) == [first, second]
    assert await shard.relay.read_own_pending(second.entry_id, 2) == [third]
    assert await shard.relay.claim(0, 10) == [first, second, third]
    assert await shard.relay.claim(60_000, 10) == []


async def test_the_age_of_the_oldest_entry_is_known_without_its_content(shard: Shard) -> None:
    assert await shard.relay.oldest_ms() is None
    before = await shard.relay.time_ms()
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 1))
    oldest = await shard.relay.oldest_ms()
    assert oldest is not None
    assert before <= oldest <= await shard.relay.time_ms()


async def test_loading_the_functions_again_changes_no_state(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 1))
    before = await shard.everything()
    await shard.relay.load_functions()
    assert await shard.everything() == before


async def test_a_store_keeps_the_identity_it_was_given_first(shard: Shard) -> None:
    assert await shard.relay.adopt(os.urandom(16)) == MARKER

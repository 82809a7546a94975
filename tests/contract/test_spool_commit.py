"""What the Function `commit` promises, on every server that a spool may run on."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from pli.errors import IntegrityError, SpoolUnsafe
from tests.contract.shard import CLOSING, Shard, Writer, part, reopened

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_commit_appends_the_block_and_advances_the_cursor(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    verdict = await shard.commit(epoch, part(writer, 1, 3, rejections=[(2, 7)]), content=b"one block")
    assert (verdict.closed, verdict.superseded) == (False, {})
    cursor = await shard.cursor(writer)
    assert (cursor.durable_seq, cursor.rejected) == (3, [(2, 7)])
    (entry,) = await shard.relay.read_new(10, 10)
    assert (entry.block, entry.header, entry.epoch_id, entry.number) == (b"one block", b"header", epoch.epoch_id, 1)
    assert await shard.relay.header(epoch.epoch_id) == b"header"


async def test_rejections_gather_over_commits(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 2, rejections=[(2, 7)]))
    await shard.commit(epoch, part(writer, 3, 4, rejections=[(3, 1), (4, 9)]))
    assert (await shard.cursor(writer)).rejected == [(2, 7), (3, 1), (4, 9)]


async def test_the_same_block_again_gets_the_first_verdict_and_is_not_stored_twice(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    block = shard.block(epoch, part(writer, 1, 1))
    first = await shard.ingest.commit(block)
    before = await shard.everything()
    assert await shard.ingest.commit(block) == first
    assert await shard.everything() == before


async def test_the_first_verdict_is_repeated_even_after_the_close(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    block = shard.block(epoch, part(writer, 1, 1))
    await shard.ingest.commit(block)
    await shard.close()
    assert not (await shard.ingest.commit(block)).closed


async def test_the_first_verdict_is_repeated_even_after_another_opening_won(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    block = shard.block(epoch, part(writer, 1, 1))
    await shard.ingest.commit(block)
    await shard.opened(writer.pseudonym)
    assert (await shard.ingest.commit(block)).superseded == {}


@pytest.mark.parametrize("number", [1, 3, 0, 2**40])
async def test_any_number_but_the_next_is_refused(shard: Shard, number: int) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 1))
    before = await shard.everything()
    block = replace(shard.block(epoch, part(writer, 2, 2)), number=number, header=b"header" if number == 1 else b"")
    with pytest.raises(IntegrityError, match="NUMBER"):
        await shard.ingest.commit(block)
    assert await shard.everything() == before


async def test_a_repeated_number_with_another_digest_is_refused(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 1))
    await shard.commit(epoch, part(writer, 2, 2))
    other = shard.block(epoch, part(writer, 2, 2), number=2)
    with pytest.raises(IntegrityError, match="NUMBER"):
        await shard.ingest.commit(other)


async def test_the_first_block_of_an_epoch_brings_its_header_and_no_other_does(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    with pytest.raises(IntegrityError, match="HEADER"):
        await shard.ingest.commit(replace(shard.block(epoch, part(writer, 1, 1)), header=b""))
    await shard.commit(epoch, part(writer, 1, 1))
    with pytest.raises(IntegrityError, match="HEADER"):
        await shard.ingest.commit(replace(shard.block(epoch, part(writer, 2, 2)), header=b"again"))


async def test_superseded_sessions_are_named_with_the_winner_and_nothing_is_written(shard: Shard) -> None:
    current, epoch = await shard.writer(), shard.epoch()
    older = await shard.writer()
    newer = await shard.opened(older.pseudonym)
    before = await shard.everything()
    verdict = await shard.commit(epoch, part(current, 1, 1), part(older, 1, 1))
    assert verdict.superseded == {1: newer.opening}
    assert await shard.everything() == before
    assert (await shard.commit(epoch, part(current, 1, 1))).superseded == {}


async def test_a_session_out_of_step_is_named_alone_and_costs_the_others_nothing(shard: Shard) -> None:
    """Two streams under one repeated token: neither may stop the block of everybody else."""
    good, twin, epoch = await shard.writer(), await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(twin, 1, 2))
    for first, last in ((1, 1), (2, 5), (4, 4)):
        assert (await shard.commit(epoch, part(twin, first, last), part(good, 1, 1))).superseded == {0: 0}
    unknown = Writer(os.urandom(16), os.urandom(16))
    assert (await shard.commit(epoch, part(unknown, 1, 1), part(good, 1, 1))).superseded == {0: 0}
    assert (await shard.cursor(twin)).durable_seq == 2


async def test_an_opening_that_never_happened_commits_nothing(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    assert (await shard.commit(epoch, part(reopened(writer, 9), 1, 1))).superseded == {0: 0}


async def test_a_writer_with_too_many_rejections_is_named_alone(shard: Shard) -> None:
    writer, good, epoch = await shard.writer(), await shard.writer(), shard.epoch()
    for first in range(1, 4097, 1024):
        rejections = [(seq, 1) for seq in range(first, first + 1024)]
        assert not (await shard.commit(epoch, part(writer, first, first + 1023, rejections=rejections))).superseded
    verdict = await shard.commit(epoch, part(writer, 4097, 4097, rejections=[(4097, 1)]), part(good, 1, 1))
    assert verdict.superseded == {0: 0}
    assert not (await shard.commit(epoch, part(writer, 4097, 4097))).superseded
    assert len((await shard.cursor(writer)).rejected) == 4096


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: entry[:-1],
        lambda entry: entry + b"\0",
        lambda entry: b"",
        lambda entry: entry + entry,
        lambda entry: entry[:36] + (5).to_bytes(8, "big") + (4).to_bytes(8, "big") + entry[52:],
        lambda entry: entry[:-2] + b"\0\5" + b"12345",
    ],
    ids=["cut short", "extended", "empty", "twice", "last before first", "receipt without finish"],
)
async def test_malformed_entries_write_nothing(shard: Shard, spoil: object) -> None:
    assert callable(spoil)
    writer, epoch = await shard.writer(), shard.epoch()
    block = shard.block(epoch, part(writer, 1, 1))
    before = await shard.everything()
    count = 2 if spoil(b"xy") == b"xyxy" else 1
    with pytest.raises(IntegrityError, match="MALFORMED"):
        await shard.ingest.commit(replace(block, entries=spoil(block.entries), session_count=count))
    assert await shard.everything() == before


@pytest.mark.parametrize("count", [0, 2, 1_000_000])
async def test_a_count_that_does_not_fit_writes_nothing(shard: Shard, count: int) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    before = await shard.everything()
    with pytest.raises(IntegrityError, match=r"MALFORMED|TOO_LARGE"):
        await shard.ingest.commit(replace(shard.block(epoch, part(writer, 1, 1)), session_count=count))
    assert await shard.everything() == before


async def test_a_block_of_one_mebibyte_is_taken_and_one_byte_more_is_not(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    with pytest.raises(IntegrityError, match="TOO_LARGE"):
        await shard.commit(epoch, part(writer, 1, 1), content=bytes((1 << 20) + 1))
    assert not (await shard.commit(epoch, part(writer, 1, 1), content=bytes(1 << 20))).closed


async def test_a_block_of_a_thousand_sessions_is_taken_and_one_more_is_not(shard: Shard) -> None:
    epoch = shard.epoch()
    writers = await shard.writers(1001)
    parts = [part(writer, 1, 1, finish=True, receipt=b"r") for writer in writers]
    with pytest.raises(IntegrityError, match="TOO_LARGE"):
        await shard.commit(epoch, *parts)
    assert not (await shard.commit(epoch, *parts[:1000])).superseded
    assert (await shard.cursor(writers[999])).receipt == b"r"


async def test_all_thousand_sessions_may_be_superseded_at_once(shard: Shard) -> None:
    parts = [part(Writer(os.urandom(16), os.urandom(16)), 1, 1) for _ in range(1000)]
    assert len((await shard.commit(shard.epoch(), *parts)).superseded) == 1000


async def test_without_a_window_the_commit_is_closed(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.store.administer("DEL", shard.keys.window)
    assert (await shard.commit(epoch, part(writer, 1, 1))).closed
    assert await shard.store.administer("XLEN", shard.keys.spool) == 0


async def test_before_the_opening_the_commit_is_closed(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.window(1)
    assert (await shard.commit(epoch, part(writer, 1, 1))).closed


async def test_past_closes_at_and_grace_the_spools_own_clock_refuses(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    now = await shard.relay.time_ms()
    await shard.window(2, closes=now - 1_000, grace=600_000)
    assert not (await shard.commit(epoch, part(writer, 1, 1))).closed, "within the grace"
    await shard.window(2, closes=now - 1_000, grace=500)
    assert (await shard.commit(epoch, part(writer, 2, 2))).closed, "past it, though the phase says open"
    await shard.window(CLOSING, closes=now - 1_000, grace=500)
    assert (await shard.commit(epoch, part(writer, 2, 2))).closed


async def test_a_finish_keeps_its_receipt_and_ends_the_writer(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 2, rejections=[(1, 3)], finish=True, receipt=b"the receipt"))
    cursor = await shard.cursor(writer)
    assert (cursor.durable_seq, cursor.rejected, cursor.receipt) == (2, [(1, 3)], b"the receipt")
    assert (await shard.commit(epoch, part(writer, 3, 3))).superseded == {0: 0}


async def test_a_wrong_type_somewhere_writes_nothing(shard: Shard) -> None:
    """Functions are not rolled back: what could fail must fail before the first write."""
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.store.administer("DEL", shard.keys.spool)
    await shard.store.administer("SET", shard.keys.spool, "not a stream")
    with pytest.raises(SpoolUnsafe, match="WRONGTYPE"):
        await shard.commit(epoch, part(writer, 1, 1))
    assert await shard.store.administer("HGETALL", shard.keys.epochs) == {}
    assert await shard.store.administer("EXISTS", shard.keys.headers) == 0
    assert (await shard.cursor(writer)).durable_seq == 0

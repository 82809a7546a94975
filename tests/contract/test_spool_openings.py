"""What the Function `open_session` promises, on every server that a spool may run on."""

from __future__ import annotations

import os

import pytest

from pli.errors import IntegrityError
from server.store.spool import (
    CLOSED,
    FULL,
    NOT_OPEN,
    OPEN_ENTRY,
    OPENED,
    READ_ONLY,
    REFUSED,
    STALE,
    superseded_message,
)
from tests.contract.shard import CLOSING, FAR_FUTURE_MS, Shard, part, reopened

pytestmark = pytest.mark.asyncio(loop_scope="session")
CLASS, REVOKED = 2, 2


async def test_openings_are_counted_per_code(shard: Shard) -> None:
    pseudonym, writer = await shard.code(), os.urandom(16)
    assert [(await shard.opened(pseudonym, writer)).opening for _ in range(3)] == [1, 2, 3]


async def test_a_repeated_token_returns_the_same_opening(shard: Shard) -> None:
    pseudonym, writer, token = await shard.code(), os.urandom(16), os.urandom(16)
    first = await shard.opened(pseudonym, writer, token)
    before = await shard.store.administer("HGETALL", shard.keys.cursors)
    assert await shard.opened(pseudonym, writer, token) == first
    assert await shard.store.administer("HGETALL", shard.keys.cursors) == before


async def test_a_token_of_an_earlier_opening_counts_as_a_new_one(shard: Shard) -> None:
    pseudonym, writer, token = await shard.code(), os.urandom(16), os.urandom(16)
    await shard.opened(pseudonym, writer, token)
    await shard.opened(pseudonym, writer)
    assert (await shard.opened(pseudonym, writer, token)).opening == 3


async def test_a_token_repeated_after_another_writer_came_does_not_take_the_code_back_unseen(shard: Shard) -> None:
    pseudonym, writer, token = await shard.code(), os.urandom(16), os.urandom(16)
    await shard.opened(pseudonym, writer, token)
    await shard.opened(pseudonym)
    assert (await shard.opened(pseudonym, writer, token)).opening == 3


async def test_unknown_and_revoked_codes_get_the_same_verdict(shard: Shard) -> None:
    revoked = await shard.code(status=REVOKED)
    unknown = os.urandom(16)
    assert await shard.opened(revoked) == await shard.opened(unknown)
    assert (await shard.opened(unknown)).verdict == REFUSED


async def test_the_newest_opening_of_a_pupil_code_fences_the_older_writer(shard: Shard) -> None:
    first, epoch = await shard.writer(), shard.epoch()
    second = await shard.opened(first.pseudonym)
    assert (second.opening, second.displaced, second.durable_seq) == (2, True, 0)
    assert (await shard.commit(epoch, part(first, 1, 1))).superseded == {0: 2}


async def test_an_older_writer_that_returns_goes_on_where_it_was(shard: Shard) -> None:
    first, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(first, 1, 4, rejections=[(3, 2)]))
    await shard.opened(first.pseudonym)
    back = await shard.opened(first.pseudonym, first.writer)
    assert (back.opening, back.durable_seq, back.rejected) == (3, 4, [(3, 2)])
    assert not (await shard.commit(epoch, part(reopened(first, 3), 5, 5))).superseded


async def test_another_writers_durable_seq_is_never_told(shard: Shard) -> None:
    first, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(first, 1, 9))
    assert (await shard.opened(first.pseudonym)).durable_seq == 0


async def test_a_new_opening_is_published_with_its_writer(shard: Shard) -> None:
    first, writer = await shard.writer(), os.urandom(16)
    async with shard.ingest_redis.pubsub() as listener:
        await listener.subscribe(shard.keys.superseded)
        assert (await listener.get_message(timeout=5))["type"] == "subscribe"
        await shard.opened(first.pseudonym, writer)
        message = await listener.get_message(timeout=5)
    assert superseded_message(message["data"]) == (first.pseudonym, 2, writer)


async def test_a_finished_pupil_code_opens_read_only_for_its_writer_and_for_no_other(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 1, finish=True, receipt=b"receipt"))
    again = await shard.opened(writer.pseudonym, writer.writer)
    assert (again.verdict, again.opening, again.receipt) == (READ_ONLY, 1, b"receipt")
    assert await shard.opened(writer.pseudonym) == await shard.opened(os.urandom(16)), "as an unknown code"
    assert (await shard.opened(writer.pseudonym, writer.writer)).receipt == b"receipt", "still, after others tried"


async def test_an_opening_does_not_bring_a_finished_code_back(shard: Shard) -> None:
    first, epoch = await shard.writer(), shard.epoch()
    second = reopened(first, 2)
    await shard.opened(first.pseudonym, first.writer)
    await shard.commit(epoch, part(second, 1, 1, finish=True, receipt=b"receipt"))
    assert (await shard.opened(first.pseudonym, first.writer)).opening == 2
    assert (await shard.commit(epoch, part(second, 2, 2))).superseded


async def test_before_the_opening_everybody_gets_the_same_answer(shard: Shard) -> None:
    known = await shard.code()
    await shard.window(1)
    assert (await shard.opened(known)).verdict == NOT_OPEN
    assert (await shard.opened(os.urandom(16))).verdict == NOT_OPEN


async def test_while_closing_only_codes_with_a_cursor_open(shard: Shard) -> None:
    known, fresh = await shard.writer(), await shard.code()
    await shard.window(CLOSING)
    assert (await shard.opened(fresh)).verdict == CLOSED
    assert (await shard.opened(known.pseudonym, known.writer)).verdict == OPENED
    assert (await shard.opened(known.pseudonym)).verdict == OPENED, "also from another device"


async def test_after_the_schedule_has_closed_known_writers_read_and_others_are_told_closed(shard: Shard) -> None:
    writer, epoch, unused = await shard.writer(), shard.epoch(), await shard.code()
    await shard.commit(epoch, part(writer, 1, 3, rejections=[(2, 4)]))
    await shard.window(2, closes=await shard.relay.time_ms() - 10, grace=0)
    back = await shard.opened(writer.pseudonym, writer.writer)
    assert (back.verdict, back.durable_seq, back.rejected) == (READ_ONLY, 3, [(2, 4)])
    assert (await shard.opened(writer.pseudonym)).verdict == CLOSED
    assert (await shard.opened(unused)).verdict == CLOSED
    assert (await shard.opened(os.urandom(16))).verdict == CLOSED


async def test_after_the_flip_a_finished_writer_still_reads_its_receipt(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 1, finish=True, receipt=b"receipt"))
    await shard.close()
    back = await shard.opened(writer.pseudonym, writer.writer)
    assert (back.verdict, back.receipt) == (READ_ONLY, b"receipt")


async def test_without_room_only_codes_with_a_cursor_open(shard: Shard) -> None:
    known, fresh = await shard.writer(), await shard.code()
    assert (await shard.opened(fresh, admit=False)).verdict == FULL
    assert (await shard.opened(known.pseudonym, known.writer, admit=False)).verdict == OPENED


async def test_a_late_copy_of_an_older_call_is_refused_whole(shard: Shard) -> None:
    pseudonym = await shard.code()
    await shard.opened(pseudonym)
    await shard.opened(pseudonym)
    before = await shard.everything()
    with pytest.raises(IntegrityError, match="STALE"):
        await shard.opened(pseudonym, number=1)
    assert await shard.everything() == before


async def test_a_copy_that_arrives_after_its_time_opens_nothing(shard: Shard) -> None:
    pseudonym = await shard.code()
    assert (await shard.opened(pseudonym, valid_until=await shard.relay.time_ms() - 1)).verdict == STALE
    assert (await shard.opened(pseudonym)).opening == 1


async def test_the_same_call_again_repeats_what_it_opened_and_opens_nothing_else(shard: Shard) -> None:
    pseudonym, writer, token = await shard.code(), os.urandom(16), os.urandom(16)
    first = await shard.opened(pseudonym, writer, token)
    assert await shard.opened(pseudonym, writer, token, number=shard.calls) == first
    other = await shard.code()
    assert (await shard.opened(other, number=shard.calls - 1)).verdict == STALE


async def test_one_call_opens_many_codes_and_the_same_code_twice(shard: Shard) -> None:
    pseudonyms = [await shard.code() for _ in range(3)]
    entries = [OPEN_ENTRY.pack(each, os.urandom(16), os.urandom(16)) for each in (*pseudonyms, pseudonyms[0])]
    _, verdicts = await shard.ingest.open_sessions(shard.node, 1, FAR_FUTURE_MS, True, entries)
    assert [verdict.opening for verdict in verdicts] == [1, 1, 1, 2]


@pytest.mark.parametrize("entries", [b"x" * 47, b"x" * 48 * 1001], ids=["not whole", "too many"])
async def test_a_malformed_call_is_refused(shard: Shard, entries: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"MALFORMED|TOO_LARGE"):
        await shard.ingest.open_sessions(shard.node, 1, FAR_FUTURE_MS, True, [entries])


async def test_writers_of_a_class_code_live_side_by_side(shard: Shard) -> None:
    first, epoch = await shard.writer(CLASS, seats=24), shard.epoch()
    second_writer = os.urandom(16)
    second = await shard.opened(first.pseudonym, second_writer)
    assert (second.opening, second.seats, second.displaced) == (2, 24, False)
    both = (part(first, 1, 1), part(type(first)(first.pseudonym, second_writer, 2), 1, 3))
    assert not (await shard.commit(epoch, *both)).superseded
    back = await shard.opened(first.pseudonym, first.writer)
    assert (back.opening, back.durable_seq) == (3, 1)
    assert (await shard.commit(epoch, part(first, 2, 2))).superseded == {0: 3}, "its own older stream is fenced"


async def test_one_writer_of_a_class_finishes_for_itself_alone(shard: Shard) -> None:
    first, epoch = await shard.writer(CLASS, seats=24), shard.epoch()
    other = type(first)(first.pseudonym, os.urandom(16), 2)
    await shard.opened(other.pseudonym, other.writer)
    await shard.commit(epoch, part(first, 1, 1, finish=True, receipt=b"receipt"))
    assert not (await shard.commit(epoch, part(other, 1, 1))).superseded
    back = await shard.opened(first.pseudonym, first.writer)
    assert (back.verdict, back.receipt) == (READ_ONLY, b"receipt")
    assert (await shard.opened(first.pseudonym)).verdict == OPENED


async def test_a_token_of_a_class_writer_repeats_its_opening_whoever_came_meanwhile(shard: Shard) -> None:
    pseudonym, writer, token = await shard.code(CLASS, seats=3), os.urandom(16), os.urandom(16)
    await shard.opened(pseudonym, writer, token)
    await shard.opened(pseudonym)
    assert (await shard.opened(pseudonym, writer, token)).opening == 1

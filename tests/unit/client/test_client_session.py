"""One session on one stream: numbers, openings, window, rejections, finish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from hashlib import sha256
from struct import pack
from typing import Any

import grpc
import pytest

from pli.canonical import canonical
from pli.client import AnswerRejected, PupilSession, RejectionTold, SessionOpened
from pli.errors import CodeRefused, InputError, IntegrityError, StateError, StreamViolation
from pli.ingest.v1.ingest_pb2 import Answer, Answers, Choices, Finish, Opened, RejectReason, SubmitResponse
from tests.support.client_sessions import CODE, OPTIONS, Clock, Told, session_of
from tests.support.scripted_ingest import CAMPAIGN, ScriptedIngest, ScriptedStream, receipt_of

UNKNOWN_ITEM = RejectReason.REJECT_REASON_UNKNOWN_ITEM


async def test_open_names_campaign_code_and_queue_and_nothing_is_sent_before_opened() -> None:
    opens = []

    async def script(stream: ScriptedStream) -> None:
        opens.append(await stream.opening())
        await stream.nothing()
        await stream.send(SubmitResponse(opened=Opened(opening=1, max_in_flight=8)))

    async with ScriptedIngest(script) as peer:
        session = session_of(peer)
        async with session:
            assert session.opening == 1
    (request,) = opens
    assert (request.protocol_version, request.campaign_id, request.acked_seq) == (1, CAMPAIGN, 0)
    assert request.code == CODE.reveal()
    assert request.writer == session.writer
    assert len(request.writer) == len(request.token) == 16


async def test_answers_are_numbered_from_one_and_carry_the_opening_in_which_they_were_given() -> None:
    read: list[Answers] = []

    async def script(stream: ScriptedStream) -> None:
        await stream.let_in(opening=3)
        read.extend(await stream.answers_up_to(7))
        await stream.ack(7)

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        given = [
            await session.answer("one", choice="B", elapsed_ms=1200),
            await session.answer("many", choices=["A", "C"]),
            await session.answer("words", text="à côté"),
            await session.answer("count", number="1,50"),
            await session.answer("count", number=Decimal("1.5E+1")),
            await session.answer("count", number=-7),
            await session.answer("one", cleared=True),
        ]
        await session.flush()
    assert [each.seq for each in given] == [1, 2, 3, 4, 5, 6, 7]
    assert read[0].first_seq == 1
    answers = [answer for message in read for answer in message.answers]
    assert answers[0] == Answer(item_id="one", choices=Choices(options=["B"]), opening=3, elapsed_ms=1200)
    assert list(answers[1].choices.options) == ["A", "C"]
    assert answers[2].text == "à côté"
    assert [answer.number for answer in answers[3:6]] == ["1,50", "15", "-7"]
    assert answers[6].WhichOneof("value") == "cleared"
    assert {answer.opening for answer in answers} == {3}


async def test_awaiting_an_answer_returns_once_it_is_acknowledged_and_not_before() -> None:
    let_go = asyncio.Event()

    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(2)
        await stream.ack(1)
        await let_go.wait()
        await stream.ack(2)

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        first, second = await session.answer("one", choice="A"), await session.answer("one", choice="B")
        await first
        waiting = asyncio.ensure_future(second)
        await asyncio.wait({waiting}, timeout=0.05)
        assert not waiting.done()
        assert session.settled.durable_seq == 1
        assert list(session.settled.unsettled) == [2]
        let_go.set()
        await waiting


async def test_no_more_is_in_flight_than_the_platform_allows_and_further_answers_wait() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in(max_in_flight=3)
        await stream.answers_up_to(3)
        await stream.nothing()
        await stream.ack(2)
        await stream.answers_up_to(5)
        await stream.nothing()
        await stream.ack(5)

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        for _ in range(3):
            await session.answer("one", choice="A")
        fourth = asyncio.ensure_future(session.answer("one", choice="B"))
        await asyncio.wait({fourth}, timeout=0.05)
        assert not fourth.done()
        assert (await fourth).seq == 4
        await session.answer("one", choice="C")
        await session.flush()


async def test_one_message_holds_at_most_64_answers_and_no_more_bytes_than_a_node_reads() -> None:
    read: list[Answers] = []

    async def script(stream: ScriptedStream) -> None:
        await stream.opening()
        await stream.send(SubmitResponse(opened=Opened(opening=1, max_in_flight=256)))
        read.extend(await stream.answers_up_to(100))
        await stream.ack(100)
        read.extend(await stream.answers_up_to(130))
        await stream.ack(130)

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        for _ in range(100):
            await session.answer("one", choice="A")
        await session.flush()
        for _ in range(30):
            await session.answer("essay", text="x" * 8_000)
        await session.flush()
    assert max(len(message.answers) for message in read) == 64
    assert max(message.ByteSize() for message in read) <= 132 * 1024
    numbers = [message.first_seq + offset for message in read for offset in range(len(message.answers))]
    assert numbers == list(range(1, 131))


async def test_a_gap_told_by_the_platform_is_filled_from_the_number_it_expects() -> None:
    read: list[Answers] = []

    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(3)
        await stream.expect(2)
        read.extend(await stream.answers_up_to(3))
        await stream.ack(3)

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        for option in "ABC":
            await session.answer("one", choice=option)
        await session.flush()
    assert read[0].first_seq == 2


async def test_a_rejected_answer_is_told_and_does_not_stop_the_session() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(2)
        await stream.reject(1, UNKNOWN_ITEM)
        await stream.ack(2)
        await stream.answers_up_to(3)
        await stream.ack(3)

    told = Told()
    async with ScriptedIngest(script) as peer, session_of(peer, on_event=told) as session:
        first, second = await session.answer("oen", choice="A"), await session.answer("one", choice="B")
        with pytest.raises(AnswerRejected) as caught:
            await first
        await second
        await (await session.answer("one", choice="C"))
        assert (caught.value.seq, caught.value.why) == (1, UNKNOWN_ITEM)
        assert "UNKNOWN_ITEM" in caught.value.message
        assert told.of(RejectionTold) == [RejectionTold(1, UNKNOWN_ITEM)]
        assert dict(session.settled.rejected) == {1: UNKNOWN_ITEM}
        assert session.settled.stored == 2


async def test_finish_waits_for_every_ack_and_digests_what_was_accepted_as_the_protocol_says() -> None:
    finishes: list[Finish] = []
    read: list[Answers] = []

    async def script(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2)
        read.extend(await stream.answers_up_to(3))
        await stream.nothing()
        await stream.reject(2, UNKNOWN_ITEM)
        await stream.ack(3)
        finishes.append(await stream.finish())
        await stream.ack(4)
        await stream.finished(receipt_of(finishes[0]))

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        for option in "ABC":
            await session.answer("one", choice=option)
        receipt = await session.finish()
        assert await session.finish() == receipt
    (finish,) = finishes
    answers = [answer for message in read for answer in message.answers]
    expected = b"".join(
        pack(">QI", seq, len(raw)) + raw for seq, raw in ((1, canonical(answers[0])), (3, canonical(answers[2])))
    )
    assert (finish.seq, finish.count, finish.opening) == (4, 2, 2)
    assert finish.digest == sha256(expected).digest()
    assert (receipt.campaign_id, receipt.last_seq, receipt.count) == (CAMPAIGN, 4, 2)
    assert receipt.short() == f"3fa1c2d0-2-{sha256(receipt_of(finish).body).hexdigest()[:8]}"
    assert session.receipt == receipt


async def test_nothing_follows_a_finish() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        finish = await stream.finish()
        await stream.ack(1)
        await stream.finished(receipt_of(finish))

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        await session.finish()
        with pytest.raises(StateError):
            await session.answer("one", choice="A")


async def test_a_finish_that_the_platform_counts_otherwise_stops_the_session_loudly() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.finish()
        await stream.reject(1, RejectReason.REJECT_REASON_BAD_FINISH)
        await stream.ack(1)

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        with pytest.raises(IntegrityError):
            await session.finish()


async def test_a_receipt_before_the_finish_is_acknowledged_is_not_believed() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.finished(receipt_of(await stream.finish()))

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        with pytest.raises(IntegrityError, match="not acknowledged"):
            await session.finish()


@pytest.mark.parametrize("claim", ["ack", "reject", "expect", "finished", "opened"])
async def test_a_platform_that_speaks_of_what_was_never_sent_is_not_believed(claim: str) -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        match claim:
            case "ack":
                await stream.ack(2)
            case "reject":
                await stream.reject(2, UNKNOWN_ITEM)
            case "expect":
                await stream.expect(3)
            case "finished":
                await stream.finished(receipt_of(Finish(seq=2, count=1)))
            case "opened":
                await stream.send(SubmitResponse(opened=Opened(opening=1)))

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        await session.answer("one", choice="A")
        with pytest.raises(StreamViolation if claim == "opened" else IntegrityError):
            await session.flush()


async def test_an_opened_that_claims_more_than_was_sent_is_not_believed() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in(durable_seq=1)

    async with ScriptedIngest(script) as peer:
        with pytest.raises(IntegrityError):
            await session_of(peer).open()


async def test_a_stream_that_does_not_begin_with_opened_is_refused() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.opening()
        await stream.ack(0)

    async with ScriptedIngest(script) as peer:
        with pytest.raises(StreamViolation):
            await session_of(peer).open()


async def test_a_platform_that_sends_what_is_no_message_is_left() -> None:
    async def garbage(requests: AsyncIterator[bytes], context: Any) -> None:
        await context.read()
        await context.write(b"\xff\xff")
        await context.read()

    handler: Any = grpc.stream_stream_rpc_method_handler(garbage)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("pli.ingest.v1.IngestService", {"Submit": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        session = PupilSession(OPTIONS, CODE, channel=channel, ports=Clock().ports())
        with pytest.raises(StreamViolation):
            await session.open()
        await session.close()
    await server.stop(None)


async def test_a_mistyped_code_is_refused_before_anything_is_sent() -> None:
    typed = CODE.printed()
    wrong = ("0" if typed[0] != "0" else "1") + typed[1:]
    async with ScriptedIngest() as peer:
        with pytest.raises(CodeRefused) as caught:
            PupilSession(OPTIONS, wrong, channel=peer.channel())
        assert wrong not in caught.value.message
        assert peer.streams == []


async def test_a_code_is_taken_as_people_type_it() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()

    async with ScriptedIngest(script) as peer:
        async with PupilSession(OPTIONS, f"  {CODE.printed().lower()} ", channel=peer.channel()):
            pass
        assert peer.streams[0].open.code == CODE.reveal()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"choice": "A", "text": "x"},
        {"choice": "A", "cleared": True},
        {"choices": "AC"},
        {"choice": 1},
        {"text": b"\xff"},
        {"text": "\ud800"},
        {"number": 1.5},
        {"number": True},
        {"number": Decimal("NaN")},
        {"number": Decimal("1E+999999999")},
        {"text": "x" * 20_000},
        {"choice": "A", "elapsed_ms": -1},
        {"choice": "A", "elapsed_ms": 2**32},
    ],
    ids=str,
)
async def test_what_no_message_can_hold_gets_no_number_and_is_not_quoted(values: dict[str, object]) -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        assert (await stream.answers()).first_seq == 1
        await stream.ack(1)

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        with pytest.raises(InputError) as caught:
            await session.answer("one", **values)  # type: ignore[arg-type]  # wrong on purpose
        for value in values.values():
            assert isinstance(value, bool | int) or repr(value) not in caught.value.message
        assert (await session.answer("one", choice="A")).seq == 1


async def test_a_session_that_is_not_open_says_so() -> None:
    async with ScriptedIngest() as peer:
        session = session_of(peer)
        with pytest.raises(StateError):
            await session.answer("one", choice="A")
        with pytest.raises(StateError):
            await session.finish()
        await session.close()
        with pytest.raises(StateError):
            await session.open()


async def test_leaving_the_block_waits_until_everything_given_is_settled() -> None:
    let_go = asyncio.Event()

    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        await let_go.wait()
        await stream.ack(1)

    async def whole(peer: ScriptedIngest) -> PupilSession:
        async with session_of(peer) as session:
            await session.answer("one", choice="A")
        return session

    async with ScriptedIngest(script) as peer:
        leaving = asyncio.create_task(whole(peer))
        await asyncio.wait({leaving}, timeout=0.1)
        assert not leaving.done()
        let_go.set()
        assert (await leaving).settled.durable_seq == 1


async def test_leaving_the_block_by_an_exception_leaves_at_once() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.left()

    async def broken_block(session: PupilSession) -> None:
        async with session:
            await session.answer("one", choice="A")
            raise ZeroDivisionError

    async with ScriptedIngest(script) as peer:
        session = session_of(peer)
        with pytest.raises(ZeroDivisionError):
            await broken_block(session)
        assert session.settled.durable_seq == 0


async def test_what_opened_tells_is_an_event() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in(opening=4, instrument_version="7", closes_at_ms=9, server_time_ms=8)

    told = Told()
    async with ScriptedIngest(script) as peer, session_of(peer, on_event=told):
        assert told.events == [SessionOpened(4, 0, "7", 9, 8)]


async def test_a_session_needs_two_tasks_however_many_answers_are_given() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(200)
        await stream.nothing()
        await stream.ack(200)

    async with ScriptedIngest(script) as peer, session_of(peer) as session:

        def own_tasks() -> int:
            return sum("pli/client" in task.get_coro().cr_code.co_filename for task in asyncio.all_tasks())  # type: ignore[union-attr]

        before = own_tasks()
        for _ in range(200):
            await session.answer("one", choice="A")
        assert own_tasks() == before == 2
        await session.flush()


async def test_sessions_may_share_a_channel_that_none_of_them_closes() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        await stream.ack(1)

    async with ScriptedIngest(script, script, script) as peer:
        channel = peer.channel()
        sessions = [PupilSession(OPTIONS, CODE, channel=channel, ports=Clock().ports()) for _ in range(3)]
        for session in sessions:
            async with session:
                await session.answer("one", choice="A")
        assert len({session.writer for session in sessions}) == 3
        assert len({stream.peer for stream in peer.streams}) == 1


async def test_no_session_prints_its_code_or_its_answers() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        await stream.ack(1)

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        given = await session.answer("essay", text="Sésame")
        await given
        for shown in (session, given, session.settled, session._queue, session._link, session._code):
            text = f"{shown!r} {shown} {shown:}"
            assert "Sésame" not in text
            assert CODE.reveal() not in text
            assert CODE.printed() not in text

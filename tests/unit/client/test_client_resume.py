"""A session over several streams: what breaks, what is repeated, when it opens again, and when not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from pli.client import (
    ClosingTold,
    DrainTold,
    OverloadTold,
    PupilSession,
    RejectionTold,
    SessionInterrupted,
    SessionOpened,
    SpoolWentBack,
    SupersededTold,
)
from pli.development_ca import DevelopmentAuthority
from pli.errors import (
    CampaignClosed,
    CampaignNotOpen,
    CodeRefused,
    Draining,
    IntegrityError,
    NotFound,
    Overloaded,
    PliError,
    SessionSuperseded,
    StateError,
    StreamViolation,
    Unavailable,
    VersionMismatch,
)
from pli.ingest.v1.ingest_pb2 import (
    Answers,
    Closing,
    Drain,
    Finish,
    Opened,
    Rejected,
    RejectReason,
    SubmitResponse,
    Superseded,
)
from pli.process import split_address
from pli.tls import server_credentials
from tests.support.client_sessions import CODE, OPTIONS, Clock, Told, session_of
from tests.support.cuts import CuttingProxy
from tests.support.scripted_ingest import Script, ScriptedIngest, ScriptedStream, receipt_of
from tests.support.waiting import until

UNKNOWN_ITEM = RejectReason.REJECT_REASON_UNKNOWN_ITEM
SUPERSEDED = Superseded(opening=9)


async def lost_at_once(stream: ScriptedStream) -> None:
    await stream.opening()
    await stream.lose()


def refusing(error: PliError) -> Script:
    async def script(stream: ScriptedStream) -> None:
        await stream.opening()
        await stream.refuse(error)

    return script


async def test_after_a_break_everything_not_durable_is_sent_again_as_it_was_given() -> None:
    again: list[Answers] = []

    async def first(stream: ScriptedStream) -> None:
        await stream.let_in(opening=1)
        await stream.answers_up_to(3)
        await stream.ack(1)
        await stream.lose()

    async def second(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2, durable_seq=2)
        again.extend(await stream.answers_up_to(4))
        await stream.ack(4)

    told = Told()
    async with ScriptedIngest(first, second) as peer, session_of(peer, on_event=told) as session:
        for option in "ABC":
            await session.answer("one", choice=option)
        await told.wait_for(SessionOpened, 2)
        await session.answer("one", choice="D")
        await session.flush()
    opens = [stream.open for stream in peer.streams]
    assert opens[0].writer == opens[1].writer
    assert opens[0].token != opens[1].token
    assert [each.acked_seq for each in opens] == [0, 1]
    assert again[0].first_seq == 3
    answers = [answer for message in again for answer in message.answers]
    assert [(list(answer.choices.options), answer.opening) for answer in answers] == [(["C"], 1), (["D"], 2)]


async def test_answers_given_while_the_connection_is_away_are_kept_and_sent_later() -> None:
    given = asyncio.Event()

    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.lose()

    async def second(stream: ScriptedStream) -> None:
        await given.wait()
        await stream.let_in(opening=2)
        await stream.answers_up_to(2)
        await stream.ack(2)

    told = Told()
    async with ScriptedIngest(first, second) as peer, session_of(peer, on_event=told) as session:
        await told.wait_for(SessionInterrupted)
        await session.answer("one", choice="A")
        await session.answer("one", choice="B")
        given.set()
        await session.flush()
        assert session.settled.stored == 2


async def test_the_token_is_repeated_while_the_outcome_of_an_open_is_unknown_and_new_otherwise() -> None:
    async def served(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.lose()

    async def last(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2)

    scripts = [
        lost_at_once,
        refusing(Unavailable("not ready")),
        lost_at_once,
        refusing(Overloaded("full", retry_after_ms=5)),
        lost_at_once,
        served,
        last,
    ]
    told = Told()
    async with ScriptedIngest(*scripts) as peer:
        async with session_of(peer, on_event=told):
            await told.wait_for(SessionOpened, 2)
        tokens = [stream.open.token for stream in peer.streams]
    assert tokens[0] == tokens[1] == tokens[2] == tokens[3]
    assert tokens[4] == tokens[5] != tokens[3]
    assert tokens[6] not in tokens[:6]


async def test_waits_between_attempts_grow_up_to_a_bound_and_start_anew_after_progress() -> None:
    async def served(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        await stream.ack(1)
        await stream.lose()

    async def last(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2, durable_seq=1)

    clock, told = Clock(), Told()
    scripts = [*[lost_at_once] * 6, served, last]
    async with ScriptedIngest(*scripts) as peer, session_of(peer, clock=clock, on_event=told) as session:
        await session.answer("one", choice="A")
        await told.wait_for(SessionOpened, 2)
    assert clock.slept == [0.05, 0.1, 0.2, 0.4, 0.4, 0.4, 0.05]
    assert told.of(SessionInterrupted)[0].retry_in_ms == 50


async def test_an_unknown_item_rejected_before_the_break_is_known_from_opened() -> None:
    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(2)
        await stream.lose()

    async def second(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2, durable_seq=2, rejected=[Rejected(seq=1, reason=UNKNOWN_ITEM)])
        finish = await stream.finish()
        assert finish.count == 1
        await stream.ack(3)
        await stream.finished(receipt_of(finish))

    told = Told()
    async with ScriptedIngest(first, second) as peer, session_of(peer, on_event=told) as session:
        await session.answer("oen", choice="A")
        await session.answer("one", choice="A")
        assert (await session.finish()).count == 1
        assert told.of(RejectionTold) == [RejectionTold(1, UNKNOWN_ITEM)]


async def test_a_superseded_session_stops_and_opens_again_only_by_a_persons_act() -> None:
    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        await stream.notice(superseded=SUPERSEDED)
        await stream.ack(1)
        await stream.refuse(SessionSuperseded("elsewhere"))

    async def second(stream: ScriptedStream) -> None:
        await stream.let_in(opening=10, durable_seq=1)
        await stream.answers_up_to(2)
        await stream.ack(2)

    told = Told()
    async with ScriptedIngest(first, second) as peer, session_of(peer, on_event=told) as session:
        await session.answer("one", choice="A")
        await told.wait_for(SupersededTold)
        with pytest.raises(SessionSuperseded):
            await (await session.answer("one", choice="B"))
        with pytest.raises(SessionSuperseded):
            await session.answer("one", choice="C")
        assert session.settled.durable_seq == 1, "what was acknowledged after the notice counts"
        assert len(peer.streams) == 1
        await session.open()
        await session.flush()
        assert session.settled.stored == 2


async def test_a_superseded_session_stops_even_when_the_connection_breaks_before_the_status() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.notice(superseded=SUPERSEDED)
        await stream.lose()

    async with ScriptedIngest(script) as peer, session_of(peer) as session:
        with pytest.raises(SessionSuperseded):
            await (await session.answer("one", choice="A"))
        assert len(peer.streams) == 1


async def test_a_superseded_session_sends_nothing_more() -> None:
    told = Told()

    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.notice(superseded=SUPERSEDED)
        await stream.nothing(0.2)
        await stream.refuse(SessionSuperseded("elsewhere"))

    async with ScriptedIngest(script) as peer, session_of(peer, on_event=told) as session:
        await told.wait_for(SupersededTold)
        with pytest.raises(SessionSuperseded):
            await (await session.answer("one", choice="A"))


async def test_a_finish_whose_answer_was_lost_is_answered_by_the_receipt_in_opened() -> None:
    finishes: list[Finish] = []

    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        finishes.append(await stream.finish())
        await stream.lose()

    async def second(stream: ScriptedStream) -> None:
        await stream.opening()
        opened = Opened(opening=1, durable_seq=1, read_only=True, receipt=receipt_of(finishes[0]))
        await stream.send(SubmitResponse(opened=opened))

    async with ScriptedIngest(first, second) as peer, session_of(peer) as session:
        assert (await session.finish()).last_seq == 1
        assert len(peer.streams) == 2


async def test_a_finish_that_was_not_stored_is_sent_again_under_its_number_and_opening() -> None:
    finishes: list[Finish] = []

    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        finishes.append(await stream.finish())
        await stream.lose()

    async def second(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2)
        finishes.append(await stream.finish())
        await stream.ack(1)
        await stream.finished(receipt_of(finishes[1]))

    async with ScriptedIngest(first, second) as peer, session_of(peer) as session:
        await session.finish()
    assert finishes[0] == finishes[1]


async def test_a_window_closed_in_the_middle_is_asked_once_more_and_the_truth_is_told() -> None:
    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(4)
        await stream.ack(1)
        await stream.refuse(CampaignClosed("closed"))

    async def second(stream: ScriptedStream) -> None:
        rejected = [Rejected(seq=2, reason=UNKNOWN_ITEM)]
        await stream.let_in(durable_seq=3, read_only=True, rejected=rejected)

    clock = Clock()
    async with ScriptedIngest(first, second) as peer, session_of(peer, clock=clock) as session:
        given = [await session.answer("one", choice=option) for option in "ABCD"]
        with pytest.raises(CampaignClosed) as caught:
            await given[3]
        assert "2 stored, 1 rejected, 1 not stored" in caught.value.message
        assert caught.value.metadata == {"durable_seq": "3", "left": "1"}
        await given[2]
        assert (session.settled.durable_seq, session.settled.stored, list(session.settled.unsettled)) == (3, 2, [4])
        with pytest.raises(CampaignClosed):
            await session.finish()
    assert clock.slept == [0.05], "ten thousand sessions do not ask at one moment"


async def test_after_the_close_a_finish_that_was_stored_still_gets_its_receipt() -> None:
    finishes: list[Finish] = []

    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        finishes.append(await stream.finish())
        await stream.refuse(CampaignClosed("closed"))

    async def second(stream: ScriptedStream) -> None:
        await stream.let_in(durable_seq=1, read_only=True, receipt=receipt_of(finishes[0]))

    async with ScriptedIngest(first, second) as peer, session_of(peer) as session:
        assert (await session.finish()).count == 0


async def test_a_window_that_was_closed_before_is_told_without_asking_twice() -> None:
    async with ScriptedIngest(refusing(CampaignClosed("closed"))) as peer:
        with pytest.raises(CampaignClosed):
            await session_of(peer).open()
        assert len(peer.streams) == 1


async def test_after_the_close_what_cannot_be_asked_is_not_claimed() -> None:
    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(2)
        await stream.ack(1)
        await stream.refuse(CampaignClosed("closed"))

    purged = refusing(CampaignClosed("purged"))
    async with ScriptedIngest(first, purged) as peer, session_of(peer) as session:
        await session.answer("one", choice="A")
        with pytest.raises(CampaignClosed, match="1 stored, 0 rejected, 1 not known to be stored"):
            await (await session.answer("one", choice="B"))


@pytest.mark.parametrize(
    "error",
    [
        CodeRefused("refused"),
        CampaignNotOpen("not yet"),
        VersionMismatch("too old"),
        NotFound("another campaign"),
        StreamViolation("malformed"),
        IntegrityError("broken"),
        StateError("anything else"),
    ],
    ids=lambda error: error.reason,
)
async def test_what_opening_again_does_not_cure_stops_the_session_at_once(error: PliError) -> None:
    clock = Clock()
    async with ScriptedIngest(refusing(error)) as peer:
        with pytest.raises(type(error)) as caught:
            await session_of(peer, clock=clock).open()
        assert caught.value.message == error.message
    assert clock.slept == []


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED,
     grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED],
)  # fmt: skip
async def test_whatever_a_broken_connection_looks_like_the_session_opens_again(code: grpc.StatusCode) -> None:
    async def broken(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.lose(code)

    async def last(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2)

    told = Told()
    async with ScriptedIngest(broken, last) as peer, session_of(peer, on_event=told):
        await told.wait_for(SessionOpened, 2)


async def test_a_fault_inside_the_node_is_tried_again() -> None:
    async def last(stream: ScriptedStream) -> None:
        await stream.let_in()

    async with ScriptedIngest(refusing(PliError("internal")), last) as peer, session_of(peer):
        assert len(peer.streams) == 2


async def test_an_overloaded_platform_is_asked_again_exactly_in_the_slot_it_gave_on_the_same_connection(
    tmp_path: Path,
) -> None:
    async def last(stream: ScriptedStream) -> None:
        await stream.let_in()

    clock, told = Clock(), Told()
    files = DevelopmentAuthority(tmp_path).issue("ingest", "node-1", ("127.0.0.1",))
    full = refusing(Overloaded("full", retry_after_ms=7_310))
    credentials = server_credentials(files, ask_for_certificate=False)
    async with ScriptedIngest(full, last, credentials=credentials) as peer:
        options = replace(OPTIONS, address=peer.address, authority=files.authority_file.read_bytes())
        async with PupilSession(options, CODE, on_event=told, ports=clock.ports()):
            assert told.of(OverloadTold) == [OverloadTold(7_310)]
        assert clock.slept == [7.31]
        assert peer.streams[0].peer == peer.streams[1].peer


async def test_an_overloaded_platform_that_gives_no_slot_is_asked_again_with_back_off() -> None:
    async def last(stream: ScriptedStream) -> None:
        await stream.let_in()

    clock, full = Clock(), refusing(Overloaded("full", retry_after_ms=0))
    async with ScriptedIngest(full, full, last) as peer, session_of(peer, clock=clock):
        assert clock.slept == [0.05, 0.1]


async def test_a_stream_that_lived_for_a_while_starts_the_back_off_anew() -> None:
    lose = asyncio.Event()

    async def served(stream: ScriptedStream) -> None:
        await stream.let_in()
        await lose.wait()
        await stream.lose()

    async def last(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2)

    clock, told = Clock(), Told()
    scripts = [*[lost_at_once] * 3, served, last]
    async with ScriptedIngest(*scripts) as peer, session_of(peer, clock=clock, on_event=told):
        clock.now += 60
        lose.set()
        await told.wait_for(SessionOpened, 2)
    assert clock.slept == [0.05, 0.1, 0.2, 0.05]


async def test_a_session_that_ended_holds_no_connection(tmp_path: Path) -> None:
    async def finished(stream: ScriptedStream) -> None:
        await stream.let_in()
        finish = await stream.finish()
        await stream.ack(1)
        await stream.finished(receipt_of(finish))

    async def served(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.left()

    files = DevelopmentAuthority(tmp_path).issue("ingest", "node-1", ("127.0.0.1",))
    credentials = server_credentials(files, ask_for_certificate=False)
    peer = ScriptedIngest(finished, refusing(CampaignNotOpen("not yet")), served, credentials=credentials)
    async with peer, CuttingProxy(*split_address(peer.address)) as proxy:
        options = replace(OPTIONS, address=proxy.address, authority=files.authority_file.read_bytes())

        async def none_is_open() -> bool:
            return proxy.open_connections == 0

        async with PupilSession(options, CODE) as session:
            await session.finish()
            await until(none_is_open, "the connection of a finished session to be closed")
        refused = PupilSession(options, CODE)
        with pytest.raises(CampaignNotOpen):
            await refused.open()
        await until(none_is_open, "the connection of a stopped session to be closed")
        async with PupilSession(options, CODE):
            assert proxy.open_connections == 1
        await until(none_is_open, "the connection of a session that was left to be closed")
        assert proxy.connections == 3


async def test_a_lost_connection_is_made_anew_and_a_foreign_authority_is_not_trusted(tmp_path: Path) -> None:
    async def last(stream: ScriptedStream) -> None:
        await stream.let_in()

    files = DevelopmentAuthority(tmp_path / "ours").issue("ingest", "node-1", ("127.0.0.1",))
    foreign = DevelopmentAuthority(tmp_path / "foreign").authority_file
    credentials = server_credentials(files, ask_for_certificate=False)
    async with ScriptedIngest(lost_at_once, last, credentials=credentials) as peer:
        options = replace(OPTIONS, address=peer.address, authority=files.authority_file.read_bytes())
        async with PupilSession(options, CODE, ports=Clock().ports()):
            assert peer.streams[0].peer != peer.streams[1].peer
        wrong = replace(options, authority=foreign.read_bytes(), give_up_seconds=0.01)
        session = PupilSession(wrong, CODE, ports=Clock().ports())
        with pytest.raises(Unavailable):
            await session.open()
        await session.close()
        assert len(peer.streams) == 2


async def test_a_drain_stops_sending_keeps_what_is_in_flight_and_moves_after_the_delay() -> None:
    draining, stayed = asyncio.Event(), asyncio.Event()

    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        await stream.notice(drain=Drain(reconnect_after_ms=60_000))
        draining.set()
        await stream.nothing(0.2)
        stayed.set()
        await stream.ack(1)
        assert await stream.receive() is None, "with nothing in flight the stream is left"

    async def second(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2, durable_seq=1)
        await stream.answers_up_to(2)
        await stream.ack(2)

    clock, told = Clock(), Told()
    async with ScriptedIngest(first, second) as peer, session_of(peer, clock=clock, on_event=told) as session:
        await session.answer("one", choice="A")
        await draining.wait()
        await told.wait_for(DrainTold)
        await session.answer("one", choice="B")
        await session.flush()
    assert stayed.is_set(), "what is in flight is waited for"
    assert told.of(DrainTold) == [DrainTold(60_000)]
    assert clock.slept == [60.0]


async def test_a_drained_stream_that_does_not_end_is_left_after_the_delay() -> None:
    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        await stream.notice(drain=Drain(reconnect_after_ms=50))
        await stream.left()

    async def second(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2)
        await stream.answers_up_to(1)
        await stream.ack(1)

    async with ScriptedIngest(first, second) as peer, session_of(peer) as session:
        await (await session.answer("one", choice="A"))


async def test_a_node_that_stops_refuses_by_draining_and_is_asked_again_with_back_off() -> None:
    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        await stream.notice(drain=Drain(reconnect_after_ms=500))
        await stream.refuse(Draining("stopping"))

    async def last(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2)
        await stream.answers_up_to(1)
        await stream.ack(1)

    clock = Clock()
    scripts = [first, refusing(Draining("stopping")), last]
    async with ScriptedIngest(*scripts) as peer, session_of(peer, clock=clock) as session:
        await (await session.answer("one", choice="A"))
    assert clock.slept == [0.5, 0.05]


async def test_a_closing_window_is_an_event_and_the_session_goes_on() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.notice(closing=Closing(until_ms=1_767_600_000_000))
        await stream.answers_up_to(1)
        await stream.ack(1)

    told = Told()
    async with ScriptedIngest(script) as peer, session_of(peer, on_event=told) as session:
        assert await told.wait_for(ClosingTold) == ClosingTold(1_767_600_000_000)
        await (await session.answer("one", choice="A"))


async def test_a_session_gives_up_after_its_time_and_goes_on_from_there_when_it_is_opened_again() -> None:
    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        await stream.lose()

    async def last(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2)
        await stream.answers_up_to(1)
        await stream.ack(1)

    scripts = [first, *[lost_at_once] * 4, last]
    async with ScriptedIngest(*scripts) as peer, session_of(peer, give_up_seconds=0.7) as session:
        given = await session.answer("one", choice="A")
        with pytest.raises(Unavailable, match="everything given is kept"):
            await given
        assert len(peer.streams) == 5
        await session.open()
        await given


async def test_the_time_after_which_a_session_gives_up_starts_anew_with_each_progress() -> None:
    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(2)
        await stream.lose()

    async def progress(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2)
        await stream.answers_up_to(2)
        await stream.ack(1)
        await stream.lose()

    async def last(stream: ScriptedStream) -> None:
        await stream.let_in(opening=3, durable_seq=1)
        await stream.answers_up_to(2)
        await stream.ack(2)

    clock = Clock()
    scripts = [first, *[lost_at_once] * 3, progress, *[lost_at_once] * 2, last]
    async with ScriptedIngest(*scripts) as peer, session_of(peer, clock=clock, give_up_seconds=0.7) as session:
        await session.answer("one", choice="A")
        await (await session.answer("one", choice="B"))
    assert clock.now > 0.7


async def test_a_platform_that_lets_in_and_settles_nothing_is_given_up_too() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in(opening=stream.number)
        await stream.answers_up_to(1)
        await stream.lose()

    async with ScriptedIngest(*[script] * 5) as peer, session_of(peer, give_up_seconds=0.7) as session:
        with pytest.raises(Unavailable):
            await (await session.answer("one", choice="A"))
        assert len(peer.streams) == 5


async def test_a_spool_that_went_back_in_time_is_given_everything_again() -> None:
    again: list[Answers] = []

    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(3)
        await stream.ack(3)
        await stream.lose()

    async def second(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2, durable_seq=1)
        again.extend(await stream.answers_up_to(3))
        await stream.nothing()
        await stream.ack(3)
        finish = await stream.finish()
        assert finish.count == 3
        await stream.ack(4)
        await stream.finished(receipt_of(finish))

    told = Told()
    async with ScriptedIngest(first, second) as peer, session_of(peer, on_event=told) as session:
        for option in "ABC":
            await session.answer("one", choice=option)
        await session.flush()
        await told.wait_for(SpoolWentBack)
        await session.finish()
    assert told.of(SpoolWentBack) == [SpoolWentBack(3, 1)]
    assert peer.streams[1].open.acked_seq == 3
    assert [list(answer.choices.options) for message in again for answer in message.answers] == [["B"], ["C"]]
    assert {answer.opening for message in again for answer in message.answers} == {1}


async def test_what_is_sent_again_stays_within_the_window_too() -> None:
    async def first(stream: ScriptedStream) -> None:
        await stream.let_in(max_in_flight=2)
        for seq in range(1, 6):
            await stream.answers_up_to(seq)
            await stream.ack(seq)
        await stream.lose()

    async def second(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2, max_in_flight=2)
        for last_seq in (2, 4, 5):
            await stream.answers_up_to(last_seq)
            await stream.nothing()
            await stream.ack(last_seq)

    told = Told()
    async with ScriptedIngest(first, second) as peer, session_of(peer, on_event=told) as session:
        for _ in range(5):
            await (await session.answer("one", choice="A"))
        await told.wait_for(SpoolWentBack)
        await session.flush()


async def test_where_the_count_of_openings_went_back_the_code_is_opened_until_it_has_caught_up() -> None:
    async def first(stream: ScriptedStream) -> None:
        await stream.let_in(opening=4)
        await stream.answers_up_to(1)
        await stream.lose()

    async def behind(stream: ScriptedStream) -> None:
        await stream.let_in(opening=stream.number)
        await stream.left()

    async def last(stream: ScriptedStream) -> None:
        await stream.let_in(opening=4)
        assert [answer.opening for answer in (await stream.answers()).answers] == [4]
        await stream.ack(1)

    clock = Clock()
    async with ScriptedIngest(first, behind, behind, last) as peer, session_of(peer, clock=clock) as session:
        await (await session.answer("one", choice="A"))
        assert len({stream.open.token for stream in peer.streams}) == 4
    assert clock.slept == [0.05, 0.1, 0.0]


async def test_a_stream_that_says_nothing_is_left_and_opened_again() -> None:
    async def deaf(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        await stream.left()

    async def last(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2)
        await stream.answers_up_to(1)
        await stream.ack(1)

    async with ScriptedIngest(deaf, last) as peer, session_of(peer, stall_timeout_seconds=0.5) as session:
        await (await session.answer("one", choice="A"))


async def test_a_pupil_who_thinks_is_not_taken_for_a_stalled_stream() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        await stream.ack(1)
        await stream.nothing(1.2)
        await stream.answers_up_to(2)
        await stream.ack(2)

    async with ScriptedIngest(script) as peer, session_of(peer, stall_timeout_seconds=0.8) as session:
        await (await session.answer("one", choice="A"))
        await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=1.3)
        await (await session.answer("one", choice="B"))


async def test_an_open_that_is_not_answered_in_time_is_repeated_with_its_token() -> None:
    async def deaf(stream: ScriptedStream) -> None:
        await stream.opening()
        await stream.left()

    async def last(stream: ScriptedStream) -> None:
        await stream.let_in()

    # Several may answer: on a machine that is busy the second one, too, may come too late.
    async with ScriptedIngest(deaf, *[last] * 9) as peer, session_of(peer, open_timeout_seconds=0.3):
        assert peer.streams[0].open.token == peer.streams[1].open.token


async def test_a_channel_that_is_closed_under_a_session_is_told_and_not_waited_for() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()

    async with ScriptedIngest(script) as peer:
        channel = peer.channel()
        session = PupilSession(OPTIONS, CODE, channel=channel, ports=Clock().ports())
        await session.open()
        await channel.close()
        with pytest.raises(StateError, match="closed"):
            await (await session.answer("one", choice="A"))
        await session.close()


async def test_leaving_raises_what_stopped_the_session_unless_it_was_seen() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.answers_up_to(1)
        await stream.refuse(StreamViolation("malformed"))

    async with ScriptedIngest(script, script) as peer:
        with pytest.raises(StreamViolation):
            async with session_of(peer) as session:
                await session.answer("one", choice="A")
        async with session_of(peer) as session:
            with pytest.raises(StreamViolation):
                await (await session.answer("one", choice="A"))

"""What an observer hears, in order; and that the ledger is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pli.canonical import canonical
from pli.client import RejectionTold, SessionInterrupted, SessionObserver, SessionOpened
from pli.codes import Code
from pli.ingest.v1.ingest_pb2 import Rejected, RejectReason
from pli.ledger import LedgerWriter, code_digest, content_digest, read_ledger
from pli.records import RecordKind
from pli.secret import Secret
from tests.support.client_sessions import CODE, Told, session_of
from tests.support.scripted_ingest import CAMPAIGN, ScriptedIngest, ScriptedStream, receipt_of

UNKNOWN_ITEM = RejectReason.REJECT_REASON_UNKNOWN_ITEM


class Listener:
    """Writes down what it hears; fails at a chosen call."""

    def __init__(self, fails_at: str = "") -> None:
        self.heard: list[tuple[object, ...]] = []
        self._fails_at = fails_at

    def _note(self, *call: object) -> None:
        if call[0] == self._fails_at:
            raise OSError("the disk is full")
        self.heard.append(call)

    def opened(self, writer: bytes, code: Code) -> None:
        self._note("opened", code.reveal())

    def sent(self, writer: bytes, seq: int, kind: int, payload: bytes) -> None:
        self._note("sent", seq, kind, payload)

    def acked(self, writer: bytes, durable_seq: int) -> None:
        self._note("acked", durable_seq)

    def rejected(self, writer: bytes, seq: int, reason: int) -> None:
        self._note("rejected", seq, reason)


async def test_an_observer_hears_every_word_in_order_and_every_message_once() -> None:
    payloads: dict[int, bytes] = {}
    listener = Listener()

    async def first(stream: ScriptedStream) -> None:
        await stream.let_in()
        for message in await stream.answers_up_to(2):
            for offset, answer in enumerate(message.answers):
                seq = message.first_seq + offset
                payloads[seq] = canonical(answer)
                assert ("sent", seq, RecordKind.ANSWER, payloads[seq]) in listener.heard, "written before it went out"
        await stream.reject(1, UNKNOWN_ITEM)
        await stream.ack(1)
        await stream.lose()

    async def second(stream: ScriptedStream) -> None:
        await stream.let_in(opening=2, durable_seq=1, rejected=[Rejected(seq=1, reason=UNKNOWN_ITEM)])
        await stream.answers_up_to(2)
        await stream.ack(2)
        finish = await stream.finish()
        payloads[3] = canonical(finish)
        await stream.ack(3)
        await stream.finished(receipt_of(finish))

    told = Told()
    async with ScriptedIngest(first, second) as peer, session_of(peer, observer=listener, on_event=told) as session:
        await session.answer("oen", choice="A")
        await session.answer("one", choice="A")
        await session.finish()
    assert told.of(RejectionTold) == [RejectionTold(1, UNKNOWN_ITEM)], "the application hears it once"
    heard = [call for call in listener.heard if call[0] != "sent"]
    assert heard == [
        ("opened", CODE.reveal()),
        ("acked", 0),
        ("rejected", 1, UNKNOWN_ITEM),
        ("acked", 1),
        ("rejected", 1, UNKNOWN_ITEM),
        ("acked", 1),
        ("acked", 2),
        ("acked", 3),
    ]
    assert [call for call in listener.heard if call[0] == "sent"] == [
        ("sent", 1, RecordKind.ANSWER, payloads[1]),
        ("sent", 2, RecordKind.ANSWER, payloads[2]),
        ("sent", 3, RecordKind.FINISH, payloads[3]),
    ]


async def test_an_answer_that_the_observer_could_not_write_down_does_not_go_out() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        assert await stream.receive() is None

    async with ScriptedIngest(script) as peer, session_of(peer, observer=Listener("sent")) as session:
        with pytest.raises(OSError, match="disk is full"):
            await (await session.answer("one", choice="A"))


@pytest.mark.parametrize("call", ["opened", "acked"])
async def test_an_observer_that_fails_stops_the_session(call: str) -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()

    async with ScriptedIngest(script) as peer:
        session = session_of(peer, observer=Listener(call))
        with pytest.raises(OSError, match="disk is full"):
            await session.open()
        await session.close()


async def test_an_event_callback_that_fails_stops_the_session() -> None:
    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()

    def failing(event: object) -> None:
        if isinstance(event, SessionOpened):
            raise LookupError("no screen")

    async with ScriptedIngest(script) as peer:
        session = session_of(peer, on_event=failing)
        with pytest.raises(LookupError, match="no screen"):
            await session.open()
        await session.close()


async def test_the_ledger_is_an_observer_and_reads_back_as_what_happened(tmp_path: Path) -> None:
    payloads: dict[int, bytes] = {}
    key = Secret(bytes(range(32)))

    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        for message in await stream.answers_up_to(2):
            for offset, answer in enumerate(message.answers):
                payloads[message.first_seq + offset] = canonical(answer)
        await stream.reject(2, UNKNOWN_ITEM)
        await stream.ack(2)
        await stream.answers_up_to(3)
        await stream.lose()

    async def away(stream: ScriptedStream) -> None:
        await stream.left()

    path, told = tmp_path / "ledger.txt", Told()
    ledger = LedgerWriter(path, CAMPAIGN, key)
    observer: SessionObserver = ledger
    async with ScriptedIngest(script, away) as peer:
        session = session_of(peer, observer=observer, on_event=told)
        await session.open()
        await session.answer("one", choice="A")
        await session.answer("oen", choice="A")
        await session.flush()
        await session.answer("one", choice="B")
        await told.wait_for(SessionInterrupted)
        await session.close()
    ledger.close()
    read = read_ledger([path.read_bytes()], "ledger.txt").sessions[session.writer]
    assert read.code == code_digest(key.reveal(), CODE)
    assert read.sent[1] == content_digest(key.reveal(), session.writer, 1, RecordKind.ANSWER, payloads[1])
    assert sorted(read.sent) == [1, 2, 3]
    assert (read.durable_seq, read.rejected) == (2, {2: UNKNOWN_ITEM})
    assert [seq for seq in (1, 2, 3) if read.is_acknowledged(seq)] == [1]

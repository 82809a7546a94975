"""One session's state between its reader and the committer."""

from __future__ import annotations

import asyncio
from typing import Any

from pli.errors import SessionSuperseded
from pli.ingest.v1.ingest_pb2 import Receipt, SubmitResponse
from pli.records import RecordKind
from server.backlog import Backlog, sealed_bytes
from server.session import REJECTED, Session

ANSWER = int(RecordKind.ANSWER)
PATIENCE_SECONDS = 5.0


class Client:
    """Takes what the session writes; `slow` makes every write wait until it is set."""

    def __init__(self) -> None:
        self.read: list[SubmitResponse] = []
        self.slow = asyncio.Event()
        self.slow.set()
        self.writing = 0

    async def write(self, response: SubmitResponse) -> None:
        self.writing += 1
        assert self.writing == 1, "two writes at once"
        await asyncio.sleep(0)
        await self.slow.wait()
        self.writing -= 1
        self.read.append(response)

    def kinds(self) -> list[str | None]:
        return [response.WhichOneof("message") for response in self.read]


def session_of(client: Client, backlog: Backlog | None = None, durable: int = 0, task: Any = None) -> Session:
    return Session(bytes(16), bytes(16), 1, 0, durable, 0, backlog or Backlog(10_000_000), client.write, task)


async def test_acks_that_come_while_one_is_written_become_one() -> None:
    client = Client()
    session = session_of(client)
    for seq in range(1, 6):
        session.take((seq, 0, ANSWER, b"x"))
    client.slow.clear()
    session.settled(1, [])
    session.settled(2, [])
    session.settled(5, [])
    client.slow.set()
    await session.last_words(PATIENCE_SECONDS)
    assert [response.ack.durable_seq for response in client.read] == [1, 5]


async def test_rejections_are_written_before_the_ack_that_covers_them() -> None:
    client = Client()
    session = session_of(client)
    for seq in range(1, 4):
        session.take((seq, 7, REJECTED, b""))
    client.slow.clear()
    session.settled(1, [(1, 7)])
    session.settled(3, [(2, 7), (3, 7)])
    client.slow.set()
    await session.last_words(PATIENCE_SECONDS)
    assert client.kinds() == ["rejected", "ack", "rejected", "rejected", "ack"]


async def test_finished_comes_only_when_everything_is_settled() -> None:
    client = Client()
    session = session_of(client)
    session.take((1, 0, ANSWER, b"x"))
    session.finish_receipt = Receipt(body=b"receipt")
    session.take((2, 0, int(RecordKind.FINISH), b"finish"))
    session.settled(1, [])
    await session.last_words(PATIENCE_SECONDS)
    assert client.kinds() == ["ack"]
    session.settled(2, [])
    await session.last_words(PATIENCE_SECONDS)
    assert client.kinds() == ["ack", "ack", "finished"]


async def test_a_gap_is_told_once_per_position() -> None:
    client = Client()
    session = session_of(client)
    session.tell_expected()
    session.tell_expected()
    session.take((1, 0, ANSWER, b"x"))
    session.tell_expected()
    await session.last_words(PATIENCE_SECONDS)
    assert [response.expected.seq for response in client.read] == [1, 2]


async def test_a_hand_over_keeps_to_its_budget_and_takes_at_least_one() -> None:
    client, backlog = Client(), Backlog(10_000_000)
    session = session_of(client, backlog)
    for seq in range(1, 11):
        session.take((seq, 0, ANSWER, bytes(8_190)))
    size = sealed_bytes(8_190)
    assert session.waiting_bytes == backlog.waiting_bytes == 10 * size
    assert [record[0] for record in session.hand_over(3 * size)] == [1, 2, 3]
    assert [record[0] for record in session.hand_over(1)] == [4]
    assert session.waiting_bytes == backlog.waiting_bytes == 6 * size
    assert [record[0] for record in session.hand_over(100 * size)] == [5, 6, 7, 8, 9, 10]
    assert session.waiting_bytes == backlog.waiting_bytes == 0


async def test_what_is_dropped_no_longer_weighs_on_the_worker() -> None:
    client, backlog = Client(), Backlog(10_000_000)
    session = session_of(client, backlog)
    session.take((1, 0, ANSWER, bytes(100)))
    session.drop_waiting()
    assert (session.waiting, backlog.waiting_bytes) == ([], 0)


async def test_in_flight_is_what_was_read_and_is_not_durable() -> None:
    session = session_of(Client(), durable=4)
    assert session.in_flight == 0
    session.take((5, 0, ANSWER, b"x"))
    session.take((6, 0, ANSWER, b"x"))
    session.hand_over(10_000)
    assert session.in_flight == 2
    session.settled(5, [])
    assert session.in_flight == 1


async def test_an_ended_session_says_why_once_and_ends_its_stream() -> None:
    client = Client()
    stream = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    session = session_of(client, task=stream)
    error = SessionSuperseded("first")
    session.supersede(2, error)
    session.supersede(3, SessionSuperseded("second"))
    await asyncio.gather(stream, return_exceptions=True)
    assert stream.cancelled()
    await session.last_words(PATIENCE_SECONDS)
    assert session.ending is error
    assert [response.notice.superseded.opening for response in client.read] == [2]


async def test_last_words_do_not_wait_for_ever() -> None:
    client = Client()
    session = session_of(client)
    client.slow.clear()
    session.tell_drain(5)
    await session.last_words(0.01)
    assert client.read == []
    client.slow.set()
    await session.last_words(PATIENCE_SECONDS)


async def test_a_client_that_has_left_is_written_nothing() -> None:
    client = Client()
    session = session_of(client)
    session.take((1, 0, ANSWER, b"x"))
    session.gone()
    session.settled(1, [])
    session.tell_expected()
    await session.last_words(PATIENCE_SECONDS)
    assert client.read == []
    assert session.durable_seq == 1


async def test_a_reader_that_waits_for_room_is_woken_by_what_is_settled() -> None:
    session = session_of(Client())
    session.take((1, 0, ANSWER, b"x"))
    waiting = asyncio.create_task(session.room(PATIENCE_SECONDS))
    await asyncio.sleep(0)
    session.settled(1, [])
    assert await waiting
    assert not await session.room(0.01)


async def test_a_write_that_fails_ends_the_writing_and_nothing_else() -> None:
    async def broken(_response: SubmitResponse) -> None:
        raise ConnectionResetError

    session = Session(bytes(16), bytes(16), 1, 0, 0, 0, Backlog(1_000), broken, None)
    session.take((1, 0, ANSWER, b"x"))
    session.settled(1, [])
    await session.last_words(PATIENCE_SECONDS)
    session.settled(1, [])
    await session.last_words(PATIENCE_SECONDS)


async def test_a_session_shows_no_more_of_its_pseudonym_than_an_operator_may_see() -> None:
    session = Session(bytes(range(16)), bytes(16), 1, 0, 0, 0, Backlog(1_000), Client().write, None)
    assert repr(session) == "Session(00010203…, opening 1)"

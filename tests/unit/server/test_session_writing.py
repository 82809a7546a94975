"""What a session writes, and when: one message at a time, the newest ack, rejections before it."""

import asyncio

import pytest

from pli.ingest.v1.ingest_pb2 import SubmitResponse
from server.backlog import Backlog
from server.session import Session


class Peer:
    """A client's end: takes one message at a time, and says when it has it."""

    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []
        self._taking: asyncio.Future[None] | None = None
        self.session = Session(bytes(16), bytes(16), 1, 0, 0, 0, Backlog(1_000), self.write, None)

    async def write(self, response: SubmitResponse) -> None:
        assert self._taking is None, "two writes at once"
        kind = response.WhichOneof("message") or ""
        self.got.append((kind, response.rejected.seq if kind == "rejected" else response.ack.durable_seq))
        self._taking = asyncio.get_running_loop().create_future()
        try:
            await self._taking
        finally:
            self._taking = None

    async def take(self) -> None:
        """Has read the message that is being written."""
        assert self._taking is not None, "nothing is being written"
        self._taking.set_result(None)
        # Whatever follows is written by the callback of that future.
        for _ in range(2):
            await asyncio.sleep(0)

    def break_off(self, error: BaseException) -> None:
        assert self._taking is not None
        if isinstance(error, asyncio.CancelledError):
            self._taking.cancel()
        else:
            self._taking.set_exception(error)


async def test_an_ack_is_on_its_way_when_settled_returns() -> None:
    peer = Peer()
    peer.session.settled(3, [])
    assert peer.got == [("ack", 3)]


async def test_acks_that_come_due_during_a_write_become_one() -> None:
    peer = Peer()
    for seq in (1, 2, 3, 4):
        peer.session.settled(seq, [])
    assert peer.got == [("ack", 1)]
    await peer.take()
    assert peer.got == [("ack", 1), ("ack", 4)]


async def test_a_rejection_is_written_before_the_ack_that_covers_it() -> None:
    peer = Peer()
    peer.session.settled(1, [])
    peer.session.settled(3, [(2, 1)])
    for _ in range(2):
        await peer.take()
    assert peer.got == [("ack", 1), ("rejected", 2), ("ack", 3)]


async def test_last_words_wait_for_everything_due() -> None:
    peer = Peer()
    peer.session.settled(1, [])
    peer.session.settled(2, [])
    last_words = asyncio.create_task(peer.session.last_words(60.0))
    await peer.take()
    assert not last_words.done()
    await peer.take()
    async with asyncio.timeout(5):
        await last_words
    assert peer.got == [("ack", 1), ("ack", 2)]


async def test_last_words_do_not_wait_for_a_peer_that_reads_nothing() -> None:
    peer = Peer()
    peer.session.settled(1, [])
    async with asyncio.timeout(5):
        await peer.session.last_words(0.01)


@pytest.mark.parametrize("error", [RuntimeError("gone"), asyncio.CancelledError()])
async def test_a_peer_that_is_gone_does_not_disturb_whoever_settles(error: BaseException) -> None:
    peer = Peer()
    peer.session.settled(1, [])
    peer.session.settled(2, [(2, 1)])
    peer.break_off(error)
    await asyncio.sleep(0)
    peer.session.settled(3, [])
    assert peer.got == [("ack", 1)]
    assert peer.session.durable_seq == 3

"""The committer against a scripted spool: what it puts into blocks, and what it does with each verdict."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from pli.blocks import MAX_BLOCK_BYTES, NO_HASH, block_hash, read_block
from pli.epochs import NO_EPOCH, read_header
from pli.errors import CampaignClosed, IntegrityError, PliError, SessionSuperseded, SpoolUnavailable, Unavailable
from pli.hpke import PrivateKey, PublicKey
from pli.ingest.v1.ingest_pb2 import Receipt, SubmitResponse
from pli.records import RecordKind
from server.backlog import Backlog
from server.committer import Committer
from server.config import CommitSettings
from server.epochs import EpochSource
from server.identity import NodeIdentity
from server.session import REJECTED, Session
from server.store.spool import COMMIT_ENTRY, Commit, Committed
from tests.support.waiting import until

ANSWER = int(RecordKind.ANSWER)
DONE = Committed(False, {})
CLOSED = Committed(True, {})
Verdict = Committed | Exception


@dataclass
class ScriptedSpool:
    """Answers commits with what the script says, and then with success; `taken` are the successful ones."""

    script: list[Verdict] = field(default_factory=list)
    asked: list[Commit] = field(default_factory=list)
    taken: list[Commit] = field(default_factory=list)
    going_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def commit(self, block: Commit) -> Committed:
        self.asked.append(block)
        await self.going_on.wait()
        verdict = self.script.pop(0) if self.script else DONE
        if isinstance(verdict, Exception):
            raise verdict
        if verdict == DONE:
            self.taken.append(block)
        return verdict


class Scene:
    """A committer, its spool, and sessions."""

    def __init__(self, script: list[Verdict], settings: CommitSettings, confirmed: bool, trusted: bool) -> None:
        self.spool = ScriptedSpool(script)
        self.spool.going_on.set()
        self.now = 0.0
        self.trusted = trusted
        key = ec.generate_private_key(ec.SECP256R1())
        identity = NodeIdentity("node-1", b"certificate", key, PrivateKey.generate(), bytes(16))
        answer_key = PublicKey(PrivateKey.generate().public_raw)
        epochs = EpochSource("tests", 0, bytes(16), answer_key, identity, lambda: 1_000, os.urandom)

        async def confirm() -> bool:
            return confirmed

        spool: Any = self.spool
        self.backlog = Backlog(100_000_000)
        self.committer = Committer(spool, epochs, settings, lambda: self.now, lambda: self.trusted, confirm)
        self.read: dict[bytes, list[SubmitResponse]] = {}

    def session(self, opening: int = 1) -> Session:
        pseudonym = os.urandom(16)
        inbox = self.read.setdefault(pseudonym, [])

        async def write(response: SubmitResponse) -> None:
            inbox.append(response)

        return Session(pseudonym, os.urandom(16), opening, 0, 0, 0, self.backlog, write, None)

    def give(self, session: Session, *payloads: bytes) -> None:
        """The session read these answers."""
        for payload in payloads:
            session.take((session.next_seq, 0, ANSWER, payload))
        self.committer.submit(session)

    async def settle(self) -> None:
        """Waits until everything submitted has its outcome."""
        async with asyncio.timeout(10):
            await self.committer.idle()

    async def asked(self, count: int) -> None:
        """Waits until the spool was asked so often."""

        async def so_often() -> bool:
            return len(self.spool.asked) >= count

        await until(so_often, f"{count} calls")

    def kinds(self, session: Session) -> list[str | None]:
        return [response.WhichOneof("message") for response in self.read[session.pseudonym]]


@asynccontextmanager
async def scene(
    *script: Verdict, confirmed: bool = True, trusted: bool = True, **settings: Any
) -> AsyncIterator[Scene]:
    made = Scene(list(script), CommitSettings(linger_max_ms=0, **settings), confirmed, trusted)
    running = asyncio.create_task(made.committer.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_everything_that_waits_becomes_one_block() -> None:
    async with scene() as s:
        sessions = [s.session() for _ in range(5)]
        for session in sessions:
            s.give(session, b"a", b"b")
        await s.settle()
    (commit,) = s.spool.taken
    block = read_block(commit.block)
    assert (block.record_count, len(block.sections), commit.session_count) == (10, 5, 5)
    assert all(session.durable_seq == 2 for session in sessions)
    assert s.backlog.waiting_bytes == 0


async def test_nothing_is_acknowledged_before_the_spool_has_answered() -> None:
    async with scene() as s:
        s.spool.going_on.clear()
        session = s.session()
        s.give(session, b"a")
        await s.asked(1)
        assert s.kinds(session) == []
        s.spool.going_on.set()
        await s.settle()
        await session.last_words(5)
        assert s.kinds(session) == ["ack"]


async def test_one_block_is_outstanding_and_the_next_takes_what_came_meanwhile() -> None:
    async with scene() as s:
        s.spool.going_on.clear()
        session = s.session()
        s.give(session, b"a")
        await s.asked(1)
        s.give(session, b"b")
        s.give(s.session(), b"c")
        await asyncio.sleep(0)
        assert len(s.spool.asked) == 1
        s.spool.going_on.set()
        await s.settle()
    first, second = (read_block(commit.block) for commit in s.spool.taken)
    assert (first.record_count, second.record_count) == (1, 2)
    assert second.context.previous_hash == block_hash(s.spool.taken[0].block)


@pytest.mark.parametrize("size", [10, 60, 8_190])
async def test_no_block_is_larger_than_the_store_takes_and_none_is_left_behind(size: int) -> None:
    async with scene() as s:
        sessions = [s.session() for _ in range(20)]
        for session in sessions:
            s.give(session, *[bytes(size)] * 256)
        await s.settle()
    assert max(len(commit.block) for commit in s.spool.taken) <= MAX_BLOCK_BYTES
    assert sum(read_block(commit.block).record_count for commit in s.spool.taken) == 20 * 256
    assert all(session.durable_seq == 256 for session in sessions)


async def test_no_block_has_more_sessions_than_the_store_takes() -> None:
    async with scene() as s:
        for _ in range(2_500):
            s.give(s.session(), b"a")
        await s.settle()
    assert [commit.session_count for commit in s.spool.taken] == [1000, 1000, 500]


async def test_superseded_sessions_end_and_the_same_number_goes_on_without_them() -> None:
    async with scene(Committed(False, {1: 7})) as s:
        good, superseded, also = s.session(), s.session(), s.session()
        for session in (good, superseded, also):
            s.give(session, b"a")
        await s.settle()
        await superseded.last_words(5)
    (commit,) = s.spool.taken
    block = read_block(commit.block)
    assert block.context.number == 1
    assert {section.pseudonym for section in block.sections} == {good.pseudonym, also.pseudonym}
    assert isinstance(superseded.ending, SessionSuperseded)
    assert s.read[superseded.pseudonym][0].notice.superseded.opening == 7
    assert (superseded.durable_seq, good.durable_seq) == (0, 1)
    counts = s.committer.counts
    assert (counts.acknowledged, counts.superseded, counts.blocks) == (2, 1, 1)


async def test_a_session_out_of_step_is_told_to_open_again() -> None:
    async with scene(Committed(False, {0: 0})) as s:
        session = s.session()
        s.give(session, b"a")
        await s.settle()
    assert type(session.ending) is Unavailable
    assert s.spool.taken == []
    assert s.committer.counts.superseded == 0


async def test_an_unknown_outcome_is_asked_again_with_the_same_bytes() -> None:
    async with scene(SpoolUnavailable("gone"), SpoolUnavailable("gone")) as s:
        session = s.session()
        s.give(session, b"a")
        await s.settle()
    assert len(s.spool.asked) == 3
    assert s.spool.asked[0] == s.spool.asked[1] == s.spool.asked[2]
    assert session.durable_seq == 1


async def test_a_spool_that_stays_silent_ends_the_epoch_and_every_stream_that_waits() -> None:
    async with scene() as s:
        before = s.session()
        s.give(before, b"a")
        await s.settle()
        epoch = s.spool.taken[0].epoch_id
        s.spool.script = [SpoolUnavailable("gone")] * 3
        session, queued = s.session(), s.session()
        s.spool.going_on.clear()
        s.give(session, b"a")
        await s.asked(2)
        s.give(queued, b"b")
        s.now = 31.0
        s.spool.going_on.set()
        await s.settle()
        assert type(session.ending) is type(queued.ending) is Unavailable
        assert s.backlog.waiting_bytes == 0
        assert s.committer.position() == (epoch, 1), "still what the store may not know less of"
        s.spool.script = []
        s.give(s.session(), b"c")
        await s.settle()
    last = s.spool.taken[-1]
    assert (last.number, last.epoch_id != epoch) == (1, True)
    context = read_header(last.header).context
    assert (context.previous_epoch, context.previous_last) == (epoch, 1)


async def test_a_block_that_the_store_finds_impossible_ends_its_epoch_at_once() -> None:
    async with scene(IntegrityError("refused")) as s:
        session = s.session()
        s.give(session, b"a")
        await s.settle()
        assert type(session.ending) is Unavailable
        s.give(s.session(), b"b")
        await s.settle()
    assert [commit.number for commit in s.spool.asked] == [1, 1]
    assert s.spool.asked[0].epoch_id != s.spool.asked[1].epoch_id


async def test_closed_ends_everybody_who_waits_and_is_believed_only_of_the_known_store() -> None:
    async with scene(CLOSED) as s:
        session, queued = s.session(), s.session()
        s.give(session, b"a")
        s.give(queued, b"b")
        await s.settle()
        assert isinstance(session.ending, CampaignClosed)
    async with scene(CLOSED, confirmed=False) as s:
        session = s.session()
        s.give(session, b"a")
        await s.settle()
        assert session.ending is None
        assert session.durable_seq == 1, "asked again, of the store that came back"


async def test_while_the_guard_does_not_trust_the_spool_it_is_not_asked() -> None:
    async with scene(trusted=False) as s:
        session = s.session()
        s.give(session, b"a")

        async def repeated() -> bool:
            return s.committer.counts.retries > 0

        await until(repeated, "an attempt")
        assert s.spool.asked == []
        s.trusted = True
        await s.settle()
        assert session.durable_seq == 1


async def test_rejections_travel_beside_the_records_and_alone_as_a_block_without_any() -> None:
    async with scene() as s:
        mixed, alone = s.session(), s.session()
        mixed.take((1, 0, ANSWER, b"a"))
        mixed.take((2, 9, REJECTED, b""))
        mixed.rejected_count = 1
        s.committer.submit(mixed)
        await s.settle()
        alone.take((1, 4, REJECTED, b""))
        alone.rejected_count = 1
        s.committer.submit(alone)
        await s.settle()
        await mixed.last_words(5)
    assert [commit.records for commit in s.spool.taken] == [1, 0]
    assert s.kinds(mixed) == ["rejected", "ack"]
    first = COMMIT_ENTRY.unpack_from(s.spool.taken[0].entries)
    assert first[3:7] == (1, 2, 0, 1), "first, last, finish, rejections"


async def test_a_finish_is_marked_in_the_block_that_holds_it_and_in_no_earlier_one() -> None:
    async with scene(max_block_bytes=200) as s:
        session = s.session()
        for seq in range(1, 5):
            session.take((seq, 0, ANSWER, b"a"))
        session.finish_receipt = Receipt(body=b"receipt")
        session.take((5, 0, int(RecordKind.FINISH), b"f"))
        s.committer.submit(session)
        await s.settle()
        await session.last_words(5)
    marks = [COMMIT_ENTRY.unpack_from(commit.entries)[5] for commit in s.spool.taken]
    assert len(marks) > 1
    assert marks == [0] * (len(marks) - 1) + [1]
    assert s.kinds(session)[-1] == "finished"


async def test_an_epoch_that_has_aged_is_forgotten_between_blocks_and_the_next_one_names_it() -> None:
    async with scene(epoch_seconds=60) as s:
        s.give(s.session(), b"a")
        await s.settle()
        s.now = 59.0
        s.committer.end_aged_epoch()
        s.give(s.session(), b"b")
        await s.settle()
        s.now = 61.0
        s.committer.end_aged_epoch()
        s.give(s.session(), b"c")
        await s.settle()
    first, second, third = s.spool.taken
    assert (first.number, second.number, third.number) == (1, 2, 1)
    assert read_header(first.header).context.previous_epoch == NO_EPOCH
    context = read_header(third.header).context
    assert (context.previous_epoch, context.previous_last) == (first.epoch_id, 2)
    assert read_block(third.block).context.previous_hash == NO_HASH


async def test_an_epoch_is_not_ended_while_its_block_is_outstanding() -> None:
    async with scene(epoch_seconds=60) as s:
        s.spool.going_on.clear()
        session = s.session()
        s.give(session, b"a")
        await s.asked(1)
        s.now = 100.0
        s.committer.end_aged_epoch()
        s.spool.script = [Committed(False, {0: 3})]
        s.give(s.session(), b"b")
        s.spool.going_on.set()
        await s.settle()
    assert isinstance(session.ending, SessionSuperseded)
    assert len(s.spool.taken) == 1


async def test_what_waits_of_a_session_that_has_ended_is_not_stored() -> None:
    async with scene() as s:
        session = s.session()
        session.take((1, 0, ANSWER, b"a"))
        ended: PliError = SessionSuperseded("elsewhere")
        session.end(ended)
        s.committer.submit(session)
        await s.settle()
    assert s.spool.asked == []
    assert s.backlog.waiting_bytes == 0


async def test_what_a_client_that_left_has_sent_is_stored() -> None:
    async with scene() as s:
        session = s.session()
        session.take((1, 0, ANSWER, b"a"))
        session.gone()
        s.committer.submit(session)
        await s.settle()
    assert len(s.spool.taken) == 1

"""A spool that may lose what it acknowledged, or is not the one known, gets no more answers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import pytest_asyncio

from pli.errors import Overloaded, PliError, Unavailable
from pli.ingest.v1.ingest_pb2 import Answer, Choices
from pli.ops.v1.ops_pb2 import GetStatusRequest
from pli.ops.v1.ops_pb2_grpc import OperationsServiceStub
from tests.support.platform import Platform
from tests.support.raw_session import RawSession
from tests.support.stores import ProgramStore
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

FOUND_WITHIN_SECONDS = 5.0
LOADED_MACHINE_SECONDS = 5.0
"""The tests' own machine may be busy with other tests."""

BACKLOG_BYTES = 1_000_000
ESSAY_CHARACTERS = 8_000


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """For tests that leave it as they found it, each with codes of its own."""
    settings = {"sessions": {"max_backlog_bytes": BACKLOG_BYTES, "retry_slot_ms": 5_000}}
    directory = tmp_path_factory.mktemp("guard")
    async with Platform(directory, pupils=500, store_of=ProgramStore, node_settings=settings) as running:
        await running.open_window()
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def impatient(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """A platform that does not wait long for its store."""
    settings = {"spool": {"timeout_ms": 300}, "commit": {"give_up_seconds": 3.0}}
    directory = tmp_path_factory.mktemp("impatient")
    async with Platform(directory, store_of=ProgramStore, node_settings=settings) as running:
        await running.open_window()
        yield running


def administered(platform: Platform) -> ProgramStore:
    assert isinstance(platform.store, ProgramStore)
    return platform.store


def answer() -> Answer:
    return Answer(item_id="one", choices=Choices(options=["A"]))


async def answered(session: RawSession, option: str = "A") -> None:
    """One answer, to its ack."""
    await session.choose(option)
    await session.acked()


async def refused(platform: Platform) -> bool:
    """Whether new streams are told to come back later."""
    async with platform.session(platform.codes[-1]) as session:
        try:
            await session.open()
        except Unavailable:
            return True
        except PliError:
            return False
    return False


async def test_settings_that_drift_are_found_within_five_seconds_and_nothing_is_acknowledged(
    platform: Platform,
) -> None:
    store = administered(platform)
    async with platform.session(platform.codes.pop()) as session:
        await session.open()
        await answered(session)
        for name, weak, safe in (
            ("appendfsync", "everysec", "always"),
            ("no-appendfsync-on-rewrite", "yes", "no"),
            ("maxmemory-policy", "allkeys-lru", "noeviction"),
        ):
            await store.administer("CONFIG SET", name, weak)
            changed = monotonic()
            await platform.healthy(serving=False)
            assert monotonic() - changed < FOUND_WITHIN_SECONDS + LOADED_MACHINE_SECONDS
            assert await refused(platform)
            await session.choose("B")
            before = len(await platform.records())
            await store.administer("CONFIG SET", name, safe)
            await session.acked()
            assert len(await platform.records()) == before + 1, "the answer waited for the safe store"
            await platform.healthy(serving=True)
    assert "CONFIG SET appendfsync always" in platform.nodes[0].process.output()


async def test_while_the_spool_is_down_nothing_is_acknowledged_and_nothing_is_lost(platform: Platform) -> None:
    code = platform.codes.pop()
    async with platform.session(code) as session:
        await session.open()
        await answered(session)
        await platform.store.kill()
        await session.answers(*(answer() for _ in range(10)))
        reading = asyncio.ensure_future(session.read())
        await platform.healthy(serving=False)
        assert not reading.done(), "no ack, and the stream is kept"
        assert await refused(platform)
        await platform.store.start()
        await asyncio.wait({reading})
        await session.acked(11)
        await platform.healthy(serving=True)
        await answered(session)
    assert [record.seq for record in await platform.records_of(code)] == list(range(1, 13))


async def test_a_stalled_spool_gets_the_same_bytes_again_and_stores_them_once(impatient: Platform) -> None:
    code, store = impatient.codes.pop(), impatient.store
    async with impatient.session(code) as session:
        await session.open()
        await answered(session)
        before = len(await impatient.blocks())
        assert store.process is not None
        store.process.send(signal.SIGSTOP)
        await session.choose("B")

        async def repeated() -> bool:
            return impatient.nodes[0].process.output().count("commit_repeated") >= 2

        await until(repeated, "the commit to be repeated")
        store.process.send(signal.SIGCONT)
        await session.acked()
    assert [record.seq for record in await impatient.records_of(code)] == [1, 2]
    assert len(await impatient.blocks()) == before + 1


async def test_a_commit_that_stays_unknown_ends_its_streams_and_the_client_learns_the_truth(
    impatient: Platform,
) -> None:
    code, writer, store = impatient.codes.pop(), os.urandom(16), impatient.store
    await impatient.healthy(serving=True)
    async with impatient.session(code, writer=writer) as session:
        await session.open()
        await answered(session)
        assert store.process is not None
        store.process.send(signal.SIGSTOP)
        await session.choose("B")
        error = await session.end()
        store.process.send(signal.SIGCONT)
        assert isinstance(error, Unavailable)
        assert session.durable_seq == 1
    await impatient.healthy(serving=True)
    async with impatient.session(code, writer=writer) as session:
        opened = await session.open(acked_seq=1)
        assert opened.durable_seq in (1, 2), "the late copy counted, or did not"
        await session.answers(answer(), first_seq=opened.durable_seq + 1)
        await session.acked()
    seqs = [record.seq for record in await impatient.records_of(code)]
    assert seqs == list(range(1, len(seqs) + 1)), "each once, whatever became of the copy"


async def test_a_store_of_another_identity_is_not_accepted(platform: Platform) -> None:
    store, key = administered(platform), platform.shards[0].keys.marker
    known = await store.administer("GET", key)
    await store.administer("SET", key, os.urandom(16))
    await platform.healthy(serving=False)
    assert await refused(platform)
    assert "was exchanged while this node ran" in platform.nodes[0].process.output()
    await store.administer("SET", key, known)
    await platform.healthy(serving=True)


async def test_an_empty_store_in_place_of_the_known_one_is_not_accepted(tmp_path: Path) -> None:
    async with Platform(tmp_path, store_of=ProgramStore) as platform:
        await platform.open_window()
        async with platform.session(platform.codes[0]) as session:
            await session.open()
            await answered(session)
            await platform.store.stop()
            platform.store.empty()
            await platform.store.start()
            started = monotonic()
            await platform.healthy(serving=False)
            assert monotonic() - started < FOUND_WITHIN_SECONDS + LOADED_MACHINE_SECONDS
            await session.choose("B")
            reading = asyncio.ensure_future(session.read())
            assert await refused(platform)
            assert not reading.done(), "neither an ack nor WINDOW_CLOSED"
            session.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        assert "no identity marker: it is empty or another one" in platform.nodes[0].process.output()


async def test_an_older_copy_of_the_store_is_not_accepted(tmp_path: Path) -> None:
    """Not even after the epoch whose last number tells it was given up and replaced."""
    settings = {"commit": {"give_up_seconds": 0.5, "epoch_seconds": 1.0}}
    async with Platform(tmp_path, store_of=ProgramStore, node_settings=settings) as platform:
        await platform.open_window()
        async with platform.session(platform.codes[0]) as session:
            await session.open()
            await answered(session)
            data, copy = platform.store.directory / "data", tmp_path / "copy"
            shutil.copytree(data, copy)
            await answered(session)
            await platform.store.stop()
            shutil.rmtree(data)
            shutil.copytree(copy, data)
            await platform.store.start()
            await session.choose("C")
            assert isinstance(await session.end(), Unavailable)
        await platform.healthy(serving=False)
        assert await refused(platform)
        assert "it was rolled back" in platform.nodes[0].process.output()
        assert len(await platform.records()) == 1


async def test_missing_functions_are_unavailability_until_they_are_back(platform: Platform) -> None:
    store = administered(platform)
    async with platform.session(platform.codes.pop()) as session:
        await session.open()
        await store.administer("FUNCTION FLUSH")
        await session.choose("A")
        assert await refused(platform)
        await platform.shards[0].load_functions()
        await session.acked()


async def test_at_the_memory_limit_nobody_new_comes_in_and_the_relay_still_drains(platform: Platform) -> None:
    store = administered(platform)
    await platform.healthy(serving=True)
    limit = (await store.administer("CONFIG GET", "maxmemory"))["maxmemory"]
    code, writer = platform.codes.pop(), os.urandom(16)
    async with platform.session(code, writer=writer) as session:
        await session.open()
        await answered(session)
        used = int((await store.administer("INFO", "memory"))["used_memory"])
        await store.administer("CONFIG SET", "maxmemory", used * 100 // 85)

        async def full() -> bool:
            async with platform.session(platform.codes.pop()) as other:
                try:
                    await other.open()
                except Overloaded as error:
                    return 0 <= error.retry_after_ms <= 5_000
            return False

        async def admits() -> bool:
            return not await full()

        await until(full, "codes that were never used to be turned away")
        await answered(session, "B")
    async with platform.session(code, writer=writer) as session:
        assert (await session.open()).opening == 2, "who was there before comes back"
        await store.administer("CONFIG SET", "maxmemory", used // 2)
        await session.choose("C")
        waiting = await platform.shards[0].read_new(10, 10)
        assert await platform.shards[0].remove(waiting) == len(waiting) > 0
        await store.administer("CONFIG SET", "maxmemory", limit)
        await session.acked()
        await until(admits, "everybody to be let in again")


async def test_clients_that_outrun_a_stalled_spool_are_not_read_and_lose_nothing(platform: Platform) -> None:
    """The reading stops: neither the worker nor gRPC below it takes in what cannot be stored."""
    count = 20
    await platform.healthy(serving=True)
    async with AsyncExitStack() as stack:
        codes = [platform.codes.pop() for _ in range(count)]
        sessions = [await stack.enter_async_context(platform.session(code)) for code in codes]
        for session in sessions:
            await session.open()
        assert platform.store.process is not None
        platform.store.process.send(signal.SIGSTOP)
        pumps = [asyncio.create_task(pump(session)) for session in sessions]
        await until_still(sessions)
        sent_bytes = sum(session.seq for session in sessions) * ESSAY_CHARACTERS
        nothing = [session.durable_seq for session in sessions]
        platform.store.process.send(signal.SIGCONT)
        assert sent_bytes < BACKLOG_BYTES + count * 600_000, "a window and a client's own buffers each, no more"
        assert nothing == [0] * count
        for session in sessions:
            await session.acked(20)
        for each in pumps:
            each.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
    assert platform.nodes[0].faults() == []


async def pump(session: RawSession) -> None:
    """Sends as fast as it is let."""
    while True:
        await session.answers(*(Answer(item_id="essay", text="x" * ESSAY_CHARACTERS) for _ in range(10)))


async def until_still(sessions: list[RawSession]) -> None:
    """Waits until nobody could send anything more for a while."""
    last = [(0, monotonic())]

    async def still() -> bool:
        sent = sum(session.seq for session in sessions)
        if sent != last[0][0]:
            last[0] = (sent, monotonic())
        return sent > 0 and monotonic() - last[0][1] > 1.0

    await until(still, "the clients to be held back")


async def test_a_weaker_durability_is_taken_only_when_told_and_every_screen_shows_it(tmp_path: Path) -> None:
    settings = {"guard": {"allow_weak_durability": True}}
    async with Platform(tmp_path, store_of=ProgramStore, node_settings=settings) as platform:
        await platform.open_window()
        await administered(platform).administer("CONFIG SET", "appendfsync", "everysec")
        async with platform.session(platform.codes[0]) as session:
            await session.open()
            await answered(session)

        async def shown() -> bool:
            async with platform.operations(platform.observer) as channel:
                stub: Any = OperationsServiceStub(channel)
                status = await stub.GetStatus(GetStatusRequest(), timeout=10)
            return "WEAK_DURABILITY" in [alarm.reason for alarm in status.alarms]

        await until(shown, "the alarm")

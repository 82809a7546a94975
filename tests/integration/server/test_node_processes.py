"""Workers and their supervisor: stopped, killed, restarted; nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pli.codes import Code
from pli.epochs import NO_EPOCH, read_header
from pli.errors import CodeRefused, PliError, Unavailable
from pli.ingest.v1.ingest_pb2 import Answer
from pli.rpc.roles import INGEST
from tests.support.platform import Platform
from tests.support.processes import alive
from tests.support.raw_session import tls_channel
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

STOP_SECONDS = 10.0
SERVING, NOT_SERVING = 1, 2


class Pupil:
    """Answers until it is told to stop, opening again after every break; remembers what it was told."""

    def __init__(self, platform: Platform, code: Code) -> None:
        self.platform = platform
        self.code = code
        self.writer = os.urandom(16)
        self.acknowledged = 0
        self.sent = 0
        self.breaks: list[PliError] = []

    async def run(self, stop: asyncio.Event) -> None:
        """One answer after another."""
        while not stop.is_set():
            try:
                await self._session(stop)
            except PliError as error:
                if isinstance(error, CodeRefused):
                    raise
                self.breaks.append(error)
                await asyncio.sleep(0.05)

    async def _session(self, stop: asyncio.Event) -> None:
        async with self.platform.session(self.code, writer=self.writer) as session:
            opened = await session.open(acked_seq=self.acknowledged)
            assert opened.durable_seq >= self.acknowledged, "an acknowledged answer is gone"
            try:
                while not stop.is_set():
                    await session.choose("A")
                    self.sent = max(self.sent, session.seq)
                    await session.acked()
            finally:
                self.acknowledged = max(self.acknowledged, session.durable_seq)


class Load:
    """Pupils at work, in the background."""

    def __init__(self, platform: Platform, count: int) -> None:
        self.pupils = [Pupil(platform, platform.codes.pop()) for _ in range(count)]
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(pupil.run(self._stop)) for pupil in self.pupils]
        await self.progress(5)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def progress(self, answers: int) -> None:
        """Waits until every pupil has so many more answers sent."""
        goal = [pupil.sent + answers for pupil in self.pupils]

        async def there() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return all(pupil.sent >= wanted for pupil, wanted in zip(self.pupils, goal, strict=True))

        await until(there, f"{answers} more answers of each pupil")

    async def check(self, platform: Platform) -> None:
        """Everything acknowledged is stored, each number once, in order and without gap."""
        records = await platform.records()
        for pupil in self.pupils:
            pseudonym = platform.vault.pseudonym(pupil.code)
            seqs = [record.seq for record in records if record.pseudonym == pseudonym]
            assert seqs == list(range(1, len(seqs) + 1))
            assert pupil.acknowledged <= len(seqs) <= pupil.sent


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Two workers that replace their keys often, for tests that leave them running."""
    settings = {"commit": {"epoch_seconds": 0.5}}
    directory = tmp_path_factory.mktemp("processes")
    async with Platform(directory, pupils=600, workers=2, node_settings=settings) as running:
        await running.open_window()
        yield running


async def test_sigterm_under_load_drains_and_exits_with_0(tmp_path: Path) -> None:
    async with Platform(tmp_path, pupils=10, workers=2) as platform:
        await platform.open_window()
        node = platform.nodes[0]
        workers = await platform.workers()
        async with Load(platform, 10) as load:
            stopped = monotonic()
            node.process.send(signal.SIGTERM)
            assert await node.process.ended() == 0
            assert monotonic() - stopped < STOP_SECONDS
        assert not any(alive(pid) for pid in workers)
        assert node.faults() == []
        breaks = [error for pupil in load.pupils for error in pupil.breaks]
        assert breaks
        assert [error for error in breaks if not isinstance(error, Unavailable)] == []
        await load.check(platform)


async def test_a_draining_node_tells_when_to_come_back_and_acknowledges_what_it_read(tmp_path: Path) -> None:
    async with Platform(tmp_path) as platform:
        await platform.open_window()
        code = platform.codes[0]
        async with platform.session(code) as session:
            await session.open()
            await session.choose("A")
            await session.acked()
            await session.choose("B")
            async with tls_channel(platform.address, platform.authority_pem) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)
                assert (await watching.read()).status == SERVING
                platform.nodes[0].process.send(signal.SIGTERM)
                assert (await watching.read()).status == NOT_SERVING
                watching.cancel()
            notice = (await session.next("notice")).notice
            assert 0 <= notice.drain.reconnect_after_ms <= 3_000
            error = await session.end()
            assert error is not None
            assert error.reason == "DRAINING"
        assert await platform.nodes[0].process.ended() == 0
        assert len(await platform.records_of(code)) >= session.durable_seq


async def test_sigterm_while_the_spool_is_down_still_ends_in_time(tmp_path: Path) -> None:
    async with Platform(tmp_path) as platform:
        await platform.open_window()
        node = platform.nodes[0]
        async with platform.session(platform.codes[0]) as session:
            await session.open()
            assert platform.store.process is not None
            platform.store.process.send(signal.SIGSTOP)
            await session.choose("A")
            stopped = monotonic()
            node.process.send(signal.SIGTERM)
            error = await session.end()
            assert isinstance(error, Unavailable)
            assert session.durable_seq == 0
            assert await node.process.ended() == 0
            assert monotonic() - stopped < STOP_SECONDS
            platform.store.process.send(signal.SIGCONT)


async def test_a_killed_worker_comes_back_and_nothing_acknowledged_is_lost(platform: Platform) -> None:
    async with Load(platform, 10) as load:
        for _ in range(2):
            before = set(await platform.workers())
            victim = before.pop()
            os.kill(victim, signal.SIGKILL)

            async def replaced(victim: int = victim) -> bool:
                rows = await platform.workers()
                return victim not in rows and sum(bool(row["ready"]) for row in rows.values()) == 2

            await until(replaced, "the killed worker to be replaced")
            await load.progress(5)
    await load.check(platform)
    assert platform.nodes[0].process.status is None


async def test_a_killed_spool_comes_back_and_nothing_acknowledged_is_lost(platform: Platform) -> None:
    async with Load(platform, 10) as load:
        await platform.store.kill()
        await platform.healthy(serving=False)
        await platform.store.start()
        await load.progress(5)
    await load.check(platform)


async def test_an_answer_is_acknowledged_only_after_it_is_on_disk(platform: Platform) -> None:
    """The store dies without a chance to write anything more: what was acknowledged is there again."""
    for _ in range(5):
        code = platform.codes.pop()
        await platform.serving()
        async with platform.session(code) as session:
            await session.open()
            for _ in range(5):
                await session.choose("A")
            await session.acked()
            await platform.store.kill()
            await platform.store.start()
            assert len(await platform.records_of(code)) == 5
    await platform.serving()


async def test_epochs_are_replaced_under_load_and_linked(platform: Platform) -> None:
    async with Load(platform, 4) as load:
        before = len([entry for entry in await platform.blocks() if entry.header])

        async def several() -> bool:
            return len([entry for entry in await platform.blocks() if entry.header]) >= before + 6

        await until(several, "six more epochs")
    await load.check(platform)
    entries = await platform.blocks()
    lasts = {entry.epoch_id: entry.number for entry in entries}
    last_of: dict[bytes, bytes] = {}
    linked = 0
    for entry in entries:
        if entry.header:
            context = read_header(entry.header).context
            previous = last_of.get(context.process_id, NO_EPOCH)
            assert (context.previous_epoch, context.previous_last) == (previous, lasts.get(previous, 0))
            linked += previous != NO_EPOCH
            last_of[context.process_id] = entry.epoch_id
    assert linked >= 4


async def test_two_workers_share_the_sessions_and_a_second_device_ends_the_first_wherever_it_is(
    platform: Platform,
) -> None:
    await platform.serving()

    async def opened() -> list[int]:
        return [int(row["opened"]) for row in (await platform.workers()).values()]

    before = sum(await opened())
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(displaced(platform, platform.codes.pop()))

    async def all_counted() -> bool:
        counts = await opened()
        return sum(counts) >= before + 40 and min(counts) > 0

    await until(all_counted, "40 openings more, spread over both workers")


async def displaced(platform: Platform, code: Code) -> None:
    """A second device opens the code: the first one is told at once, though it sends nothing."""
    async with platform.session(code) as older, platform.session(code) as newer:
        await older.open()
        await newer.open()
        assert (await older.next("notice")).notice.superseded.opening == 2


async def test_epochs_and_receipts_are_signed_by_a_renewed_certificate_without_a_restart(platform: Platform) -> None:
    node = platform.nodes[0]
    before = set(await platform.workers())
    directory = platform.directory / "certificates"
    (directory / f"{INGEST}-{node.name}.key").unlink()
    files = platform.authority.issue(INGEST, node.name, ("127.0.0.1", "localhost"))
    renewed = x509.load_pem_x509_certificate(files.certificate_file.read_bytes()).public_bytes(Encoding.DER)

    async def signs_anew() -> bool:
        async with platform.session(platform.codes.pop()) as session:
            await session.open()
            await session.finish()
            return (await session.finished()).certificate == renewed

    await until(signs_anew, "a receipt under the new certificate")

    async def seals_anew() -> bool:
        async with platform.session(platform.codes.pop()) as session:
            await session.open()
            await session.choose("A")
            await session.acked()
        headers = [read_header(entry.header) for entry in await platform.blocks() if entry.header]
        for header in headers:
            header.verify_signature()
        return any(header.certificate_der == renewed for header in headers)

    await until(seals_anew, "an epoch under the new certificate")
    assert set(await platform.workers()) == before


async def test_workers_do_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    async with Platform(tmp_path, workers=2) as platform:
        workers = set(await platform.workers())
        assert len(workers) == 2
        await platform.stop_node(platform.nodes[0], signal.SIGKILL)

        async def gone() -> bool:
            return not any(alive(pid) for pid in workers)

        await until(gone, "the workers to end")


async def test_no_code_no_answer_and_no_key_is_written_anywhere(tmp_path: Path) -> None:
    async with Platform(tmp_path) as platform:
        await platform.open_window()
        marker = "UNIQUE-ANSWER-4711"
        async with platform.session(platform.codes[0]) as session:
            await session.open()
            await session.answers(Answer(item_id="words", text=marker))
            await session.finish()
            await session.finished()
        await platform.stop_node(platform.nodes[0])
        await platform.store.stop()
        secrets = [marker.encode(), platform.vault.pseudonym_key.reveal()]
        secrets += [form.encode() for code in platform.codes for form in (code.reveal(), code.printed())]
        assert await asyncio.to_thread(files_with, tmp_path, secrets) == []


def files_with(directory: Path, secrets: list[bytes]) -> list[Path]:
    """Files that hold one of these."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert any(path.stat().st_size > 1_000 and "data" in path.parts for path in files), "the store's file is searched"
    return [path for path in files if any(secret in path.read_bytes() for secret in secrets)]

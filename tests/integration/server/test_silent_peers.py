"""Peers that say nothing, or read nothing: they cost a bounded time and harm nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from struct import pack
from time import monotonic

import pytest
import pytest_asyncio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes

from pli.codes import Code
from pli.errors import Overloaded
from pli.ingest.v1.ingest_pb2 import Answer, Answers, Choices, Open, SubmitRequest
from tests.support.platform import Platform
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")
PATIENCE = {"sessions": {"open_seconds": 1.0, "last_words_seconds": 0.5, "max_sessions": 3, "retry_slot_ms": 2_000}}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    directory: Path = tmp_path_factory.mktemp("silent")
    async with Platform(directory, node_settings=PATIENCE) as running:
        await running.open_window()
        yield running


class Peer:
    """One HTTP/2 stream to `Submit` that lets the server send `window` bytes and never a byte more."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._h2 = H2Connection(H2Configuration(client_side=True))
        self.received = 0
        self.trailers: dict[str, str] = {}
        self.over = False

    async def begin(self, window: int) -> None:
        self._h2.initiate_connection()
        self._h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self._h2.send_headers(1, [
            (":method", "POST"), (":scheme", "https"), (":path", "/pli.ingest.v1.IngestService/Submit"),
            (":authority", "pli"), ("content-type", "application/grpc"), ("te", "trailers"),
        ])  # fmt: skip
        await self._flush()

    async def send(self, message: SubmitRequest) -> None:
        content = message.SerializeToString()
        self._h2.send_data(1, pack(">BI", 0, len(content)) + content)
        await self._flush()

    async def until_over(self, seconds: float = 20.0) -> dict[str, str]:
        """Reads frames, giving nothing back, until the stream ends; its trailers."""
        async with asyncio.timeout(seconds):
            while not self.over:
                await self._read()
        return self.trailers

    async def until_received(self, size: int, seconds: float = 20.0) -> None:
        """Reads until so many bytes of messages have come."""
        async with asyncio.timeout(seconds):
            while self.received < size:
                await self._read()

    async def _read(self) -> None:
        piece = await self._reader.read(65_536)
        if not piece:
            self.over = True
        for event in self._h2.receive_data(piece):
            self._take(event)
        await self._flush()

    def _take(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self.received += len(event.data)
        elif isinstance(event, ResponseReceived | TrailersReceived):
            self.trailers |= {bytes(name).decode(): bytes(value).decode() for name, value in event.headers}
        elif isinstance(event, StreamEnded | StreamReset):
            self.over = True

    async def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())
        await self._writer.drain()


@asynccontextmanager
async def peer(platform: Platform, window: int) -> AsyncIterator[Peer]:
    host, port = platform.address.rsplit(":", 1)
    context = ssl.create_default_context(cafile=str(platform.authority_file))
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        silent = Peer(reader, writer)
        await silent.begin(window)
        yield silent
    finally:
        # A silent peer does not end TLS politely either, and waiting for it would take half a minute.
        writer.transport.abort()


def opening(platform: Platform, code: Code) -> SubmitRequest:
    return SubmitRequest(
        open=Open(
            protocol_version=1,
            campaign_id=platform.campaign_id,
            code=code.printed(),
            writer=os.urandom(16),
            token=os.urandom(16),
        )
    )


async def sessions_become(platform: Platform, count: int) -> None:
    """Waits until the node has so many sessions, by what it publishes."""

    async def so_many() -> bool:
        return sum(int(row["sessions"]) for row in (await platform.workers()).values()) == count

    await until(so_many, f"{count} sessions")


async def test_a_stream_that_never_begins_is_ended(platform: Platform) -> None:
    async with peer(platform, 65_535) as silent:
        trailers = await silent.until_over()
    assert trailers["grpc-status"] == "14"


async def test_a_peer_that_never_reads_its_acks_loses_its_place_when_another_device_comes(platform: Platform) -> None:
    code = platform.codes[1]
    bad = [Answer(item_id="one", choices=Choices(options=["Z"]), opening=1)] * 64
    async with peer(platform, 100) as silent:
        await silent.send(opening(platform, code))
        await silent.until_received(20)
        for number in range(4):
            await silent.send(SubmitRequest(answers=Answers(first_seq=64 * number + 1, answers=bad)))
        await silent.until_received(100)
        await sessions_become(platform, 1)
        async with platform.session(platform.codes[2]) as bystander, platform.session(code) as newer:
            await bystander.open()
            assert (await newer.open()).opening == 2
            await sessions_become(platform, 2)
            for session in (bystander, newer):
                await session.choose("A")
                await session.acked()
    await sessions_become(platform, 0)


async def test_more_sessions_than_a_worker_takes_are_told_when_to_come_back(platform: Platform) -> None:
    async with AsyncExitStack() as stack:
        for code in platform.codes[5:8]:
            session = await stack.enter_async_context(platform.session(code))
            await session.open()
        slots = set()
        for _ in range(5):
            async with platform.session(platform.codes[0]) as late:
                with pytest.raises(Overloaded) as caught:
                    await late.open()
            slots.add(caught.value.retry_after_ms)
        assert all(0 <= slot <= 2_000 for slot in slots)
        assert len(slots) > 1, "each gets a slot of its own"
    await sessions_become(platform, 0)
    async with platform.session(platform.codes[0]) as late:
        assert (await late.open()).opening == 1


async def test_peers_that_read_nothing_hold_no_session_and_no_stop(platform: Platform) -> None:
    async with peer(platform, 0) as silent, peer(platform, 100) as slow:
        await silent.send(opening(platform, platform.codes[3]))
        await slow.send(opening(platform, platform.codes[4]))
        await slow.until_received(20)
        await sessions_become(platform, 1)
        stopped = monotonic()
        platform.nodes[0].process.send(signal.SIGTERM)
        assert await platform.nodes[0].process.ended() == 0
        assert monotonic() - stopped < 10
    assert platform.nodes[0].faults() == []

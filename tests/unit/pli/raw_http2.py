"""A gRPC call by hand, over plain HTTP/2: bytes that no gRPC library would send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from struct import pack

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

DEADLINE_SECONDS = 20
SUBMIT = "/pli.ingest.v1.IngestService/Submit"


def framed(content: bytes, *, declared: int | None = None, compressed: bool = False) -> bytes:
    """A message behind the 5 bytes that say how long it is, or claim to."""
    return pack(">BI", compressed, len(content) if declared is None else declared) + content


class RawCall:
    """One call on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._h2 = H2Connection(H2Configuration(client_side=True))
        self.headers: dict[str, str] = {}
        self.received = b""
        self.over = False
        self.sent_bytes = 0
        self._agreed = False

    async def begin(self, *extra: tuple[str, str]) -> None:
        """Sends the preface, agrees on settings (gRPC holds a peer to its limits only then), and begins a call."""
        self._h2.initiate_connection()
        await self._flush()
        while not self._agreed and not self.over:
            await self.read()
        self._h2.send_headers(1, [
            (":method", "POST"), (":scheme", "http"), (":path", SUBMIT), (":authority", "pli"),
            ("content-type", "application/grpc"), ("te", "trailers"), *extra,
        ])  # fmt: skip
        await self._flush()

    async def send(self, content: bytes) -> None:
        """Sends as the peer's flow control allows; stops when the call is over."""
        while content and not self.over:
            window = min(self._h2.local_flow_control_window(1), self._h2.max_outbound_frame_size)
            if window:
                self._h2.send_data(1, content[:window])
                self.sent_bytes += min(window, len(content))
                content = content[window:]
                await self._flush()
            else:
                await self.read()

    async def read(self) -> None:
        """Takes in what comes next."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            try:
                piece = await self._reader.read(65_536)
            except ConnectionResetError:
                piece = b""
        if not piece:
            self.over = True
            return
        for event in self._h2.receive_data(piece):
            self._take(event)
        await self._flush()

    async def finished(self) -> dict[str, str]:
        """Reads until the call or the connection is over; the status is among what it returns."""
        while not self.over:
            await self.read()
        return self.headers

    async def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())
        await self._writer.drain()

    def _take(self, event: Event) -> None:
        if isinstance(event, ResponseReceived | TrailersReceived):
            self.headers |= {_text(name): _text(value) for name, value in event.headers}
        elif isinstance(event, SettingsAcknowledged):
            self._agreed = True
        elif isinstance(event, DataReceived):
            self.received += event.data
        elif isinstance(event, StreamEnded | StreamReset | ConnectionTerminated):
            self.over = True


@asynccontextmanager
async def raw_call(port: int, *extra: tuple[str, str]) -> AsyncIterator[RawCall]:
    """A call that has begun, with `extra` headers, to a server in plaintext on 127.0.0.1."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        call = RawCall(reader, writer)
        await call.begin(*extra)
        yield call
    finally:
        writer.close()


async def says(port: int, pieces: Sequence[bytes]) -> bytes:
    """What the server answers to bytes that need not be HTTP/2, until it hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.writelines(pieces)
        async with asyncio.timeout(DEADLINE_SECONDS):
            try:
                return await reader.read()
            except ConnectionResetError:
                return b""
    finally:
        writer.close()


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value

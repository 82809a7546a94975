"""A TCP proxy that breaks connections on purpose: at any byte, silently, slowly, or by a reset.

    async with CuttingProxy("127.0.0.1", port) as proxy:
        proxy.plan(Cut(after_bytes=700))            # the next connection: reset after 700 bytes to the server
        proxy.plan(Cut(after_bytes=90, direction=TO_CLIENT, how=BLACK_HOLE))
        ... clients use proxy.address; connections beyond the plans pass untouched

`proxy.reset_all()` breaks whatever is open now; `proxy.hold()` and `proxy.release()` stop and let
go all bytes in both directions, as a dead line does that comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

TO_SERVER: Final = "to the server"
TO_CLIENT: Final = "to the client"

RESET: Final = "reset"
"""Both sides get RST."""
CLOSE: Final = "close"
"""Both sides get an orderly end."""
BLACK_HOLE: Final = "black hole"
"""Both sides hear nothing more, and nobody tells them."""

CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Cut:
    """What happens to one connection. By default nothing does."""

    after_bytes: int | None = None
    """So many bytes of `direction` pass; what follows does not."""
    direction: str = TO_SERVER
    how: str = RESET
    delay_seconds: float = 0.0
    """Every chunk of both directions is held for so long."""
    slice_bytes: int = CHUNK_BYTES
    """No chunk is larger: 1 makes every byte a packet of its own."""


class _Pipe:
    """One proxied connection."""

    def __init__(
        self, proxy: CuttingProxy, cut: Cut, client: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._cut = cut
        self._writers = (client, server)
        self._passed = 0
        self._dark = False

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        """Carries one direction until it ends or is cut."""
        cut = self._cut
        while chunk := await reader.read(cut.slice_bytes):
            await self._proxy.flowing.wait()
            if cut.delay_seconds:
                await asyncio.sleep(cut.delay_seconds)
            if self._dark:
                continue
            if cut.after_bytes is not None and direction == cut.direction:
                chunk = chunk[: max(0, cut.after_bytes - self._passed)]
                self._passed += len(chunk)
                writer.write(chunk)
                if self._passed >= cut.after_bytes:
                    await self._strike(writer)
                    continue
            else:
                writer.write(chunk)
            await writer.drain()
        if not self._dark:
            writer.close()

    async def _strike(self, writer: asyncio.StreamWriter) -> None:
        await writer.drain()
        self._proxy.struck.set()
        self._dark = True
        if self._cut.how == RESET:
            self.reset()
        elif self._cut.how == CLOSE:
            for each in self._writers:
                each.close()

    def reset(self) -> None:
        """RST to both sides."""
        self._dark = True
        for writer in self._writers:
            raw: socket.socket | None = writer.get_extra_info("socket")
            if raw is not None and raw.fileno() != -1:
                # Lingering for zero seconds makes the close a reset.
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class CuttingProxy:
    """See the module's docstring. `connections` counts those that were accepted."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._plans: deque[Cut] = deque()
        self._pipes: set[_Pipe] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.struck = asyncio.Event()
        """Set by each cut that happened; clear it to wait for the next."""
        self.connections = 0
        self.refused = 0
        """Connections that found nobody behind the proxy, or were open at the end."""
        self.address = ""

    @property
    def open_connections(self) -> int:
        """How many there are at this moment."""
        return len(self._pipes)

    def plan(self, *cuts: Cut) -> None:
        """The next connections get these, in order."""
        self._plans.extend(cuts)

    def target(self, host: str, port: int) -> None:
        """Later connections go there instead: the platform moved, the client's address did not."""
        self._target = (host, port)

    def hold(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self.flowing.clear()

    def release(self) -> None:
        """Everything held passes."""
        self.flowing.set()

    def reset_all(self) -> int:
        """Resets every open connection; how many there were."""
        pipes = list(self._pipes)
        for pipe in pipes:
            pipe.reset()
        return len(pipes)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        cut = self._plans.popleft() if self._plans else Cut()
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with self._dialled() as (server_reader, server_writer):
                pipe = _Pipe(self, cut, writer, server_writer)
                self._pipes.add(pipe)
                try:
                    await asyncio.gather(
                        _quietly(pipe.carry(reader, server_writer, TO_SERVER)),
                        _quietly(pipe.carry(server_reader, writer, TO_CLIENT)),
                    )
                finally:
                    self._pipes.discard(pipe)
        except (OSError, asyncio.CancelledError):
            # Nobody listens behind the proxy, or the test is over: either way this connection ends.
            self.refused += 1
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    @contextlib.asynccontextmanager
    async def _dialled(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(*self._target)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _quietly(carrying: Coroutine[Any, Any, None]) -> None:
    """A direction whose peer is gone has ended."""
    with contextlib.suppress(OSError):
        await carrying

"""An ingest service that does what a test's scripts say: one script per stream, in the order of arrival.

    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()                       # reads Open, answers Opened
        answers = await stream.answers()            # reads Answers
        await stream.ack(answers.first_seq)
        await stream.lose()                         # the connection breaks

    async with ScriptedIngest(script) as peer:
        session = PupilSession(OPTIONS, CODE, channel=peer.channel())

A script that ends leaves its stream open until the client leaves. A stream beyond the last script, and
whatever a script raises, fails the test when the block ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import grpc

from pli.errors import PliError
from pli.ingest.v1.ingest_pb2 import (
    Ack,
    Answers,
    Expected,
    Finish,
    Finished,
    Notice,
    Open,
    Opened,
    Receipt,
    ReceiptBody,
    Rejected,
    RejectReason,
    SubmitRequest,
    SubmitResponse,
)
from pli.ingest.v1.ingest_pb2_grpc import IngestServiceServicer, add_IngestServiceServicer_to_server
from pli.rpc.server import refuse

CAMPAIGN = "tests"
STEP_SECONDS = 10.0
"""A script that waits longer for a message waits in vain."""


class ScriptedStream:
    """One stream, seen from the platform. `number` counts from 1."""

    def __init__(self, number: int, context: Any) -> None:
        self.number = number
        self.peer: str = context.peer()
        """Which connection carries it."""
        self.open = Open()
        self._context = context
        self._reading: asyncio.Task[Any] | None = None

    async def receive(self) -> SubmitRequest | None:
        """The next message; None when the client said its last word."""
        request = await self._read(STEP_SECONDS)
        assert not isinstance(request, TimeoutError), "waited in vain for a message"
        return request

    async def opening(self) -> Open:
        """Reads the Open."""
        request = await self.receive()
        assert request is not None, "the client left"
        assert request.HasField("open"), f"not Open: {request}"
        self.open = request.open
        return request.open

    async def let_in(self, opening: int = 1, durable_seq: int = 0, *, max_in_flight: int = 256, **fields: Any) -> Open:
        """Reads the Open and answers Opened."""
        request = await self.opening()
        opened = Opened(opening=opening, durable_seq=durable_seq, max_in_flight=max_in_flight, **fields)
        await self.send(SubmitResponse(opened=opened))
        return request

    async def answers(self) -> Answers:
        """Reads one message of answers."""
        request = await self.receive()
        assert request is not None, "the client left"
        assert request.HasField("answers"), f"not Answers: {request}"
        return request.answers

    async def answers_up_to(self, last_seq: int) -> list[Answers]:
        """Reads messages of answers until `last_seq` was among them."""
        read: list[Answers] = []
        while not read or read[-1].first_seq + len(read[-1].answers) - 1 < last_seq:
            read.append(await self.answers())
        return read

    async def finish(self) -> Finish:
        """Reads the finish."""
        request = await self.receive()
        assert request is not None, "the client left"
        assert request.HasField("finish"), f"not Finish: {request}"
        return request.finish

    async def nothing(self, seconds: float = 0.1) -> None:
        """Nothing comes for so long: a claim about what does not happen has no event to wait for."""
        request = await self._read(seconds)
        assert isinstance(request, TimeoutError), f"nothing was expected, and there came {request}"

    async def _read(self, seconds: float) -> SubmitRequest | TimeoutError | None:
        # A read that is cancelled takes its message with it: one that took too long goes on.
        if self._reading is None:
            self._reading = asyncio.create_task(self._context.read())
        done, _ = await asyncio.wait({self._reading}, timeout=seconds)
        if not done:
            return TimeoutError()
        request, self._reading = self._reading.result(), None
        return request if isinstance(request, SubmitRequest) else None

    async def send(self, response: SubmitResponse) -> None:
        await self._context.write(response)

    async def ack(self, durable_seq: int) -> None:
        await self.send(SubmitResponse(ack=Ack(durable_seq=durable_seq)))

    async def reject(self, seq: int, reason: RejectReason.ValueType) -> None:
        await self.send(SubmitResponse(rejected=Rejected(seq=seq, reason=reason)))

    async def expect(self, seq: int) -> None:
        await self.send(SubmitResponse(expected=Expected(seq=seq)))

    async def notice(self, **notice: Any) -> None:
        await self.send(SubmitResponse(notice=Notice(**notice)))

    async def finished(self, receipt: Receipt) -> None:
        await self.send(SubmitResponse(finished=Finished(receipt=receipt)))

    async def refuse(self, error: PliError) -> None:
        """Ends the stream with the platform's word."""
        await refuse(self._context, error)

    async def lose(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        """Ends the stream as a broken connection does: with a status that nobody at the platform said."""
        await self._context.abort(code, "connection reset")

    async def left(self) -> None:
        """Waits until the client leaves."""
        while await self.receive() is not None:
            pass


Script = Callable[[ScriptedStream], Awaitable[None]]


class ScriptedIngest(IngestServiceServicer):
    """See the module's docstring. With `credentials` it listens by TLS."""

    def __init__(self, *scripts: Script, credentials: grpc.ServerCredentials | None = None) -> None:
        self.streams: list[ScriptedStream] = []
        self.address = ""
        self._scripts = scripts
        self._credentials = credentials
        self._failures: list[BaseException] = []
        self._channels: list[grpc.aio.Channel] = []
        self._server: grpc.aio.Server | None = None

    async def Submit(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        """Plays the next script."""
        stream = ScriptedStream(len(self.streams) + 1, context)
        self.streams.append(stream)
        try:
            if len(self.streams) > len(self._scripts):
                raise AssertionError(f"stream {stream.number} was not expected")
            await self._scripts[stream.number - 1](stream)
            await asyncio.get_running_loop().create_future()
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except BaseException as error:
            self._failures.append(error)
            raise

    def channel(self) -> grpc.aio.Channel:
        """A plaintext channel of its own; closed with the peer."""
        channel = grpc.aio.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)])
        self._channels.append(channel)
        return channel

    async def __aenter__(self) -> ScriptedIngest:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_IngestServiceServicer_to_server(self, server)
        if self._credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", self._credentials)
        self.address = f"127.0.0.1:{port}"
        await server.start()
        self._server = server
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            await channel.close()
        assert self._server is not None
        await self._server.stop(None)
        if self._failures:
            raise self._failures[0]


def receipt_of(finish: Finish, **fields: Any) -> Receipt:
    """An unsigned receipt that agrees with this finish, but for `fields`."""
    body = {
        "campaign_id": CAMPAIGN,
        "pseudonym_prefix": b"\x3f\xa1\xc2\xd0",
        "last_seq": finish.seq,
        "count": finish.count,
        "finished_at_ms": 1_767_600_000_000,
    }
    return Receipt(body=ReceiptBody(**{**body, **fields}).SerializeToString())

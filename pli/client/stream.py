"""One gRPC stream, and the connection under it: what ended a stream, and whether to open again.

It knows the messages and statuses of the protocol, and nothing of numbers: those are the queue's.
"""

from __future__ import annotations

import asyncio

import grpc
from grpc import StatusCode

from pli.client.config import ClientOptions
from pli.errors import ConfigError, Draining, Overloaded, PliError, StateError, StreamViolation, Unavailable
from pli.ingest.v1.ingest_pb2 import Open, Opened, SubmitRequest, SubmitResponse
from pli.ingest.v1.ingest_pb2_grpc import IngestServiceStub
from pli.rpc.client import DETAILS, typed
from pli.tls import client_credentials

MAX_RECEIVE_BYTES = 256 * 1024
"""An `Opened` that repeats 4 096 rejections, the most a spool keeps, has a quarter of that."""

RECONNECT_MAX_MS = 1_000
"""gRPC's own pause between two attempts to connect. It matters for a channel that was handed in: one
of the session's own is made anew instead, so that its pauses alone decide."""

_Call = grpc.aio.StreamStreamCall[SubmitRequest, SubmitResponse]

_TRANSPORT = frozenset(
    {
        StatusCode.UNAVAILABLE, StatusCode.UNKNOWN, StatusCode.INTERNAL, StatusCode.CANCELLED,
        StatusCode.ABORTED, StatusCode.DEADLINE_EXCEEDED, StatusCode.RESOURCE_EXHAUSTED,
    }
)  # fmt: skip
"""What a connection that broke somewhere on the way may look like; none of them is the node's word."""


class StreamEnded(Exception):
    """A stream is over. `error` says why, in pli's words."""

    def __init__(self, error: PliError, *, again: bool, told: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.again = again
        """Whether opening again by itself may help."""
        self.told = told
        """Whether the node said so itself; otherwise the outcome of what was asked is unknown."""

    @property
    def outcome_known(self) -> bool:
        """Whether an `Open` that ended so has certainly opened nothing."""
        return self.told and not isinstance(self.error, Unavailable) and self.error.status is not StatusCode.INTERNAL


def ended_by(error: grpc.aio.AioRpcError) -> StreamEnded:
    """What a status means for the session."""
    told = any(key == DETAILS for key, _ in error.trailing_metadata() or ())
    if not told and error.code() in _TRANSPORT:
        lost = Unavailable(f"the connection failed ({error.code().name}: {error.details()})")
        return StreamEnded(lost, again=True, told=False)
    known = typed(error)
    again = isinstance(known, Overloaded | Unavailable) or (told and known.status is StatusCode.INTERNAL)
    return StreamEnded(known, again=again, told=told)


def open_channel(options: ClientOptions) -> grpc.aio.Channel:
    """A TLS channel as a session makes its own, for applications that hand one in.

    A node takes 100 streams on one connection; channels made here never share theirs.

    Raises:
        ConfigError: there is no address or no authority.
    """
    if not options.address or not options.authority:
        raise ConfigError("a session without a channel of its own needs address and authority")
    return grpc.aio.secure_channel(
        options.address,
        client_credentials(options.authority),
        [
            ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
            ("grpc.keepalive_time_ms", options.keepalive_time_ms),
            ("grpc.keepalive_timeout_ms", options.keepalive_timeout_ms),
            # A pupil who thinks sends nothing: the pings must go on all the same.
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MAX_MS // 10),
            ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
            # Channels of one process share connections otherwise, and so the limit of streams on one.
            ("grpc.use_local_subchannel_pool", 1),
            # The session's own resume replaces gRPC's retries, which end with the first response.
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
        ],
    )


class Connection:
    """The channel under a session's streams: one that was handed in, or one of its own."""

    __slots__ = ("_channel", "_given", "_options")

    def __init__(self, options: ClientOptions, given: grpc.aio.Channel | None) -> None:
        self._options = options
        self._given = given
        self._channel: grpc.aio.Channel | None = given

    def stream(self) -> Stream:
        """A new stream; nothing is sent yet.

        Raises:
            ConfigError: as `open_channel`.
            StateError: the channel that was handed in is closed.
        """
        if self._channel is None:
            self._channel = open_channel(self._options)
        try:
            return Stream(self._channel, self._options.stall_timeout_seconds)
        except grpc.aio.UsageError as error:
            raise StateError("the channel that this session was handed is closed") from error

    async def drop(self) -> None:
        """Closes the session's own channel, the next stream gets another; one that was handed in stays."""
        if self._given is None and self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    @staticmethod
    def is_of_no_use(ended: StreamEnded, *, opened: bool) -> bool:
        """Whether the next attempt needs another connection.

        Not after a slot: the connection waits with the client. Not for a live node with a stalled
        spool: thousands of handshakes at once would not help it.
        """
        if not ended.told:
            return True
        return isinstance(ended.error, Draining) or (isinstance(ended.error, Unavailable) and not opened)


class Stream:
    """One call of `Submit`. One task reads; one task writes; `cut` may be called from anywhere."""

    __slots__ = ("_call", "_cut", "_stall_seconds", "_unanswered_since", "_watch")

    def __init__(self, channel: grpc.aio.Channel, stall_seconds: float) -> None:
        self._call: _Call | None = IngestServiceStub(channel).Submit()
        self._cut: Exception | None = None
        self._stall_seconds = stall_seconds
        self._unanswered_since: float | None = None
        self._watch: asyncio.TimerHandle | None = None

    async def open(self, request: Open, timeout_seconds: float) -> Opened:
        """Sends `Open` and waits for `Opened`. Nothing else may be sent before it returns.

        Raises:
            StreamEnded: there will be none, or it did not come in time.
        """
        response: SubmitResponse | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.send(SubmitRequest(open=request))
                response = await self.receive()
        except TimeoutError:
            # Not chained: see `receive`.
            pass
        if response is None:
            late = Unavailable(f"the platform did not answer within {timeout_seconds:g} s")
            raise StreamEnded(late, again=True, told=False)
        if not response.HasField("opened"):
            raise StreamEnded(StreamViolation("the platform did not begin with Opened"), again=False, told=True)
        return response.opened

    async def send(self, request: SubmitRequest) -> bool:
        """Writes one message. False when the stream is over; `receive` says why."""
        self._expect_an_answer()
        try:
            await self._live_call().write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False
        except asyncio.CancelledError:
            if _this_task_is_cancelled():
                raise
            return False
        return True

    async def receive(self) -> SubmitResponse:
        """The next message.

        Raises:
            StreamEnded: there is none.
            Exception: what `cut` was given.
        """
        # Errors are raised outside of the handlers: what the application keeps must not keep the call
        # alive by its traceback, and with it the connection.
        failure: Exception
        try:
            response = await self._live_call().read()
        except grpc.aio.AioRpcError as error:
            failure = ended_by(error)
        except asyncio.CancelledError:
            # gRPC raises this, too, when the call or its channel was closed on this side.
            if _this_task_is_cancelled():
                raise
            failure = StreamEnded(Unavailable("the channel was closed on this side"), again=True, told=False)
        else:
            if isinstance(response, SubmitResponse):
                self._unanswered_since = None
                return response
            if response is None:
                violation = StreamViolation("the platform sent what is no message")
                failure = StreamEnded(violation, again=False, told=True)
            else:
                failure = StreamEnded(Unavailable("the platform ended the stream"), again=True, told=False)
        raise self._cut or failure

    def cut(self, error: Exception) -> None:
        """Ends the stream on this side; `receive` raises `error`."""
        if self._cut is None:
            self._cut = error
        if self._call is not None:
            self._call.cancel()

    def close(self) -> None:
        """Ends the stream and its timer, and lets go of the connection. Harmless when repeated."""
        if self._watch is not None:
            self._watch.cancel()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _live_call(self) -> _Call:
        if self._call is None:
            raise StateError("this stream was closed")
        return self._call

    def _expect_an_answer(self) -> None:
        if self._unanswered_since is None:
            loop = asyncio.get_running_loop()
            self._unanswered_since = loop.time()
            if self._watch is None:
                self._watch = loop.call_later(self._stall_seconds, self._look)

    def _look(self) -> None:
        # One timer a stream: it looks when the oldest wait might be over, and sets itself again.
        self._watch = None
        if self._unanswered_since is None:
            return
        loop = asyncio.get_running_loop()
        due = self._unanswered_since + self._stall_seconds
        if loop.time() < due:
            self._watch = loop.call_at(due, self._look)
            return
        stalled = Unavailable(f"the platform said nothing for {self._stall_seconds:g} s")
        self.cut(StreamEnded(stalled, again=True, told=False))


def _this_task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

"""The link of a queue to the platform: one stream after another until the session is finished.

Rules are numbered as in docs/protocol.md, section 4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

from pli.client.backoff import Backoff
from pli.client.config import ClientOptions, ClientPorts
from pli.client.events import (
    ClosingTold,
    DrainTold,
    OverloadTold,
    RejectionTold,
    SessionEvent,
    SessionInterrupted,
    SessionOpened,
    SpoolWentBack,
    SupersededTold,
)
from pli.client.queue import AnswerQueue
from pli.client.receipt import SessionReceipt, read_receipt
from pli.client.stream import Connection, Stream, StreamEnded
from pli.codes import Code
from pli.errors import (
    CampaignClosed,
    Draining,
    IntegrityError,
    Overloaded,
    SessionSuperseded,
    StreamViolation,
    Unavailable,
)
from pli.ingest.v1.ingest_pb2 import Notice, Open, Opened, Receipt, Rejected, SubmitResponse

PROTOCOL_VERSION = 1
TOKEN_BYTES = 16

SUPERSEDED_SECONDS = 5.0
"""After `Notice{superseded}` the node still says what it had stored, then ends the stream; a client that
the end does not reach waits no longer than this for it."""

STOPPING = "the node behind this stream is stopping"
SUPERSEDED = "this code was opened again, here or on another device; open it here again to go on"


class Link:
    """Keeps a queue's stream open. `run` is its one long task; a second one writes while a stream is open."""

    __slots__ = (
        "_backoff", "_catching_up", "_changed", "_code", "_connection", "_emit", "_highest_opening", "_last_opening",
        "_opened", "_options", "_ports", "_queue", "_resume_at", "_silent", "_stuck_since", "_superseded", "_token",
        "_wake", "_window_closed", "max_in_flight", "opening", "receipt", "welcome",
    )  # fmt: skip

    def __init__(
        self,
        options: ClientOptions,
        code: Code,
        queue: AnswerQueue,
        connection: Connection,
        ports: ClientPorts,
        emit: Callable[[SessionEvent], None],
        changed: Callable[[], None],
    ) -> None:
        """`emit` takes events for the application; `changed` is called whenever waiting code should look."""
        self._options = options
        self._code = code
        self._queue = queue
        self._connection = connection
        self._ports = ports
        self._emit = emit
        self._changed = changed
        self._backoff = Backoff(options.backoff_first_ms / 1000, options.backoff_max_ms / 1000, ports.random)
        self._wake = asyncio.Event()
        self._token: bytes | None = None
        self._highest_opening = 1
        self._last_opening = 0
        self._catching_up = False
        self._opened = False
        self._silent = False
        self._superseded = False
        self._window_closed = False
        self._resume_at: float | None = None
        self._stuck_since: float | None = None
        self.opening = 0
        """The opening in which answers are given now; 0 before the first."""
        self.max_in_flight = 1
        self.receipt: SessionReceipt | None = None
        self.welcome = False
        """Whether this run was let in once."""

    def wake(self) -> None:
        """The queue has something to send."""
        self._wake.set()

    async def run(self) -> None:
        """Returns when the session is finished; may be called again after an error.

        Raises:
            PliError: the session stops here; nothing is forgotten.
        """
        self.welcome = self._superseded = self._window_closed = False
        self._stuck_since = self._resume_at = None
        self._backoff.reset()
        while self.receipt is None:
            self._opened = self._silent = self._catching_up = False
            started = self._ports.monotonic()
            try:
                await self._serve()
            except StreamEnded as ended:
                if self._opened and self._ports.monotonic() - started > self._options.backoff_max_ms / 1000:
                    self._backoff.reset()
                self._stop_or_go_on(ended)
                await self._pause(ended)

    async def _serve(self) -> None:
        """One stream, from Open to its end. Returns when the session is finished."""
        stream = self._connection.stream()
        try:
            opened = await stream.open(self._request(), self._options.open_timeout_seconds)
            self._take_opened(opened)
            if self.receipt is None:
                await self._converse(stream)
        finally:
            stream.close()

    def _request(self) -> Open:
        # Rule 3: the same token while it is unknown whether the last attempt opened; else a new one.
        if self._token is None:
            self._token = self._ports.random_bytes(TOKEN_BYTES)
        return Open(
            protocol_version=PROTOCOL_VERSION,
            campaign_id=self._options.campaign_id,
            code=self._code.reveal(),
            writer=self._queue.writer,
            acked_seq=self._queue.told_seq,
            token=self._token,
        )

    async def _converse(self, stream: Stream) -> None:
        writing = asyncio.create_task(self._write(stream))
        try:
            while self.receipt is None:
                self._take(stream, await stream.receive())
        finally:
            writing.cancel()
            await asyncio.wait({writing})

    async def _write(self, stream: Stream) -> None:
        try:
            while not self._silent:
                request = self._queue.next_request(self.max_in_flight)
                if request is None:
                    await self._wake.wait()
                    self._wake.clear()
                elif not await stream.send(request):
                    return
        except Exception as error:  # noqa: BLE001  # not swallowed: the reading task raises it
            stream.cut(error)

    # What the platform says

    def _take_opened(self, opened: Opened) -> None:
        queue = self._queue
        self._token = None
        self._opened = True
        if opened.durable_seq < queue.told_seq:
            self._emit(SpoolWentBack(queue.told_seq, opened.durable_seq))
        news = [each for each in opened.rejected if queue.rejection(each.seq) is None]
        queue.resumed(opened.durable_seq, opened.rejected)
        for each in news:
            self._told_rejected(each)
        if opened.read_only:
            self._take_read_only(opened)
        else:
            self._take_opening(opened)
        self._changed()

    def _take_read_only(self, opened: Opened) -> None:
        if not opened.HasField("receipt"):
            raise self._closed(told_all=True)
        self._finish(opened.receipt)

    def _take_opening(self, opened: Opened) -> None:
        # Rule 9: after a rollback the platform counts openings from before. What was given in a later
        # opening would be rejected, so the code is opened again until the count has caught up.
        rising = opened.opening > self._last_opening
        self._last_opening = opened.opening
        if opened.opening < self._highest_opening:
            self._catching_up = rising
            behind = Unavailable("the platform counts fewer openings than it told before")
            raise StreamEnded(behind, again=True, told=True)
        self.opening = self._highest_opening = opened.opening
        self.max_in_flight = max(1, opened.max_in_flight)
        if not self._queue.waiting:
            self._stuck_since = None
        self._emit(
            SessionOpened(
                opened.opening,
                opened.durable_seq,
                opened.instrument_version,
                opened.closes_at_ms,
                opened.server_time_ms,
            )
        )
        self.welcome = True

    def _take(self, stream: Stream, response: SubmitResponse) -> None:
        match response.WhichOneof("message"):
            case "ack":
                if self._queue.acked(response.ack.durable_seq):
                    self._stuck_since = None
                    self._backoff.reset()
                    self._wake.set()
                self._leave_drained()
            case "rejected":
                self._queue.reject(response.rejected.seq, response.rejected.reason)
                self._told_rejected(response.rejected)
            case "expected":
                self._queue.expected(response.expected.seq)
                self._wake.set()
            case "notice":
                self._take_notice(stream, response.notice)
            case "finished":
                self._finish(response.finished.receipt)
            case "opened":
                raise StreamViolation("the platform sent Opened twice on one stream")
        self._changed()

    def _take_notice(self, stream: Stream, notice: Notice) -> None:
        loop = asyncio.get_running_loop()
        match notice.WhichOneof("notice"):
            case "superseded":
                self._superseded = self._silent = True
                loop.call_later(SUPERSEDED_SECONDS, stream.cut, SessionSuperseded(SUPERSEDED))
                self._emit(SupersededTold(notice.superseded.opening))
            case "drain":
                # What is in flight is still acknowledged; what is given from now on waits for the next stream.
                self._silent = True
                wait = notice.drain.reconnect_after_ms / 1000
                self._resume_at = self._ports.monotonic() + wait
                leaving = StreamEnded(Draining(STOPPING), again=True, told=True)
                loop.call_later(wait, stream.cut, leaving)
                self._emit(DrainTold(notice.drain.reconnect_after_ms))
                self._leave_drained()
            case "closing":
                self._emit(ClosingTold(notice.closing.until_ms))

    def _leave_drained(self) -> None:
        # A node that drains waits for its streams: with nothing in flight there is nothing to stay for.
        if self._resume_at is not None and not self._queue.in_flight:
            raise StreamEnded(Draining(STOPPING), again=True, told=True)

    def _told_rejected(self, rejected: Rejected) -> None:
        self._emit(RejectionTold(rejected.seq, rejected.reason))
        if rejected.seq == self._queue.finish_seq:
            raise IntegrityError("the platform does not agree with what this session counts as accepted")

    def _finish(self, receipt: Receipt) -> None:
        queue = self._queue
        if not queue.finish_seq or queue.durable_seq != queue.finish_seq:
            raise IntegrityError("the platform says finished, and has not acknowledged the finish")
        self.receipt = read_receipt(
            receipt,
            campaign_id=self._options.campaign_id,
            last_seq=queue.finish_seq,
            count=queue.accepted,
            authorities=self._options.node_authorities,
        )
        self.welcome = True
        queue.forget()

    # After a stream

    def _stop_or_go_on(self, ended: StreamEnded) -> None:
        """Returns where opening again by itself is right; everything else stops the session here."""
        error = ended.error
        if ended.outcome_known:
            self._token = None
        if self._superseded or isinstance(error, SessionSuperseded):
            raise SessionSuperseded(SUPERSEDED) from ended
        if isinstance(error, CampaignClosed) and self._opened:
            # Rule 8: the next Opened is read-only and tells what is stored.
            self._window_closed = True
        elif isinstance(error, CampaignClosed) or (self._window_closed and not ended.again):
            raise self._closed(told_all=False) from ended
        elif not ended.again:
            raise error
        now = self._ports.monotonic()
        if self._stuck_since is None:
            self._stuck_since = now
        if now - self._stuck_since >= self._options.give_up_seconds:
            self._give_up(ended)

    async def _pause(self, ended: StreamEnded) -> None:
        error = ended.error
        if self._resume_at is not None:
            wait = max(0.0, self._resume_at - self._ports.monotonic())
            self._resume_at = None
        elif isinstance(error, Overloaded) and error.retry_after_ms > 0:
            wait = error.retry_after_ms / 1000
            self._emit(OverloadTold(error.retry_after_ms))
        else:
            wait = 0.0 if self._catching_up else self._backoff.next()
        self._emit(SessionInterrupted(error, int(wait * 1000)))
        if Connection.is_of_no_use(ended, opened=self._opened):
            await self._connection.drop()
        await self._ports.sleep(wait)

    def _give_up(self, ended: StreamEnded) -> NoReturn:
        if self._window_closed:
            raise self._closed(told_all=False) from ended
        raise Unavailable(
            f"nothing went through for {self._options.give_up_seconds:g} s ({ended.error.message}); "
            "everything given is kept: open again later"
        ) from ended

    def _closed(self, *, told_all: bool) -> CampaignClosed:
        settled = self._queue.settled()
        left = len(settled.unsettled)
        fate = "not stored" if told_all else "not known to be stored; open again to learn"
        message = f"the window is closed: {settled.stored} stored, {len(settled.rejected)} rejected"
        if left:
            message += f", {left} {fate}"
        return CampaignClosed(message, metadata={"durable_seq": str(settled.durable_seq), "left": str(left)})

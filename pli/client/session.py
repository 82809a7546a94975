"""`PupilSession`: the answers of one pupil, from the code to the receipt, over however many streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable
from types import TracebackType
from typing import Self

import grpc

from pli.client.answers import AnswerRejected, Number, answer_of
from pli.client.config import ClientOptions, ClientPorts
from pli.client.events import SessionEvent, SessionObserver, SilentObserver
from pli.client.link import Link
from pli.client.queue import AnswerQueue, Settled
from pli.client.receipt import SessionReceipt
from pli.client.stream import Connection
from pli.codes import Code, parse_code
from pli.errors import StateError

WRITER_BYTES = 16


class Given:
    """One answer that was given. Await it to learn that it is stored; nothing is spent on it otherwise.

    Awaiting raises AnswerRejected for an answer that will never be stored, and what stopped the session
    when it stopped before.
    """

    __slots__ = ("_settle", "seq")

    def __init__(self, seq: int, settle: Callable[[int], Awaitable[None]]) -> None:
        self.seq = seq
        """Its number in the session."""
        self._settle = settle

    def __await__(self) -> Generator[object, None, None]:
        return self._settle(self.seq).__await__()

    def __repr__(self) -> str:
        return f"Given({self.seq})"


class PupilSession:
    """One pupil's session. Use it as `async with`; leaving the block waits until all given is settled.

    Every answer is numbered and kept until the session is finished, and sent again after each break.
    An error stops the session and is raised at the application's next call; nothing is forgotten, and
    `open` goes on from there. A session belongs to the event loop that opened it.
    """

    __slots__ = (
        "_changed", "_code", "_connection", "_error", "_error_seen", "_left", "_link", "_observed", "_observer",
        "_on_event", "_queue", "_running", "_task",
    )  # fmt: skip

    def __init__(
        self,
        options: ClientOptions,
        code: str | Code,
        *,
        channel: grpc.aio.Channel | None = None,
        observer: SessionObserver | None = None,
        on_event: Callable[[SessionEvent], None] | None = None,
        ports: ClientPorts | None = None,
    ) -> None:
        """Checks the code and makes the queue; nothing is sent yet.

        A `channel` that is handed in may serve several sessions and is not closed here. `on_event` and
        `observer` are called on the event loop; what they raise stops the session.

        Raises:
            CodeRefused: the code's check symbols say that it was mistyped.
        """
        ports = ports or ClientPorts()
        self._code = code if isinstance(code, Code) else parse_code(code)
        self._observer = observer or SilentObserver()
        self._on_event = on_event
        self._queue = AnswerQueue(ports.random_bytes(WRITER_BYTES), self._observer)
        self._connection = Connection(options, channel)
        self._link = Link(options, self._code, self._queue, self._connection, ports, self._emit, self._pulse)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._error_seen = False
        self._running = False
        self._left = False
        self._observed = False

    @property
    def writer(self) -> bytes:
        """16 bytes: the name of this session's queue."""
        return self._queue.writer

    @property
    def opening(self) -> int:
        """The opening in which answers are given now; 0 before the first."""
        return self._link.opening

    @property
    def settled(self) -> Settled:
        """What is known of the answers at this moment, also after the session stopped."""
        return self._queue.settled()

    @property
    def receipt(self) -> SessionReceipt | None:
        """Present once the session is finished."""
        return self._link.receipt

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits, if the block ended well, until all is settled. An error that nobody saw is raised here."""
        try:
            if error is None and self.receipt is None and not self._error_seen:
                await self.flush()
        finally:
            await self.close()

    async def open(self) -> None:
        """Opens the session; after an error, opens it again, which is a person's act: it displaces others.

        Returns at once when the session is open or finished.

        Raises:
            CodeRefused: the platform opens no session for this code.
            CampaignNotOpen, CampaignClosed: too early, too late.
            Unavailable: nothing went through for `give_up_seconds`.
            PliError: any other status of docs/protocol.md that opening again does not cure.
        """
        if self._left:
            raise StateError("this session was closed; make a new one")
        if not self._running and self.receipt is None:
            self._error, self._error_seen = None, False
            self._link.welcome = False
            self._running = True
            self._task = asyncio.create_task(self._run(self._task))
        await self._until(lambda: self._link.welcome)

    async def answer(
        self,
        item_id: str,
        *,
        choice: str | None = None,
        choices: Iterable[str] | None = None,
        text: str | None = None,
        number: Number | None = None,
        cleared: bool = False,
        elapsed_ms: int = 0,
    ) -> Given:
        """Gives one answer: exactly one of the values, or `cleared`. Numbered and kept when this returns.

        Goes on while the connection is interrupted; waits only while as many answers are
        un-acknowledged as the platform allows.

        Raises:
            InputError: not exactly one value, or not one that a message can hold. What the instrument
                does not take is told later: by awaiting what this returns, and as an event.
            StateError: the session is not open, is finishing or finished.
            PliError: what stopped the session, see `open`.
        """
        answer = answer_of(
            item_id,
            choice=choice,
            choices=choices,
            text=text,
            number=number,
            cleared=cleared,
            elapsed_ms=elapsed_ms,
        )
        queue, link = self._queue, self._link
        self._may_give()
        while queue.waiting >= link.max_in_flight:
            await self._until(lambda: queue.waiting < link.max_in_flight)
            self._may_give()
        answer.opening = link.opening
        seq = queue.give(answer)
        link.wake()
        return Given(seq, self._settle)

    async def flush(self) -> None:
        """Waits until everything given so far is settled: stored on the platform's disk, or rejected.

        Raises:
            PliError: what stopped the session before; `settled` says how far it came.
        """
        last = self._queue.last_seq
        await self._until(lambda: self._queue.durable_seq >= last)

    async def finish(self) -> SessionReceipt:
        """Ends the session for good, once everything is settled. May be repeated.

        Raises:
            IntegrityError: the platform's count or receipt disagrees with what was given.
            PliError: what stopped the session before, see `open`.
        """
        if not self._queue.finish_seq:
            self._may_give()
            self._queue.finish(self._link.opening)
            self._link.wake()
        await self._until(lambda: self.receipt is not None)
        receipt = self.receipt
        if receipt is None:
            raise StateError("the session has no receipt")
        return receipt

    async def close(self) -> None:
        """Leaves at once: what is not sent stays unsent. Harmless when repeated."""
        self._left = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        await self._connection.drop()

    async def _run(self, before: asyncio.Task[None] | None) -> None:
        try:
            if before is not None:
                await asyncio.wait({before})
            if not self._observed:
                self._observer.opened(self._queue.writer, self._code)
                self._observed = True
            await self._link.run()
        except Exception as error:  # noqa: BLE001  # not swallowed: raised at the application's next call
            self._error = error
        finally:
            self._running = False
            self._pulse()
        # Finished or stopped: nobody waits on this connection any more, and nodes have few to give.
        await self._connection.drop()

    def _may_give(self) -> None:
        self._raise_error()
        if self._queue.finish_seq:
            raise StateError("the session is finishing or finished; nothing can follow")
        if not self._running or not self._link.welcome:
            raise StateError("the session is not open")

    async def _settle(self, seq: int) -> None:
        await self._until(lambda: self._queue.durable_seq >= seq)
        why = self._queue.rejection(seq)
        if why is not None:
            raise AnswerRejected(seq, why)

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._raise_error()
            if not self._running:
                raise StateError("the session is not open")
            await self._changed.wait()

    def _raise_error(self) -> None:
        if self._error is not None:
            self._error_seen = True
            raise self._error

    def _emit(self, event: SessionEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _pulse(self) -> None:
        """Everyone who waits looks again."""
        self._changed.set()
        self._changed.clear()

    def __repr__(self) -> str:
        return f"PupilSession({self._queue!r})"

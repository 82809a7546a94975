"""One live session on this worker: what was read and waits, what is durable, what to tell the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from pli.errors import PliError
from pli.ingest.v1.ingest_pb2 import (
    Closing,
    Drain,
    Expected,
    Finished,
    Notice,
    Receipt,
    Rejected,
    SubmitResponse,
    Superseded,
)
from pli.sealing import NewRecord
from server.backlog import Backlog, sealed_bytes

REJECTED = 0
"""In place of a record's kind: the item is a rejection, its seat field holds the reason."""

Write = Callable[[SubmitResponse], Any]


class Session:
    """State of one stream. Touched by its reader and by the committer, both on the one event loop.

    `waiting` holds accepted records and rejections in order of seq, without gap, from durable_seq + 1
    plus what is in the outstanding block. A session with something waiting is in the committer's queue.
    """

    __slots__ = (
        "_ack_due", "_backlog", "_responses", "_room", "_task", "_write", "_writing", "_written", "arrival",
        "closing_told",
        "durable_seq", "ending", "expected_told", "finish_receipt", "finished", "next_seq", "opening", "pseudonym",
        "queued", "rejected_count", "seats", "waiting", "waiting_bytes", "writer",
    )  # fmt: skip

    def __init__(
        self,
        pseudonym: bytes,
        writer: bytes,
        opening: int,
        seats: int,
        durable_seq: int,
        rejected_count: int,
        backlog: Backlog,
        write: Write,
        task: asyncio.Task[Any] | None,
        arrival: int = 0,
    ) -> None:
        """`arrival` rises with every opening that the spool answered: it tells twins under one opening apart."""
        self.pseudonym = pseudonym
        self.writer = writer
        self.opening = opening
        self.arrival = arrival
        self.seats = seats
        self.durable_seq = durable_seq
        self.next_seq = durable_seq + 1
        self.rejected_count = rejected_count
        self.waiting: list[NewRecord] = []
        self.waiting_bytes = 0
        self.queued = False
        self.finish_receipt: Receipt | None = None
        self.finished = False
        self.ending: PliError | None = None
        self.expected_told = 0
        self.closing_told = False
        self._backlog = backlog
        self._write = write
        self._task = task
        self._responses: list[SubmitResponse] = []
        self._ack_due = False
        self._writing: Coroutine[Any, None, None] | None = None
        self._written: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def in_flight(self) -> int:
        """Messages read and not yet durable."""
        return self.next_seq - 1 - self.durable_seq

    # What waits

    def take(self, record: NewRecord) -> None:
        """Queues an accepted record or a rejection; its seq must be next_seq."""
        size = sealed_bytes(len(record[3]))
        self.waiting.append(record)
        self.waiting_bytes += size
        self._backlog.waiting_bytes += size
        self.next_seq = record[0] + 1

    def hand_over(self, budget_bytes: int) -> list[NewRecord]:
        """What fits into `budget_bytes` of a block, at least one item; the rest keeps waiting."""
        if self.waiting_bytes <= budget_bytes:
            return self._take_all()
        used = count = 0
        for record in self.waiting:
            size = sealed_bytes(len(record[3]))
            if count and used + size > budget_bytes:
                break
            used += size
            count += 1
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        self.waiting_bytes -= used
        self._backlog.release(used)
        return taken

    def drop_waiting(self) -> None:
        """Forgets what waits: the stream has ended, its client keeps everything not acknowledged."""
        self._take_all()

    def _take_all(self) -> list[NewRecord]:
        taken, self.waiting = self.waiting, []
        self._backlog.release(self.waiting_bytes)
        self.waiting_bytes = 0
        return taken

    # What becomes of it

    def settled(self, last_seq: int, rejections: list[tuple[int, int]]) -> None:
        """The spool has everything up to `last_seq` on disk. The only place where an ack is born."""
        self.durable_seq = last_seq
        for seq, reason in rejections:
            self._responses.append(SubmitResponse(rejected=Rejected(seq=seq, reason=reason)))  # type: ignore[arg-type]  # an enum's number
        self._ack_due = True
        if self.finish_receipt is not None and last_seq == self.next_seq - 1:
            self.finished = True
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self.flush()

    async def room(self, stalled_seconds: float) -> bool:
        """Waits until something became durable; False when nothing did for so long."""
        self._room = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait({self._room}, timeout=stalled_seconds)
        self._room = None
        return bool(done)

    # What the client is told

    def repeat_ack(self) -> None:
        """The client resent what is settled already."""
        if not self._ack_due and self.durable_seq:
            self._ack_due = True
            self.flush()

    def tell_expected(self) -> None:
        """The client left a gap; told once per position."""
        if self.expected_told != self.next_seq:
            self.expected_told = self.next_seq
            self._tell(SubmitResponse(expected=Expected(seq=self.next_seq)))

    def tell_closing(self, until_ms: int) -> None:
        """The window is closing; told once."""
        if not self.closing_told:
            self.closing_told = True
            self._tell(SubmitResponse(notice=Notice(closing=Closing(until_ms=until_ms))))

    def tell_drain(self, reconnect_after_ms: int) -> None:
        """This process stops soon; what was read is still committed and acknowledged."""
        self._tell(SubmitResponse(notice=Notice(drain=Drain(reconnect_after_ms=reconnect_after_ms))))

    def supersede(self, opening: int, error: PliError) -> None:
        """Another opening won: say so, then end the stream."""
        if self.ending is None:
            self._tell(SubmitResponse(notice=Notice(superseded=Superseded(opening=opening))))
            self.end(error)

    def _tell(self, response: SubmitResponse) -> None:
        self._responses.append(response)
        self.flush()

    # How it ends

    def end(self, error: PliError) -> None:
        """Ends the stream with this status once everything due has been written."""
        if self.ending is None:
            self.ending = error
            if self._task is not None:
                self._task.cancel()

    async def last_words(self, seconds: float) -> None:
        """Returns when everything due was written, or the peer has not read it for so long.

        From here on `end` is too late to change the stream's status.
        """
        self._task = None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._writing is not None and loop.time() < deadline:
            self._written = loop.create_future()
            await asyncio.wait({self._written}, timeout=deadline - loop.time())

    def gone(self) -> None:
        """The stream is over: nothing is written any more, what was read is still committed."""
        self._task = None
        self._responses.clear()
        self._ack_due = False
        self._write = _discard
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def flush(self) -> None:
        """Starts writing what is due, unless a write is under way: gRPC allows one at a time."""
        if self._writing is None and (self._ack_due or self._responses):
            self._writing = self._write_due()
            self._go_on_writing()

    def _go_on_writing(self, _written: object = None) -> None:
        """Steps the writing coroutine to its next wait, and again when that is over.

        What a task does, without one: its creation and its extra turn of the loop for every ack are 3 % of
        a worker's CPU time (docs/benchmarks.md). Nothing in the coroutine asks for the current task. (Python 3.12
        can start a task eagerly.)
        """
        if self._writing is None:
            return
        try:
            waits_for = self._writing.send(None)
        except StopIteration:
            return
        if waits_for is None:
            # A bare turn of the loop, as `asyncio.sleep(0)` takes one.
            asyncio.get_running_loop().call_soon(self._go_on_writing)
            return
        waits_for._asyncio_future_blocking = False  # noqa: SLF001  # as a task tells a future that it was seen
        waits_for.add_done_callback(self._go_on_writing)

    async def _write_due(self) -> None:
        try:
            while self._responses or self._ack_due:
                responses, self._responses = self._responses, []
                due, finished, self._ack_due = self._ack_due, self.finished, False
                # Set, not constructed: half the time, and there is one for every answer.
                ack = SubmitResponse()
                ack.ack.durable_seq = self.durable_seq
                for response in responses:
                    await self._write(response)
                if due:
                    await self._write(ack)
                if due and finished:
                    await self._write(SubmitResponse(finished=Finished(receipt=self.finish_receipt)))
        except (Exception, asyncio.CancelledError):  # noqa: BLE001  # gRPC raises several kinds when the peer is gone
            # The peer is gone: gRPC cancels the handler, which cleans up. Nothing acknowledged is lost,
            # the client learns the truth from its next Opened.
            self.gone()
        finally:
            self._writing = None
            if self._written is not None and not self._written.done():
                self._written.set_result(None)

    def __repr__(self) -> str:
        return f"Session({self.pseudonym[:4].hex()}…, opening {self.opening})"


async def _discard(response: SubmitResponse) -> None:
    """Writes to a client that has left."""

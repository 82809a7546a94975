"""The committer: everything waiting from all sessions of a shard, one block, one atomic spool call.

Step 5 and 6 of docs/life-of-an-answer.md. One block is outstanding; the next starts when it returned.
A call whose outcome is unknown is repeated with the same bytes until the spool answers or
`give_up_seconds` have passed; then the epoch ends, the streams concerned end, and clients open again,
which fences a late copy of the block.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from pli.blocks import NO_HASH, block_hash
from pli.errors import (
    CampaignClosed,
    PliError,
    SessionSuperseded,
    SpoolUnavailable,
    SpoolUnsafe,
    Unavailable,
)
from pli.sealing import MAX_EPOCH_RECORDS, NewRecord, SealingEpoch
from server.config import CommitSettings
from server.epochs import EpochSource
from server.session import REJECTED, Session
from server.store.spool import COMMIT_ENTRY, REJECTION, Commit, IngestSpool

log = structlog.get_logger()

RETRY_PAUSE_SECONDS = 0.1
"""Between two attempts of one block: a store that restarts must not be hammered."""


@dataclass(slots=True)
class CommitterCounts:
    """What this committer did since its start, for status and tests."""

    blocks: int = 0
    acknowledged: int = 0
    rejected: int = 0
    retries: int = 0
    superseded: int = 0
    dropped_epochs: int = 0
    commit_us: deque[int] = field(default_factory=lambda: deque(maxlen=101))


@dataclass(slots=True)
class _Part:
    """One session's share of a block."""

    session: Session
    last: int
    sealed: bytes
    records: int
    rejections: list[tuple[int, int]]
    entry: bytes


class Committer:
    """Commits for one process and shard. Run `run` as a task; `submit` never waits."""

    def __init__(
        self,
        spool: IngestSpool,
        epochs: EpochSource,
        settings: CommitSettings,
        monotonic: Callable[[], float],
        trusted: Callable[[], bool],
        confirm_closed: Callable[[], Awaitable[bool]],
    ) -> None:
        self._spool = spool
        self._epochs = epochs
        self._settings = settings
        self._monotonic = monotonic
        self._trusted = trusted
        self._confirm_closed = confirm_closed
        self._queue: deque[Session] = deque()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_sessions = 0
        self._epoch: SealingEpoch | None = None
        self._epoch_started = 0.0
        self._number = 0
        self._hash = NO_HASH
        self._previous = (bytes(16), 0)
        self.counts = CommitterCounts()

    def submit(self, session: Session) -> None:
        """The session has something waiting."""
        if not session.queued:
            session.queued = True
            if not self._queue:
                self._idle.clear()
                self._work.set()
            self._queue.append(session)

    async def idle(self) -> None:
        """Returns when everything submitted so far has its outcome."""
        await self._idle.wait()

    def position(self) -> tuple[bytes, int]:
        """The epoch of the last commit and that commit's number; the store may never know less.

        Number 0: nothing was committed yet. It outlives the epoch, so that a store which was rolled back
        is not accepted again because the epoch was replaced meanwhile.
        """
        if self._epoch is not None and self._number:
            return self._epoch.epoch_id, self._number
        return self._previous

    def end_aged_epoch(self) -> None:
        """Forgets a key past its time although nothing is committed. Called between blocks only."""
        if self._epoch is not None and self._idle.is_set() and self._aged():
            self._end_epoch()

    async def run(self) -> None:
        """Commits until cancelled."""
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                if self._last_sessions < self._settings.linger_below_sessions:
                    await asyncio.sleep(self._settings.linger_max_ms / 1000)
                while self._queue:
                    await self._commit_next()
                self._idle.set()
        finally:
            if self._epoch is not None:
                self._epoch.end()

    async def _commit_next(self) -> None:
        parts = self._seal_waiting()
        self._last_sessions = len(parts)
        deadline = self._monotonic() + self._settings.give_up_seconds
        while parts:
            verdict = await self._write(parts, deadline)
            if verdict is None:
                return
            for index, winner in verdict.items():
                self._refused(parts[index].session, winner)
            parts = [part for index, part in enumerate(parts) if index not in verdict]

    def _seal_waiting(self) -> list[_Part]:
        """Takes from the queue what fits into one block and seals it under the current epoch."""
        epoch = self._current_epoch()
        settings = self._settings
        budget = settings.max_block_bytes
        parts: list[_Part] = []
        again: list[Session] = []
        while self._queue and budget > 0 and len(parts) < settings.max_block_sessions:
            session = self._queue.popleft()
            session.queued = False
            if session.ending is not None:
                session.drop_waiting()
            if not session.waiting:
                continue
            part = _sealed(epoch, session, session.hand_over(budget))
            budget -= len(part.sealed) + len(part.entry)
            parts.append(part)
            if session.waiting:
                again.append(session)
        for session in again:
            self.submit(session)
        return parts

    async def _write(self, parts: list[_Part], deadline: float) -> dict[int, int] | None:
        """Commits these parts. None: all is settled. Else who may not commit, as in `Committed.superseded`."""
        epoch = self._epoch
        if epoch is None:
            raise SpoolUnavailable("a block was sealed without a key epoch")
        number = self._number + 1
        records = sum(part.records for part in parts)
        block = epoch.seal_block(number, self._hash, [part.sealed for part in parts], records)
        digest = block_hash(block)
        commit = Commit(
            epoch_id=epoch.epoch_id,
            number=number,
            digest=digest,
            block=block,
            header=epoch.header if number == 1 else b"",
            session_count=len(parts),
            entries=b"".join([part.entry for part in parts]),
            records=records,
        )
        try:
            verdict = await self._until_known(commit, deadline)
        except PliError as error:
            self._give_up(parts, error)
            return None
        if verdict is None:
            self._closed(parts)
            return None
        if verdict:
            return verdict
        self._number, self._hash = number, digest
        self._settle(parts)
        return None

    async def _until_known(self, commit: Commit, deadline: float) -> dict[int, int] | None:
        """Repeats the same bytes until the spool answers. None when the window is closed.

        Raises:
            Unavailable, IntegrityError: given up, or refused for good.
        """
        while True:
            try:
                if not self._trusted():
                    raise SpoolUnavailable("the guard does not trust the spool now")
                started = self._monotonic()
                outcome = await self._spool.commit(commit)
                self.counts.commit_us.append(int((self._monotonic() - started) * 1e6))
                if outcome.closed and not await self._confirm_closed():
                    # A wiped store has no window either, and must not tell pupils that all is over.
                    raise SpoolUnsafe("the spool lost its window; it is not the store that was adopted")
                return None if outcome.closed else outcome.superseded
            except (SpoolUnavailable, SpoolUnsafe) as error:
                self.counts.retries += 1
                if self._monotonic() > deadline:
                    raise
                log.warning("commit_repeated", reason=error.reason, number=commit.number)
                await asyncio.sleep(RETRY_PAUSE_SECONDS)

    def _settle(self, parts: list[_Part]) -> None:
        counts = self.counts
        counts.blocks += 1
        for part in parts:
            counts.acknowledged += part.records
            counts.rejected += len(part.rejections)
            part.session.settled(part.last, part.rejections)

    def _refused(self, session: Session, winner: int) -> None:
        if winner:
            self.counts.superseded += 1
            session.supersede(winner, SessionSuperseded(SUPERSEDED))
        else:
            # Two streams under one token, or a store that was restored: a new opening sorts it out.
            session.end(Unavailable("this stream is out of step with the spool; open again"))
        session.drop_waiting()

    def _closed(self, parts: list[_Part]) -> None:
        # The Function wrote nothing: WINDOW_CLOSED is said only because no store took the block (I8).
        error = CampaignClosed(CLOSED)
        self._end_all(parts, error)

    def _give_up(self, parts: list[_Part], error: PliError) -> None:
        """The outcome stays unknown, or the epoch is out of step: end it with all who wait."""
        log.error("epoch_dropped", reason=error.reason, number=self._number + 1)
        self.counts.dropped_epochs += 1
        told = Unavailable("the spool did not answer in time; open again, what is stored will be told")
        self._end_all(parts, told)
        self._end_epoch()

    def _end_all(self, parts: list[_Part], error: PliError) -> None:
        for session in (*(part.session for part in parts), *self._queue):
            session.queued = False
            session.end(error)
            session.drop_waiting()
        self._queue.clear()

    def _current_epoch(self) -> SealingEpoch:
        epoch = self._epoch
        if epoch is not None and not self._aged():
            return epoch
        if epoch is not None:
            self._end_epoch()
        self._epoch = self._epochs.next(*self._previous)
        self._epoch_started = self._monotonic()
        return self._epoch

    def _aged(self) -> bool:
        age = self._monotonic() - self._epoch_started
        full = self._epoch is not None and self._epoch.sealed_records > MAX_EPOCH_RECORDS - 2**17
        return full or age >= self._settings.epoch_seconds

    def _end_epoch(self) -> None:
        if self._epoch is not None:
            if self._number:
                self._previous = (self._epoch.epoch_id, self._number)
            self._epoch.end()
        self._epoch = None
        self._number, self._hash = 0, NO_HASH


CLOSED = "the window is closed; what was acknowledged before is stored"
SUPERSEDED = "this code was opened again, here or on another device; open it here again to go on"


def _sealed(epoch: SealingEpoch, session: Session, taken: list[NewRecord]) -> _Part:
    first, last = taken[0][0], taken[-1][0]
    records, rejections = taken, []
    if session.rejected_count:
        rejections = [(record[0], record[1]) for record in taken if record[2] == REJECTED]
        records = [record for record in taken if record[2] != REJECTED]
    receipt = b""
    finish = session.finish_receipt is not None and not session.waiting
    if finish and session.finish_receipt is not None:
        receipt = session.finish_receipt.SerializeToString()
    entry = COMMIT_ENTRY.pack(
        session.pseudonym, session.writer, session.opening, first, last, finish, len(rejections), len(receipt)
    )
    if rejections or receipt:
        entry += b"".join([REJECTION.pack(seq, reason) for seq, reason in rejections]) + receipt
    sealed = epoch.seal_section(session.pseudonym, session.writer, session.opening, records)
    return _Part(session, last, sealed, len(records), rejections, entry)

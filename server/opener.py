"""The opener: many `Open` of one moment in one atomic spool call, one call outstanding per shard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pli.errors import PliError, SpoolUnsafe, Unavailable
from server.store.spool import OPEN_ENTRY, IngestSpool, OpenedSession

MAX_BATCH = 500
"""About 5 ms of the single-threaded store."""

PHASE_CLOSED = 4
VALID_MS = 30_000
"""A copy of the call that arrives later than this opens nothing (FAULTS 28)."""

ATTEMPTS = 3


class Opener:
    """Opens for one process and shard. Run `run` as a task."""

    def __init__(
        self,
        spool: IngestSpool,
        node_id: bytes,
        spool_clock_ms: Callable[[], int],
        trusted: Callable[[], bool],
        confirm_closed: Callable[[], Awaitable[bool]],
    ) -> None:
        self._spool = spool
        self._node_id = node_id
        self._spool_clock_ms = spool_clock_ms
        self._trusted = trusted
        self._confirm_closed = confirm_closed
        self.admit_new = True
        self._number = 0
        self._waiting: list[tuple[bytes, asyncio.Future[OpenedSession]]] = []
        self._work = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Codes in the queue."""
        return len(self._waiting)

    async def open(self, pseudonym: bytes, writer: bytes, token: bytes) -> OpenedSession:
        """The spool's verdict on one code.

        Raises:
            Unavailable: the spool gave none.
        """
        future: asyncio.Future[OpenedSession] = asyncio.get_running_loop().create_future()
        self._waiting.append((OPEN_ENTRY.pack(pseudonym, writer, token), future))
        self._work.set()
        return await future

    async def run(self) -> None:
        """Opens until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                batch = [(entry, future) for entry, future in batch if not future.done()]
                if batch:
                    await self._open_batch(batch)

    async def _open_batch(self, batch: list[tuple[bytes, asyncio.Future[OpenedSession]]]) -> None:
        self._number += 1
        try:
            verdicts = await self._repeated([entry for entry, _ in batch])
        except PliError as error:
            told = Unavailable(f"no session can be opened now ({error.reason}); try again")
            for _, future in batch:
                if not future.done():
                    future.set_exception(told)
            return
        for (_, future), verdict in zip(batch, verdicts, strict=True):
            if not future.done():
                future.set_result(verdict)

    async def _repeated(self, entries: list[bytes]) -> list[OpenedSession]:
        """One numbered call, repeated while its outcome is unknown: the tokens make that harmless."""
        valid_until = self._spool_clock_ms() + VALID_MS
        attempt = 1
        while True:
            try:
                if not self._trusted():
                    # `Opened.durable_seq` counts as an ack: it is not read from a store that may lose it.
                    raise SpoolUnsafe("the guard does not trust the spool now")
                phase, verdicts = await self._spool.open_sessions(
                    self._node_id, self._number, valid_until, self.admit_new, entries
                )
                break
            except Unavailable:
                if attempt == ATTEMPTS:
                    raise
                attempt += 1
        # A wiped store has no window either, and must not tell pupils that all is over.
        if phase == PHASE_CLOSED and not await self._confirm_closed():
            raise SpoolUnsafe("the spool lost its window; it is not the store that was adopted")
        return verdicts

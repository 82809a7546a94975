"""Pupils at their devices: real answers through real client sessions, all of them live at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from pli.client import ClientOptions, PupilSession, SessionObserver
from pli.errors import PliError
from pli.instrument import answer_from_text
from pli.vault.v1.bundle_pb2 import ItemType, PublicInstrument, PublicItem

OPENINGS_AT_ONCE = 64
"""TLS handshakes under way at one moment: more would only wait for each other on one machine."""

MEET_SECONDS = 120.0
"""So long the first pupils wait for the last one to be in; a slow machine opens 50 sessions a second."""


@dataclass(frozen=True, slots=True)
class Mishaps:
    """Shares of pupils to whom something happens, and of answers that are changed. 0 for a plain replay."""

    changed: float = 0.0
    """Of the answers: another one is given first, and replaced."""
    second_device: float = 0.0
    """Of the pupils: the device fails half-way, and they go on at another one."""
    invalid: float = 0.0
    """Of the pupils: their app sends one answer that no item offers, which must be rejected."""


NO_MISHAPS = Mishaps()
SOME_MISHAPS = Mishaps(changed=0.05, second_device=0.05)
ALL_MISHAPS = Mishaps(changed=0.05, second_device=0.10, invalid=0.10)


@dataclass(slots=True)
class Attendance:
    """How the sessions went."""

    opened: int = 0
    live: int = 0
    peak: int = 0
    finished: int = 0
    answers: int = 0
    devices_changed: int = 0
    rejected: int = 0
    failures: list[str] = field(default_factory=list)
    """Reason and message of sessions that ended early, without code or pupil."""


class Classroom:
    """Plays all pupils of a campaign against one platform. `pace_ms` is the mean time to think, 0 for none."""

    def __init__(
        self,
        options: ClientOptions,
        instrument: PublicInstrument,
        observer: SessionObserver,
        mishaps: Mishaps,
        pace_ms: float,
        seed: int,
        on_progress: Callable[[Attendance], None],
    ) -> None:
        self._options = options
        self._items: dict[str, PublicItem] = {item.id: item for item in instrument.items}
        self._observer = observer
        self._mishaps = mishaps
        self._pace_seconds = pace_ms / 1000
        self._seed = seed
        self._on_progress = on_progress
        self._doors = asyncio.Semaphore(OPENINGS_AT_ONCE)
        self._everybody = asyncio.Event()
        self._arrived = 0
        self.attendance = Attendance()

    async def play(self, answers: Mapping[str, Sequence[tuple[str, str]]], codes: Mapping[str, str]) -> Attendance:
        """Every pupil opens, waits until all are in, answers, and finishes."""
        self._expected = len(answers)
        async with asyncio.TaskGroup() as pupils:
            for pupil_id, given in answers.items():
                # A source of their own: the order in which pupils come to speak must not change what they do.
                random = Random(f"{self._seed}/{pupil_id}")
                pupils.create_task(self._attend(codes[pupil_id], given, random))
        return self.attendance

    async def _attend(self, code: str, given: Sequence[tuple[str, str]], random: Random) -> None:
        try:
            await self._sit(code, given, random)
        except PliError as error:
            self.attendance.failures.append(f"{error.reason}: {error.message}")
        finally:
            self._on_progress(self.attendance)

    async def _sit(self, code: str, given: Sequence[tuple[str, str]], random: Random) -> None:
        attendance = self.attendance
        half = len(given) // 2 if random.random() < self._mishaps.second_device else 0
        spoils = random.random() < self._mishaps.invalid
        session = self._device(code)
        try:
            try:
                async with self._doors:
                    await session.open()
                attendance.opened += 1
                attendance.live += 1
                attendance.peak = max(attendance.peak, attendance.live)
            finally:
                await self._meet()
            if half:
                await self._answer(session, given[:half], random)
                await session.flush()
                await session.close()
                attendance.devices_changed += 1
                session = self._device(code)
                await session.open()
            if spoils:
                await session.answer(given[0][0] if given else next(iter(self._items)), choice="no such option")
            await self._answer(session, given[half:], random)
            await session.finish()
            attendance.finished += 1
            attendance.rejected += len(session.settled.rejected)
        finally:
            attendance.live -= 1
            await session.close()

    def _device(self, code: str) -> PupilSession:
        return PupilSession(self._options, code, observer=self._observer)

    async def _meet(self) -> None:
        """Nobody answers before all have arrived: so many sessions are live at once."""
        self._arrived += 1
        self._on_progress(self.attendance)
        if self._arrived == self._expected:
            self._everybody.set()
        async with asyncio.timeout(MEET_SECONDS):
            await self._everybody.wait()

    async def _answer(self, session: PupilSession, given: Sequence[tuple[str, str]], random: Random) -> None:
        for item_id, cell in given:
            item = self._items[item_id]
            if self._pace_seconds:
                # Spread like thinking is: pupils who answer in step would come in waves.
                await asyncio.sleep(random.expovariate(1 / self._pace_seconds))
            if random.random() < self._mishaps.changed:
                await self._give(session, item, _other(item, random))
            await self._give(session, item, cell)

    async def _give(self, session: PupilSession, item: PublicItem, cell: str) -> None:
        match item.type:
            case ItemType.ITEM_TYPE_CHOICE:
                await session.answer(item.id, choice=cell)
            case ItemType.ITEM_TYPE_CHOICES:
                await session.answer(item.id, choices=answer_from_text(item, cell).choices.options)
            case ItemType.ITEM_TYPE_NUMBER:
                await session.answer(item.id, number=cell)
            case _:
                await session.answer(item.id, text=cell)
        self.attendance.answers += 1


def _other(item: PublicItem, random: Random) -> str:
    """Another answer than the one that will stay; as valid."""
    if item.options:
        return random.choice(item.options)
    return "7" if item.type == ItemType.ITEM_TYPE_NUMBER else "…"

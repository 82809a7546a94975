"""What the tests of sessions share: a code, options, and a clock that never waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from pli.client import ClientOptions, ClientPorts, PupilSession, SessionEvent
from pli.codes import Code, new_code
from tests.support.scripted_ingest import CAMPAIGN, ScriptedIngest

CODE: Code = new_code(Random(5).getrandbits)
OPTIONS = ClientOptions(campaign_id=CAMPAIGN, backoff_first_ms=100, backoff_max_ms=800)


class Clock:
    """Time that passes when somebody sleeps, and jitter that is always half of the bound."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds
        await asyncio.sleep(0)

    def ports(self) -> ClientPorts:
        return ClientPorts(random=lambda: 0.5, sleep=self.sleep, monotonic=self.monotonic)


class Told:
    """Events of a session, and a way to wait for one."""

    def __init__(self) -> None:
        self.events: list[SessionEvent] = []
        self._changed = asyncio.Event()

    def __call__(self, event: SessionEvent) -> None:
        self.events.append(event)
        self._changed.set()

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def wait_for(self, kind: type[Any], count: int = 1, seconds: float = 10.0) -> Any:
        async with asyncio.timeout(seconds):
            while len(self.of(kind)) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.of(kind)[count - 1]


def session_of(
    peer: ScriptedIngest,
    *,
    clock: Clock | None = None,
    on_event: Callable[[SessionEvent], None] | None = None,
    observer: Any = None,
    **options: Any,
) -> PupilSession:
    """A session on a channel of its own, plaintext."""
    return PupilSession(
        replace(OPTIONS, **options),
        CODE,
        channel=peer.channel(),
        observer=observer,
        on_event=on_event,
        ports=(clock or Clock()).ports(),
    )

"""One ingest worker: becomes ready, watches its spool, publishes what it does, drains."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from redis.asyncio import Redis
from redis.exceptions import RedisError

from pli.errors import (
    CampaignClosed,
    ConfigError,
    Draining,
    IntegrityError,
    PliError,
    SessionSuperseded,
    SpoolFull,
    SpoolUnsafe,
)
from pli.hpke import PublicKey
from pli.instrument import AnswerRules
from pli.process import cancelled
from pli.rpc.server import Health
from pli.secret import Secret
from pli.vault.v1.bundle_pb2 import Bundle, WindowPhase
from server.backlog import Backlog
from server.campaign_store import CampaignStore
from server.certificates import CertificateWatch
from server.committer import CLOSED, SUPERSEDED, Committer
from server.config import ServerSettings
from server.epochs import EpochSource
from server.identity import NodeIdentity
from server.intake import Intake
from server.opener import Opener
from server.store.guard import StoreState, last_number, look
from server.store.keys import ShardKeys
from server.store.spool import IngestSpool, asked, superseded_message
from server.store.window import Window, read_window

log = structlog.get_logger()

TICK_SECONDS = 1.0
"""Status is published at this pace; the guard looks at its own."""

FAREWELL_SECONDS = 1.0
"""So long a stopping worker tries to take its row out of the status; it is shown as silent otherwise."""

RECONNECT_SPREAD_MS = 3_000
"""Clients of a draining worker come back spread over this time."""

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Ports:
    """What the node is given by its composition root: clocks, randomness, clients of the spool."""

    redis: Redis
    subscriber: Redis
    clock_ms: Callable[[], int]
    monotonic: Callable[[], float]
    random_bytes: Callable[[int], bytes]


class Node:
    """State of one worker. `intake` is None until bundle, pseudonym key and a safe spool are there."""

    def __init__(
        self,
        settings: ServerSettings,
        identity: NodeIdentity,
        vault_key: Ed25519PublicKey,
        ports: Ports,
        health: Health,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._ports = ports
        self._health = health
        self._call = cast(Callable[..., Awaitable[Any]], ports.redis.execute_command)
        self._campaign = CampaignStore(ports.redis, settings.campaign_id, vault_key)
        self._first = ShardKeys(settings.campaign_id, 0)
        self._certificate = CertificateWatch(settings.tls)
        self.node_id = ports.random_bytes(16)
        self._markers: dict[int, bytes] = {}
        self._trusted = False
        self._serving = False
        self._draining = False
        self._clock_offset_ms = 0
        self._next_look = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self.why = "starting"
        self.intake: Intake | None = None

    def taking(self) -> Intake | None:
        """The intake, while new streams may be let in: prepared, the spool trusted now, not stopping."""
        return self.intake if self._trusted and not self._draining else None

    async def run(self) -> None:
        """Watches until cancelled. A task of the worker that failed fails this one too."""
        while True:
            await self._tick()
            for task in self._tasks:
                if task.done():
                    task.result()
            ready = self._trusted and self.intake is not None
            until_look = self._next_look - self._ports.monotonic()
            await asyncio.sleep(min(TICK_SECONDS, max(until_look, 0.0)) if ready else TICK_SECONDS / 5)

    async def drain(self, seconds: float) -> None:
        """Ends all sessions: told when to come back, everything read committed and acknowledged."""
        self._draining = True
        await self._health.set(serving=False)
        intake = self.intake
        if intake is None:
            return
        intake.reading.clear()
        for session in intake.all_sessions():
            share = int.from_bytes(self._ports.random_bytes(4), "big") / 2**32
            session.tell_drain(int(share * RECONNECT_SPREAD_MS))
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(committer.idle() for committer in intake.committers))
        except TimeoutError:
            log.warning("drain_incomplete", seconds=seconds, why="the spool did not answer")
        for session in intake.all_sessions():
            session.end(Draining("this node is stopping; open again, another one takes the session"))

    async def stop(self) -> None:
        """Ends the tasks; epoch keys are wiped."""
        await cancelled(*self._tasks)
        await self._unpublish()

    async def _tick(self) -> None:
        try:
            now = self._ports.monotonic()
            if now >= self._next_look or not self._trusted:
                self._next_look = now + self._settings.guard.interval_ms / 1000
                await self._look()
            if self.intake is None:
                self.intake = await self._prepare()
                if self.intake is not None:
                    await self._look()
            for committer in self.intake.committers if self.intake else ():
                committer.end_aged_epoch()
        except PliError as error:
            self._distrust(error)
        await self._say_health()
        await self._publish()

    def _distrust(self, error: PliError) -> None:
        if self.why != error.message:
            log.error("not_ready", reason=error.reason, why=error.message)
        self._trusted = False
        self.why = error.message

    async def _say_health(self) -> None:
        serving = self.taking() is not None
        if serving != self._serving:
            self._serving = serving
            await self._health.set(serving=serving)
            log.info("serving" if serving else "not_serving", node=self.node_id.hex()[:8])

    async def _look(self) -> None:
        """The guard: settings, identity, last numbers, memory; and what else may have changed."""
        await self._renew_certificate()
        guard = self._settings.guard
        shards = len(self.intake.committers) if self.intake else 1
        fullest = 0.0
        for shard in range(shards):
            keys = ShardKeys(self._settings.campaign_id, shard)
            state = await look(self._ports.redis, keys, allow_weak_durability=guard.allow_weak_durability)
            self._know(shard, state)
            await self._refuse_rollback(shard, keys)
            fullest = max(fullest, state.memory_ratio)
            if self.intake is not None:
                self._announce(self.intake, shard, await read_window(self._ports.redis, keys), state.time_ms)
        if self.intake is not None:
            self._budget(self.intake, fullest)
            await self._renew(self.intake)
            self.why = ""
        self._trusted = True

    async def _renew_certificate(self) -> None:
        """Signs with new files; keeps the old certificate while the new ones are broken or half replaced."""
        stamps = self._certificate.changed()
        if stamps is None:
            return
        try:
            self._identity.take(
                await asyncio.to_thread(NodeIdentity.load, self._settings.tls, self._identity.receiving_key)
            )
        except ConfigError as error:
            log.warning("certificate_not_taken", reason=error.reason, why=error.message)
        else:
            self._certificate.take(stamps)
            log.info("certificate_renewed", node=self.node_id.hex()[:8])

    def _announce(self, intake: Intake, shard: int, window: Window, now_ms: int) -> None:
        """Tells the shard's streams that the window is closing, and ends those that only wait when it is closed."""
        if shard == 0:
            intake.closes_at_ms = window.closes_ms
        phase = window.phase_at(now_ms)
        if phase not in (WindowPhase.WINDOW_PHASE_CLOSING, WindowPhase.WINDOW_PHASE_CLOSED):
            return
        for session in intake.all_sessions():
            if intake.shard(session.pseudonym) != shard:
                continue
            if phase == WindowPhase.WINDOW_PHASE_CLOSING:
                session.tell_closing(window.last_moment_ms)
            elif not session.in_flight and window.version:
                session.end(CampaignClosed(CLOSED))

    async def _renew(self, intake: Intake) -> None:
        """Takes over a newer bundle: other rules for the answers, never another place to seal them for.

        Raises:
            IntegrityError: an older version than the one in use, or other keys or shards under a newer one.
        """
        if await self._campaign.loaded_version() == intake.bundle.version:
            return
        bundle = await self._campaign.bundle()
        if bundle is None or bundle.version == intake.bundle.version:
            return
        if bundle.version < intake.bundle.version:
            raise IntegrityError("the bundle in the spool is older than the one in use; the relay must load it again")
        same = (bundle.shards, bundle.answer_public_key) == (intake.bundle.shards, intake.bundle.answer_public_key)
        if not same:
            raise IntegrityError("the new bundle has another answer key or number of shards; restart the node for it")
        intake.rules = AnswerRules(bundle.instrument)
        intake.bundle = bundle
        log.info("bundle_renewed", campaign=bundle.campaign_id, version=bundle.version)

    def _know(self, shard: int, state: StoreState) -> None:
        known = self._markers.get(shard)
        if not state.marker:
            what = "is empty or another one" if known else "is not adopted yet; the relay does that"
            raise SpoolUnsafe(f"the store of shard {shard} has no identity marker: it {what}")
        if known is not None and known != state.marker:
            raise SpoolUnsafe(f"the store of shard {shard} was exchanged while this node ran; restore the right one")
        self._markers[shard] = state.marker
        self._clock_offset_ms = state.time_ms - self._ports.clock_ms()

    async def _refuse_rollback(self, shard: int, keys: ShardKeys) -> None:
        if self.intake is None:
            return
        epoch, number = self.intake.committers[shard].position()
        if number and await last_number(self._ports.redis, keys, epoch) < number:
            raise SpoolUnsafe(f"the store of shard {shard} knows less than it acknowledged: it was rolled back")

    def _budget(self, intake: Intake, ratio: float) -> None:
        guard = self._settings.guard
        for opener in intake.openers:
            opener.admit_new = ratio < guard.memory_no_new_codes_ratio
        if self._draining or ratio >= guard.memory_stop_ratio:
            intake.reading.clear()
        else:
            intake.reading.set()
        if ratio >= guard.memory_alarm_ratio:
            log.warning("spool_filling", reason="SPOOL_FILLING", status=f"{ratio:.0%}")

    async def _confirm_closed(self, shard: int) -> bool:
        """Whether the store that said CLOSED is the one this node knows, and really holds a window."""
        keys = ShardKeys(self._settings.campaign_id, shard)
        try:
            marker = await asked(self._call("GET", keys.marker))
            window = await read_window(self._ports.redis, keys)
        except PliError:
            return False
        return bool(marker) and bytes(marker) == self._markers.get(shard) and window.version > 0

    async def _prepare(self) -> Intake | None:
        """Everything a session needs, or None and the reason in `why`."""
        bundle = await self._campaign.bundle()
        if bundle is None:
            self.why = "waiting for the campaign's bundle, which the relay loads once it is published"
            return None
        for shard in range(bundle.shards):
            window = await read_window(self._ports.redis, ShardKeys(bundle.campaign_id, shard))
            if not window.version:
                self.why = "waiting for the vault's first order about the window, which the relay brings"
                return None
        key = await self._campaign.pseudonym_key(self._identity, self._ports.clock_ms())
        if key is None:
            self.why = "waiting for the vault to enrol this node"
            return None
        intake = self._build(bundle, key)
        log.info("prepared", campaign=bundle.campaign_id, version=bundle.version)
        return intake

    def _build(self, bundle: Bundle, key: Secret) -> Intake:
        settings, ports = self._settings, self._ports
        answer_key = PublicKey(bundle.answer_public_key)
        if answer_key.key_id != bundle.answer_key_id:
            raise IntegrityError("the bundle's answer key does not have the id that the bundle names")
        committers, openers = [], []
        for shard in range(bundle.shards):
            spool = IngestSpool(ports.redis, ShardKeys(settings.campaign_id, shard))
            epochs = EpochSource(
                settings.campaign_id, shard, self.node_id, answer_key, self._identity,
                ports.clock_ms, ports.random_bytes,
            )  # fmt: skip

            async def confirm(shard: int = shard) -> bool:
                return await self._confirm_closed(shard)

            committers.append(
                Committer(spool, epochs, settings.commit, ports.monotonic, lambda: self._trusted, confirm)
            )
            openers.append(Opener(spool, self.node_id, self._spool_clock_ms, lambda: self._trusted, confirm))
        backlog = Backlog(settings.sessions.max_backlog_bytes)
        intake = Intake(bundle, AnswerRules(bundle.instrument), key, committers, openers, backlog)
        intake.reading.set()
        for committer, opener in zip(committers, openers, strict=True):
            self._tasks.append(asyncio.create_task(committer.run()))
            self._tasks.append(asyncio.create_task(opener.run()))
        self._tasks.append(asyncio.create_task(self._hear_superseded(intake)))
        return intake

    def _spool_clock_ms(self) -> int:
        return self._ports.clock_ms() + self._clock_offset_ms

    async def _hear_superseded(self, intake: Intake) -> None:
        """Another worker opened a code that lives here: its stream ends at once."""
        channels = [ShardKeys(self._settings.campaign_id, shard).superseded for shard in range(len(intake.committers))]
        while True:
            try:
                async with self._ports.subscriber.pubsub() as listener:
                    await listener.subscribe(*channels)
                    async for message in listener.listen():
                        if message["type"] == "message":
                            self._supersede(intake, bytes(message["data"]))
            except (OSError, PliError, RedisError) as error:
                # Not needed for correctness: a superseded session's next commit is refused anyway.
                log.warning("superseded_channel_lost", error=type(error).__name__)
                await asyncio.sleep(TICK_SECONDS)

    def _supersede(self, intake: Intake, raw: bytes) -> None:
        pseudonym, opening, writer = superseded_message(raw)
        for session in intake.supersede(pseudonym, opening, writer):
            session.supersede(opening, SessionSuperseded(SUPERSEDED))

    async def _publish(self) -> None:
        row = json.dumps(self._row())
        try:
            await asked(self._call("HSET", self._first.status, f"node:{self.node_id.hex()[:8]}", row))
        except SpoolFull as error:
            # A full store keeps what it has acknowledged: it is trusted, only the screens stand still.
            log.warning("status_not_published", reason=error.reason)
        except PliError as error:
            self._distrust(error)

    def _row(self) -> dict[str, object]:
        intake = self.intake
        row: dict[str, object] = {
            "pid": os.getpid(),
            "ready": self._trusted and intake is not None,
            "why": self.why,
            "rss_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES,
            "published_at_ms": self._spool_clock_ms(),
        }
        if intake is not None:
            times = [us for committer in intake.committers for us in committer.counts.commit_us]
            row |= {
                "sessions": intake.live,
                "opened": intake.counts.opened,
                "refused": intake.counts.refused,
                "superseded": intake.counts.displaced,
                "went_back": intake.counts.went_back,
                "acknowledged": sum(committer.counts.acknowledged for committer in intake.committers),
                "rejected": sum(committer.counts.rejected for committer in intake.committers),
                "blocks": sum(committer.counts.blocks for committer in intake.committers),
                "commit_p50_us": int(median(times)) if times else 0,
                "weak_durability": self._settings.guard.allow_weak_durability,
            }
        return row

    async def _unpublish(self) -> None:
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await asked(self._call("HDEL", self._first.status, f"node:{self.node_id.hex()[:8]}"))
        except (PliError, TimeoutError) as error:
            log.warning("status_left_behind", error=type(error).__name__)

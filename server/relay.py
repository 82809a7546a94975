"""The relay: carries blocks to the vault, and the campaign's bundle, window and keys back.

Step 7 of docs/life-of-an-answer.md. A block leaves the spool only after a receipt that is signed by the
pinned vault key and names it. Everything is repeatable; several relays may run.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from pli.errors import PliError, SpoolUnsafe
from server.carrying import READ_WAIT_MS, Carrier
from server.config import RelaySettings
from server.orders import Orders
from server.store.relay_spool import RelaySpool
from server.vault_client import VaultClient

log = structlog.get_logger()

FIRST_BACKOFF_SECONDS = 0.1
LEAST_BACKOFF_SECONDS = 0.02
"""Full jitter may draw 0; a vault that fails at once must not be asked in a tight loop."""

EXCHANGE = "exchange"
STATUS = "status"

STATUS_SECONDS = 0.5
"""A picture of the platform is at most that old."""

UNANSWERED_SECONDS = 3.0
"""A vault that works answers an exchange in milliseconds."""


class Relay:
    """One relay process. `run` ends when cancelled."""

    def __init__(
        self,
        settings: RelaySettings,
        shards: list[RelaySpool],
        vault: VaultClient,
        monotonic: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._settings = settings
        self._shards = shards
        self._orders = Orders(settings, shards, vault, monotonic, random_bytes)
        self._carriers = [Carrier(settings, spool, vault, monotonic) for spool in shards]
        self._monotonic = monotonic
        self._random_bytes = random_bytes
        self._asked_at: float | None = None
        self._why: dict[str, str] = {EXCHANGE: "STARTING"}
        self._said: dict[str, str] = {}

    async def run(self) -> None:
        """Carries until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._for_ever(EXCHANGE, self._exchange, self._settings.sync_ms / 1000))
            # Apart, because the status matters most while an exchange fails or hangs.
            group.create_task(self._for_ever(STATUS, self._publish, STATUS_SECONDS))
            for shard in range(len(self._shards)):
                group.create_task(self._for_ever(f"shard {shard}", lambda shard=shard: self._carry(shard), 0.0))  # type: ignore[misc]  # a default binds the loop's value

    async def _for_ever(self, name: str, step: Callable[[], Coroutine[Any, Any, None]], pause: float) -> None:
        """Repeats a step; after a failure with full-jitter back-off."""
        bound = FIRST_BACKOFF_SECONDS
        while True:
            try:
                await step()
                self._why[name] = self._said[name] = ""
                bound = FIRST_BACKOFF_SECONDS
                await asyncio.sleep(pause)
            except PliError as error:
                if self._said.get(name) != error.message:
                    self._said[name] = error.message
                    log.warning("relay_waits", action=name, reason=error.reason, why=error.message)
                self._why[name] = error.reason
                share = int.from_bytes(self._random_bytes(4), "big") / 2**32
                await asyncio.sleep(LEAST_BACKOFF_SECONDS + share * bound)
                bound = min(2 * bound, self._settings.backoff_max_ms / 1000)

    async def _carry(self, shard: int) -> None:
        if not self._orders.adopted[shard]:
            await asyncio.sleep(READ_WAIT_MS / 1000)
            return
        try:
            await self._carriers[shard].carry()
        except SpoolUnsafe:
            # Perhaps its Functions or its group are gone: the next exchange adopts it anew, if it is the right one.
            self._orders.adopted[shard] = False
            raise

    async def _exchange(self) -> None:
        self._asked_at = self._monotonic()
        try:
            await self._orders.exchange()
        finally:
            # Only a call under way may count as unanswered: between two attempts the last reason stands.
            self._asked_at = None

    def _reason(self) -> str:
        """Why the vault is not reachable, "" when it is. A call that hangs counts before it times out."""
        if self._asked_at is not None and self._monotonic() - self._asked_at > UNANSWERED_SECONDS:
            return "VAULT_UNAVAILABLE"
        return next((reason for name, reason in self._why.items() if reason and name != STATUS), "")

    async def _publish(self) -> None:
        """This relay's row of the status, and the age that nodes may not read themselves."""
        first = self._shards[0]
        why = self._reason()
        row = {
            "deposited": sum(carrier.deposited for carrier in self._carriers),
            "quarantined": sum(carrier.quarantined for carrier in self._carriers),
            "vault_reachable": not why,
            "why": why,
            "published_at_ms": await first.time_ms(),
            "last_receipt": max(carrier.last_receipt for carrier in self._carriers),
        }
        await first.publish(f"relay:{self._settings.name}", json.dumps(row))
        for each in self._shards:
            oldest = await each.oldest_ms()
            await first.publish(f"oldest:{each.keys.shard}", json.dumps({} if oldest is None else {"ms": oldest}))

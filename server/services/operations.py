"""`OperationsService`: one picture of the platform, from what every process publishes to the spool."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

from redis.asyncio import Redis

from pli.errors import IntegrityError
from pli.ops.v1.ops_pb2 import (
    Alarm,
    GetStatusRequest,
    GetStatusResponse,
    NodeStatus,
    RelayStatus,
    SpoolStatus,
    WindowState,
    WindowStatus,
)
from pli.ops.v1.ops_pb2_grpc import OperationsServiceServicer
from pli.rpc.server import Context
from server.store.keys import ShardKeys
from server.store.spool import asked
from server.store.window import read_window

SILENT_AFTER_MS = 15_000
"""A process that published nothing for so long is shown as silent."""

FORGOTTEN_AFTER_MS = 600_000
"""After so long it is no longer shown."""

FILLING_RATIO = 0.60


class OperationsService(OperationsServiceServicer):
    """Answers for the whole platform, whichever worker is asked."""

    def __init__(self, redis: Redis, campaign_id: str, shards: Callable[[], int]) -> None:
        self._redis = redis
        self._call = cast(Callable[..., Awaitable[Any]], redis.execute_command)
        self._campaign_id = campaign_id
        self._shards = shards

    async def GetStatus(self, request: GetStatusRequest, context: Context) -> GetStatusResponse:
        """Counts, rates and states; no answer, code, name or address."""
        first = ShardKeys(self._campaign_id, 0)
        seconds, micros = await asked(self._call("TIME"))
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        response = GetStatusResponse(campaign_id=self._campaign_id, time_ms=now_ms)
        response.window.CopyFrom(await self._window(first, now_ms))
        for name, row in sorted((await self._rows(first)).items()):
            if now_ms - int(row.get("published_at_ms", 0)) < FORGOTTEN_AFTER_MS:
                self._add(response, name, row, now_ms)
        for shard in range(self._shards()):
            response.shards.append(await self._shard(ShardKeys(self._campaign_id, shard), now_ms))
        self._alarms(response)
        return response

    async def _window(self, keys: ShardKeys, now_ms: int) -> WindowStatus:
        window = await read_window(self._redis, keys)
        return WindowStatus(
            state=window.phase_at(now_ms) if window.version else WindowState.WINDOW_STATE_UNSPECIFIED,  # type: ignore[arg-type]  # an enum's number
            version=window.version,
            opens_at_ms=window.opens_ms,
            closes_at_ms=window.closes_ms,
            grace_ms=window.grace_ms,
        )

    async def _rows(self, keys: ShardKeys) -> dict[str, dict[str, Any]]:
        reply = await asked(self._call("HGETALL", keys.status))
        pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        try:
            return {bytes(name).decode(): json.loads(row) for name, row in pairs}
        except ValueError as error:
            raise IntegrityError("a status row in the spool is not readable; delete the status key") from error

    def _add(self, response: GetStatusResponse, name: str, row: dict[str, Any], now_ms: int) -> None:
        kind, _, identity = name.partition(":")
        silent = now_ms - int(row.get("published_at_ms", 0)) > SILENT_AFTER_MS
        if kind == "node":
            known = NodeStatus.DESCRIPTOR.fields_by_name.keys()
            node = NodeStatus(node_id=identity, **{key: value for key, value in row.items() if key in known})
            if silent:
                node.ready, node.why = False, "silent: the process has stopped or cannot reach the spool"
            response.nodes.append(node)
            if row.get("weak_durability"):
                response.alarms.append(
                    Alarm(
                        reason="WEAK_DURABILITY",
                        message=f"node {identity} accepts a spool that may lose what it acknowledged; "
                        "remove allow_weak_durability from its configuration",
                    )
                )
            if row.get("went_back"):
                response.alarms.append(
                    Alarm(
                        reason="SPOOL_WENT_BACK",
                        message=f"clients of node {identity} knew more than the spool: it was restored from "
                        "an older copy; they send again what they kept",
                    )
                )
        elif kind == "relay":
            known = RelayStatus.DESCRIPTOR.fields_by_name.keys()
            relay = RelayStatus(name=identity, **{key: value for key, value in row.items() if key in known})
            if silent:
                relay.vault_reachable, relay.why = False, "SILENT"
            response.relays.append(relay)

    async def _shard(self, keys: ShardKeys, now_ms: int) -> SpoolStatus:
        info = await asked(self._call("INFO", "memory"))
        oldest = await self._oldest(keys)
        return SpoolStatus(
            shard=keys.shard,
            blocks_waiting=int(await asked(self._call("XLEN", keys.spool))),
            oldest_age_ms=max(0, now_ms - int(oldest["ms"])) if oldest else 0,
            registered=int(await asked(self._call("HLEN", keys.registry))),
            cursors=int(await asked(self._call("HLEN", keys.cursors))),
            memory_bytes=int(info["used_memory"]),
            memory_limit_bytes=int(info["maxmemory"]),
        )

    async def _oldest(self, keys: ShardKeys) -> dict[str, Any]:
        # An ingest process may not read the Redis stream: the relay publishes the age it sees.
        first = ShardKeys(self._campaign_id, 0)
        row = await asked(self._call("HGET", first.status, f"oldest:{keys.shard}"))
        return json.loads(row) if row else {}

    def _alarms(self, response: GetStatusResponse) -> None:
        for node in response.nodes:
            if not node.ready:
                response.alarms.append(Alarm(reason="NODE_NOT_READY", message=f"node {node.node_id}: {node.why}"))
        for relay in response.relays:
            if not relay.vault_reachable:
                response.alarms.append(
                    Alarm(
                        reason="VAULT_UNREACHABLE",
                        message=f"relay {relay.name} cannot deposit ({relay.why}); answers wait safely in the spool",
                    )
                )
        if not response.relays:
            response.alarms.append(Alarm(reason="NO_RELAY", message="no relay runs; answers wait in the spool"))
        for shard in response.shards:
            limit = shard.memory_limit_bytes
            if limit and shard.memory_bytes >= FILLING_RATIO * limit:
                response.alarms.append(
                    Alarm(
                        reason="SPOOL_FILLING", message=f"shard {shard.shard} is {shard.memory_bytes / limit:.0%} full"
                    )
                )

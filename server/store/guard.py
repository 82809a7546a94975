"""The guard: whether this store may be trusted with an acknowledgement now.

Asked at start and every few seconds. A store that may lose what it acknowledged, that is another than
the one known, or that has gone back in time, is not accepted: not ready, no ack.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from pli.errors import SpoolUnsafe
from server.store.keys import ShardKeys
from server.store.spool import asked

REQUIRED_SETTINGS: Mapping[str, str] = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
"""FACTS: `everysec` loses up to a second; the rewrite option breaks `always` silently; eviction loses."""

MINIMUM_REDIS = (7, 0)
MINIMUM_VALKEY = (8, 0)


@dataclass(frozen=True, slots=True)
class StoreState:
    """What one look found."""

    time_ms: int
    memory_bytes: int
    memory_limit_bytes: int
    marker: bytes

    @property
    def memory_ratio(self) -> float:
        """Used share of the limit; 0 when none is set."""
        return self.memory_bytes / self.memory_limit_bytes if self.memory_limit_bytes else 0.0


async def look(redis: Redis, keys: ShardKeys, *, allow_weak_durability: bool) -> StoreState:
    """One look at settings, identity and memory.

    Raises:
        SpoolUnsafe: a setting is not as it must be; the message says which and how to mend it.
        SpoolUnavailable: no answer.
    """
    call = cast(Callable[..., Awaitable[Any]], redis.execute_command)
    if not allow_weak_durability:
        found = _settings(await asked(call("CONFIG GET", *REQUIRED_SETTINGS)))
        for name, wanted in REQUIRED_SETTINGS.items():
            if found.get(name) != wanted:
                raise SpoolUnsafe(
                    f"the spool has {name} = {found.get(name, 'unknown')}, it must be {wanted}: "
                    f"CONFIG SET {name} {wanted}, or correct its configuration file and restart it"
                )
    info = cast(dict[str, Any], await asked(call("INFO", "server", "memory")))
    _check_version(info)
    seconds, micros = await asked(call("TIME"))
    marker = await asked(call("GET", keys.marker))
    return StoreState(
        time_ms=int(seconds) * 1000 + int(micros) // 1000,
        memory_bytes=int(info["used_memory"]),
        memory_limit_bytes=int(info["maxmemory"]),
        marker=bytes(marker or b""),
    )


async def last_number(redis: Redis, keys: ShardKeys, epoch_id: bytes) -> int:
    """The last number the store knows of an epoch; 0 when it knows none."""
    call = cast(Callable[..., Awaitable[Any]], redis.execute_command)
    row = await asked(call("HGET", keys.epochs, epoch_id))
    return int.from_bytes(row[:8], "big") if row else 0


def _settings(reply: Any) -> dict[str, str]:
    pairs = list(reply.items()) if isinstance(reply, dict) else list(zip(reply[::2], reply[1::2], strict=True))
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_version(info: Mapping[str, Any]) -> None:
    # Valkey reports redis_version 7.2.4 for compatibility: its own field comes first.
    name, minimum, found = "Redis", MINIMUM_REDIS, str(info.get("redis_version", "0"))
    if "valkey_version" in info:
        name, minimum, found = "Valkey", MINIMUM_VALKEY, str(info["valkey_version"])
    version = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    if version < minimum:
        wanted = ".".join(str(part) for part in minimum)
        raise SpoolUnsafe(f"the spool is {name} {found}; at least {wanted} is needed: upgrade it")

"""What each Redis user cannot do, on every server that a spool may run on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from pli.errors import SpoolUnsafe
from server.config import SpoolSettings
from server.store.guard import look
from server.store.spool import asked, connect
from tests.contract.shard import Shard, part

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def refused(redis: Any, *command: Any) -> bool:
    """Whether the server refuses a command for lack of rights, by itself or inside a Function."""
    try:
        await redis.execute_command(*command)
    except NoPermissionError:
        return True
    except ResponseError as error:
        return "ACL" in str(error) or "permission" in str(error).lower()
    return False


@pytest.mark.parametrize("user", ["", "ingest"])
async def test_nobody_comes_in_without_a_password(shard: Shard, user: str, tmp_path: Path) -> None:
    password_file = tmp_path / "password"
    password_file.touch(0o600)
    password_file.write_text("a guess")
    settings = SpoolSettings(url=shard.store.url, username=user, password_file=password_file if user else None)
    nobody = connect(settings, connections=1)
    try:
        with pytest.raises(SpoolUnsafe, match="refuses this user"):
            await asked(nobody.execute_command("PING"))  # type: ignore[no-untyped-call]
    finally:
        await nobody.aclose()


async def test_an_ingest_node_cannot_read_blocks_back(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 1))
    spool = shard.keys.spool
    for command in (
        ("XRANGE", spool, "-", "+"),
        ("XREAD", "STREAMS", spool, "0"),
        ("XREADGROUP", "GROUP", "relays", "x", "STREAMS", spool, ">"),
        ("XINFO", "STREAM", spool, "FULL"),
        ("DUMP", spool),
        ("FCALL", "pli_oldest", 1, spool),
        ("COPY", spool, shard.keys.status),
        ("EVAL", "return redis.call('XRANGE', KEYS[1], '-', '+')", 1, spool),
    ):
        assert await refused(shard.ingest_redis, *command), command


async def test_an_ingest_node_cannot_touch_window_registry_or_bundle(shard: Shard) -> None:
    keys = shard.keys
    before = await shard.everything()
    for command in (
        ("FCALL", "pli_close_window", 1, keys.window, 99),
        ("FCALL", "pli_set_window", 1, keys.window, 99, 2, 0, 0, 0),
        ("HSET", keys.window, "phase", 2),
        ("DEL", keys.window),
        ("HSET", keys.registry, os.urandom(16), b"\1\0\0\1"),
        ("SET", keys.bundle, "x"),
        ("SET", keys.marker, "x"),
        ("HSET", keys.enrolled, "x", "y"),
        ("HSET", "elsewhere", "x", "y"),
    ):
        assert await refused(shard.ingest_redis, *command), command
    assert await shard.everything() == before


async def test_an_ingest_node_cannot_remove_anything(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    await shard.commit(epoch, part(writer, 1, 1))
    (entry,) = await shard.relay.read_new(1, 10)
    for command in (
        ("FCALL", "pli_remove", 1, shard.keys.spool, "relays", entry.entry_id, entry.digest),
        ("XDEL", shard.keys.spool, entry.entry_id),
        ("XTRIM", shard.keys.spool, "MAXLEN", 0),
        ("XACK", shard.keys.spool, "relays", entry.entry_id),
        ("FLUSHALL",),
        ("UNLINK", shard.keys.spool),
    ):
        assert await refused(shard.ingest_redis, *command), command


async def test_a_function_of_another_name_cannot_be_called_through_a_key_that_is_allowed(shard: Shard) -> None:
    before = await shard.everything()
    for name in ("pli_close_window", "pli_set_window", "pli_remove", "pli_oldest"):
        with pytest.raises(ResponseError, match="MALFORMED"):
            await shard.ingest_redis.execute_command("FCALL", name, 1, shard.keys.cursors, 9, 2, 0, 0, 0)
    for name in ("pli_commit", "pli_open_session"):
        with pytest.raises(ResponseError, match="MALFORMED"):
            await shard.relay_redis.execute_command("FCALL", name, 1, shard.keys.spool, *[b"x"] * 7)
    assert await shard.everything() == before


async def test_a_relay_cannot_write_cursors_or_epochs(shard: Shard) -> None:
    writer, epoch = await shard.writer(), shard.epoch()
    block = shard.block(epoch, part(writer, 1, 1))
    keys = shard.keys
    before = await shard.everything()
    for command in (
        ("HSET", keys.cursors, writer.pseudonym, "x"),
        ("HDEL", keys.cursors, writer.pseudonym),
        ("HSET", keys.epochs, os.urandom(16), "x"),
        ("FCALL", "pli_commit", 1, keys.cursors, block.epoch_id, 1, block.digest, block.block, "h", 1, block.entries),
        ("FCALL", "pli_open_session", 1, keys.cursors, os.urandom(16), 1, 2**50, 1, os.urandom(48)),
        ("FLUSHALL",),
        ("HSET", "elsewhere", "x", "y"),
    ):
        assert await refused(shard.relay_redis, *command), command
    assert await shard.everything() == before


@pytest.mark.parametrize("user", ["ingest", "relay"])
async def test_nobody_changes_the_servers_settings(shard: Shard, user: str) -> None:
    redis = shard.ingest_redis if user == "ingest" else shard.relay_redis
    for command in (
        ("CONFIG SET", "appendfsync", "no"),
        ("CONFIG REWRITE",),
        ("ACL SETUSER", "ingest", "+@all"),
        ("ACL LIST",),
        ("SHUTDOWN",),
        ("SAVE",),
        ("REPLICAOF", "127.0.0.1", "6379"),
        ("MONITOR",),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("CLIENT LIST",),
        ("FUNCTION FLUSH",),
        ("SCRIPT LOAD", "return 1"),
    ):
        assert await refused(redis, *command), command


async def test_what_the_guard_asks_is_allowed(shard: Shard) -> None:
    state = await look(shard.ingest_redis, shard.keys, allow_weak_durability=False)
    assert len(state.marker) == 16

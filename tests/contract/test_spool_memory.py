"""What still works when the store is at its memory limit, on every server that a spool may run on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from pli.errors import SpoolFull
from tests.contract.shard import Shard, part

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def full(shard: Shard) -> AsyncIterator[Shard]:
    """A shard with one block, in a store that takes no more. `room` is not given back before the end."""
    try:
        yield shard
    finally:
        await shard.store.administer("CONFIG SET", "maxmemory", "256mb")


async def fill(shard: Shard) -> None:
    """No write that adds something is taken from now on."""
    await shard.store.administer("CONFIG SET", "maxmemory", "1")


async def test_a_block_is_refused_and_nothing_of_it_is_written(full: Shard) -> None:
    writer, epoch = await full.writer(), full.epoch()
    block = full.block(epoch, part(writer, 1, 1))
    before = await full.everything()
    await fill(full)
    with pytest.raises(SpoolFull):
        await full.ingest.commit(block)
    await full.store.administer("CONFIG SET", "maxmemory", "256mb")
    assert await full.everything() == before
    assert not (await full.ingest.commit(block)).superseded, "the same bytes, once there is room"


async def test_rejections_are_still_settled(full: Shard) -> None:
    writer, epoch = await full.writer(), full.epoch()
    await full.commit(epoch, part(writer, 1, 1))
    await fill(full)
    block = replace(full.block(epoch, part(writer, 2, 2, rejections=[(2, 4)])), records=0)
    assert not (await full.ingest.commit(block)).closed
    await full.store.administer("CONFIG SET", "maxmemory", "256mb")
    assert (await full.cursor(writer)).rejected == [(2, 4)]


async def test_blocks_are_still_read_and_removed(full: Shard) -> None:
    writer, epoch = await full.writer(), full.epoch()
    await full.commit(epoch, part(writer, 1, 1))
    await fill(full)
    assert await full.relay.remove(await full.relay.read_new(10, 10)) == 1


async def test_the_window_is_still_set_and_closed(full: Shard) -> None:
    writer, epoch = await full.writer(), full.epoch()
    await full.commit(epoch, part(writer, 1, 1))
    await fill(full)
    await full.window(3)
    await full.close()
    (_, closing) = await full.relay.read_new(10, 10)
    assert closing.closing


async def test_no_code_is_opened(full: Shard) -> None:
    pseudonym = await full.code()
    await fill(full)
    with pytest.raises(SpoolFull):
        await full.opened(pseudonym, os.urandom(16))

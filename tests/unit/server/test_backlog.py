"""The size of what waits: exact to the byte, and bounded over all sessions of a worker."""

from __future__ import annotations

import asyncio
import os

import pytest

from pli.blocks import SECTION
from pli.pseudonym import PSEUDONYM_BYTES
from pli.records import RecordKind
from pli.sealing import SealingEpoch
from pli.secret import Secret
from server.backlog import Backlog, sealed_bytes


@pytest.mark.parametrize("length", [0, 1, 58, 59, 60, 122, 123, 124, 250, 251, 252, 4_091, 4_092, 8_187, 8_188, 9_000])
def test_the_size_is_what_sealing_really_makes(length: int) -> None:
    epoch = SealingEpoch("tests", 0, Secret(os.urandom(32)), b"header", bytes(16))
    section = epoch.seal_section(bytes(PSEUDONYM_BYTES), bytes(16), 1, [(1, 0, int(RecordKind.ANSWER), bytes(length))])
    assert len(section) - SECTION.size == sealed_bytes(length)


async def test_a_full_backlog_holds_readers_until_there_is_room() -> None:
    backlog = Backlog(1_000)
    backlog.waiting_bytes += 1_500
    assert backlog.full
    readers = [asyncio.create_task(backlog.room(10)) for _ in range(3)]
    await asyncio.sleep(0)
    backlog.release(400)
    await asyncio.sleep(0)
    assert not any(reader.done() for reader in readers), "still above the limit"
    backlog.release(100)
    assert await asyncio.gather(*readers) == [True, True, True]
    assert not backlog.full


async def test_a_reader_gives_up_when_there_is_no_room_for_long() -> None:
    backlog = Backlog(1_000)
    backlog.waiting_bytes += 1_500
    assert not await backlog.room(0.01)

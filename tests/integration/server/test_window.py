"""What clients are told as the window opens, closes and is closed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from pli.closings import read_closing
from pli.codes import Code
from pli.errors import CampaignClosed, CampaignNotOpen, CodeRefused, PliError, Unavailable
from tests.support.platform import Platform
from tests.support.raw_session import RawSession
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

UNKNOWN = "0000-0000-0000"


async def refusal(platform: Platform, code: Code | str) -> type[PliError]:
    """The kind of error that opening a code ends with."""
    async with platform.session(code) as session:
        with pytest.raises(PliError) as caught:
            await session.open()
    return type(caught.value)


async def test_a_campaign_that_is_not_open_says_so_whatever_the_code(tmp_path: Path) -> None:
    async with Platform(tmp_path) as platform:
        assert await refusal(platform, platform.codes[0]) is CampaignNotOpen
        assert await refusal(platform, UNKNOWN) is CampaignNotOpen
        await platform.open_window()
        async with platform.session(platform.codes[0]) as session:
            assert (await session.open()).opening == 1
        assert await refusal(platform, UNKNOWN) is CodeRefused


async def test_closing_lets_the_started_ones_finish_and_closed_leaves_nobody_in_doubt(tmp_path: Path) -> None:
    async with Platform(tmp_path, pupils=4, node_settings={"guard": {"interval_ms": 300}}) as platform:
        await platform.open_window()
        started, finished, idle, unused = platform.codes
        writer, finished_writer = os.urandom(16), os.urandom(16)
        async with platform.session(finished, writer=finished_writer) as session:
            await session.open()
            await session.choose("A")
            await session.finish()
            receipt = await session.finished()
        async with platform.session(started, writer=writer) as session, platform.session(idle) as waiting:
            await session.open()
            await waiting.open()
            await waiting.choose("D")
            await waiting.acked()
            await session.choose("A")
            await session.acked()
            # A campaign that closes: those who started are told and go on, nobody else comes in.
            now = session.opened.server_time_ms
            await platform.set_window(3, closes_ms=now + 600_000, grace_ms=60_000)
            assert (await session.next("notice")).notice.closing.until_ms == now + 660_000
            await session.choose("B")
            await session.acked()
            assert await refusal(platform, unused) is CampaignClosed
            # And one that is closed: an answer in flight gets a status, an idle stream gets it too.
            await platform.close_window()
            await session.choose("C")
            assert isinstance(await session.end(), CampaignClosed)
            assert session.durable_seq == 2
            assert isinstance(await waiting.end(), CampaignClosed)
        async with platform.session(started, writer=writer) as session:
            opened = await session.open()
            assert (opened.read_only, opened.durable_seq) == (True, 2)
            assert await session.end() is None
        async with platform.session(finished, writer=finished_writer) as session:
            opened = await session.open()
            assert (opened.read_only, opened.receipt) == (True, receipt)
        for code in (unused, started, UNKNOWN):
            assert await refusal(platform, code) is CampaignClosed
        assert len(await platform.records_of(started)) == 2


async def test_by_schedule_the_window_closes_without_anybodys_order(tmp_path: Path) -> None:
    async with Platform(tmp_path) as platform:
        await platform.open_window()
        async with platform.session(platform.codes[0]) as session:
            await session.open()
            await session.choose("A")
            await session.acked()
            now = session.opened.server_time_ms
            await platform.open_window(closes_ms=now - 10_000, grace_ms=600_000)
            await session.choose("B")
            await session.acked()
            assert await refusal(platform, platform.codes[1]) is CampaignClosed
            await platform.open_window(closes_ms=now - 10_000, grace_ms=1)
            await session.choose("C")
            assert isinstance(await session.end(), CampaignClosed)
        assert [record.seq for record in await platform.records()] == [1, 2]


async def test_a_close_under_load_is_atomic(tmp_path: Path) -> None:
    """Every commit before the flip counts, none after; each client learns the truth when it asks."""
    async with Platform(tmp_path, pupils=20, workers=2) as platform:
        await platform.open_window()
        writers = {code: os.urandom(16) for code in platform.codes}
        told: dict[Code, int] = {}
        running = asyncio.Event()

        async def stream(code: Code) -> None:
            async with platform.session(code, writer=writers[code]) as session:
                await session.open()
                error = await until_refused(session, running)
                told[code] = session.durable_seq
                assert isinstance(error, CampaignClosed), error

        async with asyncio.TaskGroup() as group:
            for code in platform.codes:
                group.create_task(stream(code))
            await running.wait()
            await platform.close_window()
        entries = await platform.blocks()
        closing = read_closing(entries[-1].closing)
        lasts = {entry.epoch_id: entry.number for entry in entries[:-1]}
        assert {epoch.epoch_id: epoch.last_number for epoch in closing.epochs} == lasts
        stored = {code: len(await platform.records_of(code)) for code in platform.codes}
        for code, writer in writers.items():
            assert told[code] <= stored[code]
            async with platform.session(code, writer=writer) as session:
                opened = await session.open()
                assert (opened.read_only, opened.durable_seq) == (True, stored[code])


async def until_refused(session: RawSession, running: asyncio.Event) -> PliError | None:
    """Answers one after another until the stream ends; the status."""
    try:
        while True:
            await session.choose("A")
            await session.acked()
            if session.seq > 20:
                running.set()
    except PliError as error:
        return error


async def test_a_newer_bundle_changes_the_rules_without_a_restart(tmp_path: Path) -> None:
    async with Platform(tmp_path, node_settings={"guard": {"interval_ms": 200}}) as platform:
        await platform.open_window()
        async with platform.session(platform.codes[0]) as session:
            await session.open()
            await session.choose("E")
            await session.acked()
            assert list(session.rejected) == [1]
            platform.instrument.items[0].options.append("E")
            platform.instrument.version = "2026.2"
            await platform.load(version=2)
            await platform.open_window()

            async def renewed() -> bool:
                async with platform.session(platform.codes[1]) as other:
                    try:
                        return (await other.open()).instrument_version == "2026.2"
                    except Unavailable:
                        return False

            await until(renewed, "the node to take over the new bundle")
            await session.choose("E")
            await session.acked()
            assert list(session.rejected) == [1], "taken under the new rules, in the same stream"

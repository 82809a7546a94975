"""Sessions on a real platform, whole and broken: what the spool holds at the end is each answer once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from pli.canonical import FinishDigest
from pli.client import (
    ClientOptions,
    DrainTold,
    OverloadTold,
    PupilSession,
    RejectionTold,
    SessionInterrupted,
    SessionOpened,
    SupersededTold,
)
from pli.codes import Code, new_code
from pli.errors import CampaignClosed, CampaignNotOpen, CodeRefused, NotFound, SessionSuperseded
from pli.ingest.v1.ingest_pb2 import Finish
from pli.process import split_address
from pli.records import RecordKind
from tests.support.client_sessions import Told
from tests.support.cuts import BLACK_HOLE, CLOSE, RESET, TO_CLIENT, TO_SERVER, Cut, CuttingProxy
from tests.support.platform import Platform
from tests.support.played_vault import StoredRecord
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

OPTIONS = "ABCD"


class Sent:
    """An observer that keeps what was sent and how far it was acknowledged."""

    def __init__(self) -> None:
        self.payloads: dict[int, bytes] = {}
        self.durable_seq = 0
        self.refused: dict[int, int] = {}

    def opened(self, writer: bytes, code: Code) -> None:
        """Kept by the session."""

    def sent(self, writer: bytes, seq: int, kind: int, payload: bytes) -> None:
        self.payloads[seq] = payload

    def acked(self, writer: bytes, durable_seq: int) -> None:
        self.durable_seq = max(self.durable_seq, durable_seq)

    def rejected(self, writer: bytes, seq: int, reason: int) -> None:
        self.refused[seq] = reason


def options_of(platform: Platform, address: str = "", **fields: Any) -> ClientOptions:
    return ClientOptions(
        **{
            "campaign_id": platform.campaign_id,
            "address": address or platform.address,
            "authority": platform.authority_pem,
            "node_authorities": (x509.load_pem_x509_certificate(platform.authority_pem),),
            "backoff_first_ms": 50,
            "backoff_max_ms": 400,
            **fields,
        }
    )


def held_of(records: list[StoredRecord], session: PupilSession) -> dict[int, bytes]:
    """What there is of this session: payload by number. Fails where a number is there twice."""
    records = [record for record in records if record.writer == session.writer]
    numbers = [record.seq for record in records]
    assert len(set(numbers)) == len(numbers), f"stored twice: {sorted(numbers)}"
    return {record.seq: record.payload for record in records}


async def stored(platform: Platform, session: PupilSession, code: Code) -> dict[int, bytes]:
    """What the spool holds of this session under this code."""
    return held_of(await platform.records_of(code), session)


async def check_whole(platform: Platform, session: PupilSession, code: Code, sent: Sent) -> None:
    """Everything sent is stored, once, as it was sent; the finish digests it."""
    check_records(await platform.records_of(code), session, sent)


def check_records(records: list[StoredRecord], session: PupilSession, sent: Sent) -> None:
    """As `check_whole`, in records that were read before."""
    held = held_of(records, session)
    assert held == {seq: payload for seq, payload in sent.payloads.items() if seq not in sent.refused}
    assert session.receipt is not None
    assert session.receipt.last_seq == max(held) == sent.durable_seq
    digest = FinishDigest()
    for seq in sorted(held)[:-1]:
        digest.add(seq, held[seq])
    finish = Finish.FromString(held[max(held)])
    assert (finish.digest, finish.count) == (digest.digest(), session.receipt.count)


@asynccontextmanager
async def proxied(platform: Platform) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy(*split_address(platform.address)) as proxy:
        yield proxy


async def give(session: PupilSession, count: int, *, wait: bool = False) -> None:
    for number in range(count):
        given = await session.answer("one", choice=OPTIONS[number % 4], elapsed_ms=number)
        if wait:
            await given


async def test_a_whole_session_is_stored_once_and_its_receipt_verifies(platform: Platform) -> None:
    sent, code = Sent(), platform.codes[0]
    async with PupilSession(options_of(platform), code.printed().lower(), observer=sent) as session:
        await session.answer("one", choice="B", elapsed_ms=3_000)
        await session.answer("many", choices=["A", "C"])
        await session.answer("words", text="à côté")
        await session.answer("count", number="-3,5")
        await session.answer("one", cleared=True)
        receipt = await session.finish()
    assert receipt.count == 5
    assert receipt.pseudonym_prefix == platform.vault.pseudonym(code)[:4]
    await check_whole(platform, session, code, sent)
    held = {record.seq: record for record in await platform.records_of(code)}
    assert held[3].answer.text == "à côté"
    assert {held[seq].answer.opening for seq in range(1, 6)} == {1}


async def test_a_rejected_answer_is_told_and_the_finish_leaves_it_out(platform: Platform) -> None:
    sent, told, code = Sent(), Told(), platform.codes[0]
    async with PupilSession(options_of(platform), code, observer=sent, on_event=told) as session:
        await session.answer("one", choice="Z")
        await session.answer("words", text="x" * 21)
        await give(session, 3)
        assert (await session.finish()).count == 3
    assert [event.seq for event in told.of(RejectionTold)] == [1, 2]
    assert sorted(sent.refused) == [1, 2]
    await check_whole(platform, session, code, sent)


async def test_wrong_code_other_campaign_and_a_campaign_not_open_are_told_as_such(platform: Platform) -> None:
    unknown = new_code(lambda bits: 12_345)
    with pytest.raises(CodeRefused):
        await PupilSession(options_of(platform), unknown).open()
    with pytest.raises(CodeRefused):
        await PupilSession(options_of(platform), platform.revoked_codes[0]).open()
    with pytest.raises(NotFound):
        await PupilSession(options_of(platform, campaign_id="other"), platform.codes[0]).open()
    await platform.set_window(1)
    with pytest.raises(CampaignNotOpen):
        await PupilSession(options_of(platform), platform.codes[0]).open()


async def test_a_finished_code_opens_for_nobody_else(platform: Platform) -> None:
    async with PupilSession(options_of(platform), platform.codes[0]) as session:
        await session.finish()
    with pytest.raises(CodeRefused):
        await PupilSession(options_of(platform), platform.codes[0]).open()


async def test_a_second_device_wins_and_both_keep_what_they_gave(platform: Platform) -> None:
    code, told = platform.codes[0], Told()
    first_sent, second_sent = Sent(), Sent()
    async with PupilSession(options_of(platform), code, observer=first_sent, on_event=told) as first:
        await give(first, 3)
        await first.flush()
        async with PupilSession(options_of(platform), code, observer=second_sent) as second:
            await told.wait_for(SupersededTold)
            with pytest.raises(SessionSuperseded):
                await (await first.answer("one", choice="D"))
            await give(second, 2)
            await second.finish()
        with pytest.raises(CodeRefused):
            await first.open()
    await check_whole(platform, second, code, second_sent)
    held = await stored(platform, first, code)
    assert held == {seq: first_sent.payloads[seq] for seq in range(1, 4)}


async def test_a_superseded_device_goes_on_from_where_it_was_by_a_persons_act(platform: Platform) -> None:
    code, sent, told = platform.codes[0], Sent(), Told()
    async with PupilSession(options_of(platform), code, observer=sent, on_event=told) as first:
        await give(first, 2)
        async with PupilSession(options_of(platform), code) as second:
            await told.wait_for(SupersededTold)
            await give(second, 1)
        with pytest.raises(SessionSuperseded):
            await (await first.answer("one", choice="A"))
        await first.open()
        await give(first, 1)
        await first.finish()
    assert sorted(sent.payloads) in ([1, 2, 3, 4], [1, 2, 3, 4, 5])
    await check_whole(platform, first, code, sent)
    assert [r.answer.opening for r in await platform.records_of(code) if r.writer == second.writer] == [2]


async def test_after_a_close_in_the_middle_a_session_knows_exactly_what_is_stored(platform: Platform) -> None:
    sents = [Sent() for _ in range(6)]
    codes = platform.codes[: len(sents)]

    async def pupil(code: Code, sent: Sent) -> PupilSession:
        async with PupilSession(options_of(platform), code, observer=sent) as session:
            await give(session, 5, wait=True)
            with pytest.raises(CampaignClosed):
                await give(session, 1_000_000)
            with pytest.raises(CampaignClosed):
                await session.finish()
        return session

    pupils = [asyncio.create_task(pupil(code, sent)) for code, sent in zip(codes, sents, strict=True)]

    async def all_started() -> bool:
        return all(sent.durable_seq >= 8 for sent in sents)

    await until(all_started, "every pupil to be in the middle")
    await platform.close_window()
    for code, sent, session in zip(codes, sents, await asyncio.gather(*pupils), strict=True):
        held = await stored(platform, session, code)
        assert sorted(held) == list(range(1, session.settled.durable_seq + 1))
        assert held == {seq: sent.payloads[seq] for seq in held}
        assert session.settled.durable_seq == sent.durable_seq
        assert session.settled.stored == len(held)


async def test_an_overloaded_platform_gives_a_slot_and_lets_in_when_there_is_room(tmp_path: Path) -> None:
    limits = {"sessions": {"max_sessions": 1, "retry_slot_ms": 200}}
    async with Platform(tmp_path, pupils=2, node_settings=limits) as platform:
        await platform.open_window()
        told, sent = Told(), Sent()
        async with PupilSession(options_of(platform), platform.codes[0]) as first:
            second = PupilSession(options_of(platform), platform.codes[1], on_event=told, observer=sent)
            opening = asyncio.create_task(second.open())
            slot = await told.wait_for(OverloadTold)
            assert 0 <= slot.retry_after_ms <= 200
            assert not opening.done()
            await first.finish()
        await opening
        await give(second, 2)
        await second.finish()
        await second.close()
        await check_whole(platform, second, platform.codes[1], sent)


async def test_a_draining_node_hands_its_sessions_to_another_one(tmp_path: Path) -> None:
    async with Platform(tmp_path, pupils=4) as platform:
        await platform.open_window()
        other = await platform.add_node()
        async with proxied(platform) as proxy:
            told = [Told() for _ in platform.codes]
            sents = [Sent() for _ in platform.codes]
            sessions = [
                PupilSession(options_of(platform, proxy.address), code, on_event=each, observer=sent)
                for code, each, sent in zip(platform.codes, told, sents, strict=True)
            ]
            for session in sessions:
                await session.open()
                await give(session, 3)
            proxy.target(*split_address(other.address))
            stopping = asyncio.create_task(platform.stop_node(platform.nodes[0]))
            for each in told:
                await each.wait_for(DrainTold)
            for session in sessions:
                await give(session, 3)
                assert (await session.finish()).count == 6
                await session.close()
            assert await stopping == 0
        for session, code, sent in zip(sessions, platform.codes, sents, strict=True):
            await check_whole(platform, session, code, sent)


async def test_sessions_survive_the_kill_of_a_worker(tmp_path: Path) -> None:
    async with Platform(tmp_path, pupils=12, workers=2) as platform:
        await platform.open_window()
        told = [Told() for _ in platform.codes]
        sents = [Sent() for _ in platform.codes]
        killed = asyncio.Event()

        async def pupil(code: Code, each: Told, sent: Sent) -> PupilSession:
            async with PupilSession(options_of(platform), code, on_event=each, observer=sent) as session:
                await give(session, 5, wait=True)
                while not killed.is_set() or len(sent.payloads) < 60:
                    await give(session, 1, wait=not killed.is_set())
                await session.finish()
            return session

        pupils = [asyncio.create_task(pupil(*three)) for three in zip(platform.codes, told, sents, strict=True)]

        async def all_started() -> bool:
            return all(sent.durable_seq >= 10 for sent in sents)

        await until(all_started, "every pupil to be in the middle")
        workers = await platform.workers()
        victim = max(workers, key=lambda pid: int(workers[pid]["sessions"]))
        os.kill(victim, signal.SIGKILL)
        killed.set()
        sessions = await asyncio.gather(*pupils)
        assert any(each.of(SessionInterrupted) for each in told), "nobody was on the worker that was killed"
        for session, code, sent in zip(sessions, platform.codes, sents, strict=True):
            await check_whole(platform, session, code, sent)


async def test_sessions_survive_the_kill_of_the_store(platform: Platform) -> None:
    sents = [Sent() for _ in platform.codes]

    async def pupil(code: Code, sent: Sent) -> PupilSession:
        async with PupilSession(options_of(platform), code, observer=sent) as session:
            await give(session, 5, wait=True)
            await give(session, 20)
            await session.finish()
        return session

    pupils = [asyncio.create_task(pupil(code, sent)) for code, sent in zip(platform.codes, sents, strict=True)]

    async def all_started() -> bool:
        return all(sent.durable_seq >= 2 for sent in sents)

    await until(all_started, "every pupil to be in the middle")
    await platform.store.kill()
    await platform.store.start()
    for session, code, sent in zip(await asyncio.gather(*pupils), platform.codes, sents, strict=True):
        await check_whole(platform, session, code, sent)


# One platform for all cuts: each takes a code of its own.


async def test_a_connection_cut_at_any_byte_loses_and_doubles_nothing(platform_of_module: Platform) -> None:
    platform = platform_of_module
    # A session like this one sends about 2 080 bytes up to Opened and 2 480 in all, and is sent 2 600 and
    # 3 590: most cuts lie where answers and acks pass.
    to_server = [*range(1, 2_000, 250), *range(2_000, 2_480, 20)]
    to_client = [*range(1, 2_500, 250), *range(2_560, 3_560, 40)]
    cuts = [
        *(Cut(at, TO_SERVER, RESET) for at in to_server),
        *(Cut(at, TO_CLIENT, RESET) for at in to_client),
        *(Cut(at, TO_SERVER, CLOSE) for at in to_server[1::2]),
        *(Cut(at, TO_CLIENT, CLOSE) for at in to_client[1::2]),
    ]
    codes = platform.codes[: len(cuts)]
    assert len(codes) == len(cuts)
    room = asyncio.Semaphore(8)
    struck = 0
    finished: list[tuple[PupilSession, Sent]] = []

    async def pupil(code: Code, cut: Cut) -> None:
        nonlocal struck
        sent = Sent()
        async with room, proxied(platform) as proxy:
            proxy.plan(cut)
            async with PupilSession(options_of(platform, proxy.address), code, observer=sent) as session:
                await give(session, 2, wait=True)
                await give(session, 4)
                assert (await session.finish()).count == 6, cut
            struck += proxy.connections > 1
        finished.append((session, sent))

    await asyncio.gather(*(pupil(code, cut) for code, cut in zip(codes, cuts, strict=True)))
    records = await platform.records()
    for session, sent in finished:
        check_records(records, session, sent)
    assert struck > 0.8 * len(cuts), "most cuts must have hit the session"


@pytest.mark.parametrize(
    "cut",
    [
        Cut(400, TO_SERVER, BLACK_HOLE),
        Cut(2_300, TO_SERVER, BLACK_HOLE),
        Cut(1_000, TO_CLIENT, BLACK_HOLE),
        Cut(2_800, TO_CLIENT, BLACK_HOLE),
    ],
    ids=lambda cut: f"after {cut.after_bytes} bytes {cut.direction}",
)
async def test_a_line_that_goes_silent_is_left_and_the_session_goes_on(platform_of_module: Platform, cut: Cut) -> None:
    platform, sent = platform_of_module, Sent()
    code = platform.codes.pop()
    async with proxied(platform) as proxy:
        proxy.plan(cut)
        options = options_of(platform, proxy.address, open_timeout_seconds=1.0, stall_timeout_seconds=1.0)
        async with PupilSession(options, code, observer=sent) as session:
            await give(session, 20, wait=True)
            await session.finish()
        assert proxy.struck.is_set()
        assert proxy.connections == 2
    await check_whole(platform, session, code, sent)


async def test_a_line_that_is_slow_or_sends_single_bytes_changes_nothing(platform_of_module: Platform) -> None:
    platform = platform_of_module
    for cut in (Cut(slice_bytes=1), Cut(delay_seconds=0.05)):
        sent, code = Sent(), platform.codes.pop()
        async with proxied(platform) as proxy:
            proxy.plan(cut)
            async with PupilSession(options_of(platform, proxy.address), code, observer=sent) as session:
                await give(session, 5, wait=True)
                await session.finish()
            assert proxy.connections == 1
        await check_whole(platform, session, code, sent)


async def test_a_line_that_is_reset_again_and_again_loses_and_doubles_nothing(platform_of_module: Platform) -> None:
    platform, sent, told = platform_of_module, Sent(), Told()
    code = platform.codes.pop()
    async with proxied(platform) as proxy:
        options = replace(options_of(platform, proxy.address), backoff_max_ms=60)
        async with PupilSession(options, code, observer=sent, on_event=told) as session:
            for resets in range(1, 9):
                await give(session, 3)
                assert proxy.reset_all() > 0
                await give(session, 2)
                await told.wait_for(SessionOpened, resets + 1)
            await session.finish()
    assert len(told.of(SessionInterrupted)) >= 8
    await check_whole(platform, session, code, sent)
    openings = [r.answer.opening for r in await platform.records_of(code) if r.kind == RecordKind.ANSWER]
    assert openings == sorted(openings)
    assert len(set(openings)) > 1


async def test_a_dead_line_that_comes_back_delivers_nothing_twice(platform_of_module: Platform) -> None:
    platform, sent, told = platform_of_module, Sent(), Told()
    code = platform.codes.pop()
    async with proxied(platform) as proxy:
        options = options_of(platform, proxy.address, open_timeout_seconds=2.0, stall_timeout_seconds=0.5)
        async with PupilSession(options, code, observer=sent, on_event=told) as session:
            await give(session, 3, wait=True)
            proxy.hold()
            await give(session, 3)
            await told.wait_for(SessionInterrupted)
            proxy.release()
            await session.finish()
    await check_whole(platform, session, code, sent)

"""The protocol of `Submit`, sentence by sentence, against a real node over TLS."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from cryptography import x509

from pli.errors import CodeRefused, NotFound, PliError, SessionSuperseded, StreamViolation, Unavailable, VersionMismatch
from pli.ingest.v1.ingest_pb2 import (
    Answer,
    Answers,
    Choices,
    Cleared,
    Finish,
    Open,
    Presence,
    ReceiptBody,
    RejectReason,
    SubmitRequest,
)
from pli.records import RecordKind
from pli.signing import RECEIPT, verify_node
from tests.support.platform import Platform
from tests.support.raw_session import RawSession

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def platform(platform_of_module: Platform) -> Platform:
    return platform_of_module


def one(option: str = "B", **fields: int) -> Answer:
    return Answer(item_id="one", choices=Choices(options=[option]), **fields)  # type: ignore[arg-type]  # fields of the message


async def status_of(session: RawSession) -> PliError:
    error = await session.end()
    assert error is not None, "the stream ended with OK"
    return error


async def test_an_answer_is_acknowledged_and_lies_sealed_in_the_spool(platform: Platform) -> None:
    code = platform.codes.pop()
    async with platform.session(code) as session:
        opened = await session.open()
        assert (opened.opening, opened.durable_seq, opened.read_only, opened.seats) == (1, 0, False, 0)
        assert (opened.max_in_flight, opened.instrument_version, opened.closes_at_ms) == (256, "2026.1", 0)
        assert opened.server_time_ms > 1_700_000_000_000
        await session.choose("B")
        await session.acked()
    (record,) = await platform.records_of(code)
    assert (record.kind, record.seq, record.opening, record.writer) == (RecordKind.ANSWER, 1, 1, session.writer)
    assert (list(record.answer.choices.options), record.answer.opening) == (["B"], 1)


async def test_acks_are_cumulative_over_messages_of_many_answers(platform: Platform) -> None:
    code = platform.codes.pop()
    async with platform.session(code) as session:
        await session.open()
        for _ in range(5):
            await session.answers(*(one() for _ in range(64)))
        await session.acked(320)
    assert [record.seq for record in await platform.records_of(code)] == list(range(1, 321))


async def test_an_empty_answer_and_every_type_of_item_is_taken(platform: Platform) -> None:
    code = platform.codes.pop()
    given = [
        one("A"),
        Answer(item_id="many", choices=Choices(options=["A", "C"])),
        Answer(item_id="many", choices=Choices()),
        Answer(item_id="words", text="l'été"),
        Answer(item_id="count", number="-3,5"),
        Answer(item_id="one", cleared=Cleared()),
    ]
    async with platform.session(code) as session:
        await session.open()
        await session.answers(*given)
        await session.acked()
    assert not session.rejected
    assert [record.answer for record in await platform.records_of(code)] == given


async def test_a_rejection_comes_before_its_ack_and_is_told_again_by_opened(platform: Platform) -> None:
    code, writer = platform.codes.pop(), os.urandom(16)
    async with platform.session(code, writer=writer) as session:
        await session.open()
        await session.answers(one("Z"), one("A"), Answer(item_id="nowhere", cleared=Cleared()))
        await session.acked()
        kinds = [response.WhichOneof("message") for response in session.seen]
        assert kinds == ["opened", "rejected", "rejected", "ack"]
        expected = {
            1: RejectReason.REJECT_REASON_UNKNOWN_OPTION,
            3: RejectReason.REJECT_REASON_UNKNOWN_ITEM,
        }
        assert session.rejected == expected
    async with platform.session(code, writer=writer) as session:
        opened = await session.open()
        assert (opened.opening, opened.durable_seq, session.rejected) == (2, 3, expected)
    assert [record.seq for record in await platform.records_of(code)] == [2]


async def test_a_gap_is_answered_by_expected_and_consumes_nothing(platform: Platform) -> None:
    code = platform.codes.pop()
    async with platform.session(code) as session:
        await session.open()
        await session.answers(one(), first_seq=4)
        assert (await session.next("expected")).expected.seq == 1
        await session.answers(one("A"), one("B"), first_seq=1)
        await session.acked(2)
        await session.answers(one(), first_seq=9)
        assert (await session.next("expected")).expected.seq == 3
        await session.answers(one("C"), first_seq=3)
        await session.acked(3)
    options = [record.answer.choices.options[0] for record in await platform.records_of(code)]
    assert options == ["A", "B", "C"]


async def test_a_repeated_number_is_acknowledged_again_and_stored_once(platform: Platform) -> None:
    code = platform.codes.pop()
    async with platform.session(code) as session:
        await session.open()
        await session.answers(one("A"), one("B"))
        await session.acked(2)
        await session.answers(one("A"), one("B"), first_seq=1)
        assert (await session.next("ack")).ack.durable_seq == 2
        await session.answers(one("B"), one("C"), first_seq=2)
        await session.acked(3)
    assert [record.answer.choices.options[0] for record in await platform.records_of(code)] == ["A", "B", "C"]


async def test_after_a_break_the_same_writer_goes_on_and_another_one_starts_at_zero(platform: Platform) -> None:
    code, writer = platform.codes.pop(), os.urandom(16)
    async with platform.session(code, writer=writer) as session:
        await session.open()
        await session.answers(one(), one())
        await session.acked()
    async with platform.session(code, writer=writer) as session:
        opened = await session.open(acked_seq=2)
        assert (opened.opening, opened.durable_seq) == (2, 2)
        await session.answers(one("D", opening=1))
        await session.acked(3)
    async with platform.session(code) as session:
        opened = await session.open()
        assert (opened.opening, opened.durable_seq) == (3, 0)
    records = await platform.records_of(code)
    assert (records[-1].opening, records[-1].answer.opening) == (2, 1), "given in 1, sent in 2"


async def test_a_repeated_token_returns_the_same_opening(platform: Platform) -> None:
    code, writer, token = platform.codes.pop(), os.urandom(16), os.urandom(16)
    async with platform.session(code, writer=writer) as session:
        assert (await session.open(token=token)).opening == 1
    async with platform.session(code, writer=writer) as session:
        assert (await session.open(token=token)).opening == 1
        await session.choose("A")
        await session.acked()


async def test_the_newest_opening_wins_and_the_older_stream_is_told(platform: Platform) -> None:
    code = platform.codes.pop()
    async with platform.session(code) as older, platform.session(code) as newer:
        await older.open()
        await older.choose("A")
        await older.acked()
        assert (await newer.open()).opening == 2
        notice = (await older.next("notice")).notice
        assert notice.superseded.opening == 2
        assert isinstance(await status_of(older), SessionSuperseded)
        await newer.choose("B")
        await newer.acked()
    assert len(await platform.records_of(code)) == 2, "both are kept"


async def test_two_streams_under_one_token_leave_one_alive_and_harm_nobody(platform: Platform) -> None:
    code, writer, token = platform.codes.pop(), os.urandom(16), os.urandom(16)
    bystander_code = platform.codes.pop()
    async with (
        platform.session(code, writer=writer) as first,
        platform.session(code, writer=writer) as second,
        platform.session(bystander_code) as bystander,
    ):
        await bystander.open()
        await first.open(token=token)
        await second.open(token=token)
        assert isinstance(await status_of(first), SessionSuperseded)
        await second.answers(one("A"), one("B"))
        await second.acked(2)
        await bystander.choose("C")
        await bystander.acked()
    assert [record.seq for record in await platform.records_of(code)] == [1, 2]


async def test_a_stream_that_its_twin_has_overtaken_is_told_to_open_again(platform: Platform) -> None:
    """The twin under the same token stored seq 1 after this one was told that nothing is stored."""
    code, writer, token = platform.codes.pop(), os.urandom(16), os.urandom(16)
    async with platform.session(code, writer=writer) as twin, platform.session(platform.codes.pop()) as bystander:
        await bystander.open()
        await twin.open(token=token)
        await twin.choose("A")
        async with platform.session(code, writer=writer) as session:
            await session.open(token=token)
            await bystander.choose("C")
            await bystander.acked()
            await session.answers(one("A"), one("B"), first_seq=session.durable_seq + 1)
            with suppress(Unavailable):
                await session.acked(2)
    async with platform.session(code, writer=writer) as session:
        opened = await session.open()
        assert opened.durable_seq >= 1
    seqs = [record.seq for record in await platform.records_of(code)]
    assert seqs == list(range(1, len(seqs) + 1)), "each once, whoever stored it"


async def test_a_platform_that_knows_less_than_the_client_counts_an_alarm(platform: Platform) -> None:
    code, writer = platform.codes.pop(), os.urandom(16)
    async with platform.session(code, writer=writer) as session:
        opened = await session.open(acked_seq=17)
        assert opened.durable_seq == 0, "the client then resends all it kept"
        await session.answers(one())
        await session.acked()
    assert "spool_went_back" in platform.nodes[0].process.output()


async def test_finish_returns_a_signed_receipt_and_the_stream_ends_with_ok(platform: Platform) -> None:
    code = platform.codes.pop()
    async with platform.session(code) as session:
        await session.open()
        await session.answers(one("A"), one("Z"), one("C"))
        await session.acked()
        await session.finish()
        receipt = await session.finished()
        assert await session.end() is None
    certificate = x509.load_der_x509_certificate(receipt.certificate)
    verify_node(certificate, RECEIPT, receipt.body, receipt.signature)
    certificate.verify_directly_issued_by(platform.authority.certificate)
    body = ReceiptBody.FromString(receipt.body)
    assert (body.campaign_id, body.last_seq, body.count) == (platform.campaign_id, 4, 2)
    assert body.pseudonym_prefix == platform.vault.pseudonym(code)[:4]
    *_, finish = await platform.records_of(code)
    assert (finish.kind, finish.seq, finish.finish.count) == (RecordKind.FINISH, 4, 2)


async def test_a_finished_code_opens_read_only_with_the_same_receipt_for_its_writer_alone(platform: Platform) -> None:
    code, writer = platform.codes.pop(), os.urandom(16)
    async with platform.session(code, writer=writer) as session:
        await session.open()
        await session.choose("A")
        await session.finish()
        receipt = await session.finished()
    for _ in range(2):
        async with platform.session(code, writer=writer) as session:
            opened = await session.open()
            assert (opened.read_only, opened.opening, opened.durable_seq) == (True, 1, 2)
            assert opened.receipt == receipt
            assert await session.end() is None
    async with platform.session(code) as other:
        with pytest.raises(CodeRefused):
            await other.open()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"count": 7}, RejectReason.REJECT_REASON_BAD_FINISH),
        ({"digest": b"short"}, RejectReason.REJECT_REASON_BAD_FINISH),
        ({"opening": 9}, RejectReason.REJECT_REASON_BAD_OPENING),
        ({"opening": 0}, RejectReason.REJECT_REASON_BAD_OPENING),
    ],
)
async def test_a_wrong_finish_is_rejected_and_the_session_goes_on(
    platform: Platform, spoil: dict[str, object], reason: int
) -> None:
    code = platform.codes.pop()
    async with platform.session(code) as session:
        await session.open()
        await session.choose("A")
        await session.acked()
        wrong = session.finishing()
        for name, value in spoil.items():
            setattr(wrong, name, value)
        await session.finish(wrong)
        await session.acked(2)
        assert session.rejected == {2: reason}
        await session.choose("B")
        await session.finish()
        await session.finished()
    assert [record.seq for record in await platform.records_of(code)] == [1, 3, 4]


async def test_an_empty_session_may_finish(platform: Platform) -> None:
    async with platform.session(platform.codes.pop()) as session:
        await session.open()
        await session.finish()
        receipt = await session.finished()
    assert ReceiptBody.FromString(receipt.body).count == 0


async def test_nothing_after_finish_is_stored(platform: Platform) -> None:
    code = platform.codes.pop()
    async with platform.session(code) as session:
        await session.open()
        finish = session.finishing()
        await session.finish(finish)
        await session.send(SubmitRequest(finish=finish))
        await session.send(SubmitRequest(answers=Answers(first_seq=2, answers=[one(opening=1)])))
        await session.finished()
        assert await session.end() is None
    assert len(await platform.records_of(code)) == 1


async def test_a_client_that_says_no_more_gets_the_acks_of_what_it_sent(platform: Platform) -> None:
    async with platform.session(platform.codes.pop()) as session:
        await session.open()
        await session.answers(one(), one())
        await session.half_close()
        assert await session.end() is None
        assert session.durable_seq == 2


async def test_what_a_client_sent_before_it_vanished_is_stored(platform: Platform) -> None:
    code, writer = platform.codes.pop(), os.urandom(16)
    async with platform.session(code, writer=writer) as session:
        await session.open()
        await session.answers(one(), one())
        await session.acked(2)
        await session.answers(one())
        session.cancel()
    async with platform.session(code, writer=writer) as session:
        assert (await session.open(acked_seq=2)).durable_seq in (2, 3), "known to the spool, or to be sent again"


# Codes


def typed_otherwise(printed: str) -> list[str]:
    """Ways of writing a code that all mean it."""
    return [
        printed.lower(),
        printed.replace("-", ""),
        printed.replace("-", "  "),
        f" {printed}\t",
        printed.replace("0", "O").replace("1", "l"),
    ]


async def test_a_code_is_read_as_people_write_it(platform: Platform) -> None:
    code, writer = platform.codes.pop(), os.urandom(16)
    for number, typed in enumerate(typed_otherwise(code.printed()), 1):
        async with platform.session(typed, writer=writer) as session:
            assert (await session.open()).opening == number


def wrong_codes(platform: Platform) -> list[str]:
    good = platform.codes[0].printed()
    other = "B" if good[0] != "B" else "C"
    return [
        other + good[1:],
        good[1] + good[0] + good[2:] if good[0] != good[1] else other * 2 + good[2:],
        good[:-1],
        good + "0",
        "",
        "".join(chr(ord(symbol) + 0xFEE0) if symbol != "-" else symbol for symbol in good),  # full width
        "\N{CYRILLIC CAPITAL LETTER A}" + good[1:],
        "A" * 5_000,
        platform.revoked_codes[0].printed(),
    ]


async def test_wrong_codes_are_refused_alike_in_shape(platform: Platform) -> None:
    seen = set()
    for typed in wrong_codes(platform):
        async with platform.session(typed) as session:
            with pytest.raises(CodeRefused) as caught:
                await session.open()
        seen.add((type(caught.value), caught.value.message, str(caught.value.metadata)))
    assert len(seen) == 1


async def test_no_code_reaches_the_log(platform: Platform) -> None:
    output = platform.nodes[0].process.output()
    for code in (*platform.codes, *platform.revoked_codes):
        assert code.reveal() not in output
        assert code.printed() not in output


# The order of the stream


async def opening_with(platform: Platform, **spoil: object) -> PliError:
    """The status that a spoilt Open gets."""
    right = Open(
        protocol_version=1,
        campaign_id=platform.campaign_id,
        code=platform.codes[0].printed(),
        writer=os.urandom(16),
        token=os.urandom(16),
    )
    for name, value in spoil.items():
        setattr(right, name, value)
    async with platform.session(platform.codes[0]) as session:
        await session.send(SubmitRequest(open=right))
        return await status_of(session)


async def test_what_an_open_must_say(platform: Platform) -> None:
    assert isinstance(await opening_with(platform, protocol_version=2), VersionMismatch)
    assert isinstance(await opening_with(platform, protocol_version=0), VersionMismatch)
    assert isinstance(await opening_with(platform, campaign_id="another"), NotFound)
    assert isinstance(await opening_with(platform, campaign_id="x" * 10_000), NotFound)
    assert isinstance(await opening_with(platform, writer=b"short"), StreamViolation)
    assert isinstance(await opening_with(platform, token=b""), StreamViolation)
    assert isinstance(await opening_with(platform, token=bytes(17)), StreamViolation)


@pytest.mark.parametrize(
    "first",
    [
        SubmitRequest(),
        SubmitRequest(answers=Answers(first_seq=1, answers=[one()])),
        SubmitRequest(finish=Finish(seq=1, digest=bytes(32))),
    ],
    ids=["empty", "answers", "finish"],
)
async def test_anything_before_open_breaks_the_stream(platform: Platform, first: SubmitRequest) -> None:
    async with platform.session(platform.codes[0]) as session:
        await session.send(first)
        assert isinstance(await status_of(session), StreamViolation)


async def test_a_stream_that_ends_before_open_is_a_violation(platform: Platform) -> None:
    async with platform.session(platform.codes[0]) as session:
        await session.half_close()
        assert isinstance(await status_of(session), StreamViolation)


def second_open() -> SubmitRequest:
    return SubmitRequest(open=Open(protocol_version=1, writer=bytes(16), token=bytes(16)))


@pytest.mark.parametrize(
    "message",
    [
        second_open(),
        SubmitRequest(),
        SubmitRequest(answers=Answers(first_seq=2)),
        SubmitRequest(answers=Answers(first_seq=2, answers=[one(opening=1)] * 65)),
        SubmitRequest(answers=Answers(first_seq=0, answers=[one(opening=1)])),
        SubmitRequest(answers=Answers(first_seq=2**53, answers=[one(opening=1)])),
        SubmitRequest(answers=Answers(first_seq=2**63, answers=[one(opening=1)])),
        SubmitRequest(answers=Answers(first_seq=2**64 - 1, answers=[one(opening=1)])),
        SubmitRequest(finish=Finish(seq=0, digest=bytes(32))),
    ],
    ids=["second open", "empty", "no answers", "65 answers", "seq 0", "seq 2^53", "seq 2^63", "seq 2^64", "finish 0"],
)
async def test_a_violation_ends_the_stream_and_keeps_what_came_before(
    platform: Platform, message: SubmitRequest
) -> None:
    code, writer = platform.codes.pop(), os.urandom(16)
    async with platform.session(code, writer=writer) as session:
        await session.open()
        await session.choose("A")
        await session.acked()
        await session.send(message)
        assert isinstance(await status_of(session), StreamViolation)
    async with platform.session(code, writer=writer) as session:
        assert (await session.open()).durable_seq == 1


async def test_a_client_that_is_wrong_too_often_is_cut_off(platform: Platform) -> None:
    code, writer = platform.codes.pop(), os.urandom(16)
    async with platform.session(code, writer=writer) as session:
        await session.open()
        for _ in range(16):
            await session.answers(*(one("Z") for _ in range(64)))
        await session.acked(1024)
        await session.answers(one("Z"))
        assert isinstance(await status_of(session), StreamViolation)
    async with platform.session(code, writer=writer) as session:
        assert len((await session.open()).rejected) == 1024
        await session.answers(one("A"))
        await session.acked(1025)


# Answers


LONG = "1" * 400


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(item_id="nowhere", text="x"), "UNKNOWN_ITEM"),
        (Answer(item_id="", text="x"), "UNKNOWN_ITEM"),
        (Answer(item_id="x" * 70, text="x"), "UNKNOWN_ITEM"),
        (one("Z"), "UNKNOWN_OPTION"),
        (Answer(item_id="many", choices=Choices(options=["A", "A"])), "UNKNOWN_OPTION"),
        (Answer(item_id="one", choices=Choices(options=["A", "B"])), "TOO_LONG"),
        (Answer(item_id="one", choices=Choices()), "EMPTY"),
        (Answer(item_id="one"), "EMPTY"),
        (Answer(item_id="one", text="A"), "WRONG_TYPE"),
        (Answer(item_id="words", blob=b"x"), "WRONG_TYPE"),
        (Answer(item_id="count", number="NaN"), "BAD_NUMBER"),
        (Answer(item_id="count", number="Infinity"), "BAD_NUMBER"),
        (Answer(item_id="count", number="1e5"), "BAD_NUMBER"),
        (Answer(item_id="count", number="٣"), "BAD_NUMBER"),
        (Answer(item_id="count", number=LONG), "TOO_LONG"),
        (Answer(item_id="words", text="a\0b"), "BAD_TEXT"),
        (Answer(item_id="words", text="a\u202eb"), "BAD_TEXT"),
        (Answer(item_id="words", text="x" * 21), "TOO_LONG"),
        (Answer(item_id="essay", text="e" + "\u0301" * 4_000), "BAD_TEXT"),
        (Answer(item_id="essay", text="x" * 8_193), "TOO_LONG"),
        (Answer(item_id="one", seat=1, choices=Choices(options=["A"])), "UNKNOWN_SEAT"),
        (one("A", opening=2), "BAD_OPENING"),
    ],
)
async def test_an_answer_that_no_resend_can_cure_is_rejected_with_its_reason(
    platform: Platform, answer: Answer, reason: str
) -> None:
    # The bad ones share a code: rejections are counted per writer, and each session has its own.
    async with platform.session(platform.codes[0]) as session:
        await session.open()
        answer.opening = answer.opening and session.opened.opening + answer.opening - 1
        await session.answers(answer)
        await session.acked()
        assert session.rejected == {1: RejectReason.Value(f"REJECT_REASON_{reason}")}


@pytest.mark.parametrize("opening", [0, 2**32 - 1])
async def test_an_opening_that_never_happened_is_rejected(platform: Platform, opening: int) -> None:
    async with platform.session(platform.codes[0]) as session:
        await session.open()
        await session.send(SubmitRequest(answers=Answers(first_seq=1, answers=[one(opening=opening)])))
        await session.acked(1)
        assert session.rejected == {1: RejectReason.REJECT_REASON_BAD_OPENING}


@pytest.mark.parametrize("text", ["x" * 8_192, "é" * 4_096], ids=["ascii", "two bytes each"])
async def test_the_longest_text_is_stored_as_it_is(platform: Platform, text: str) -> None:
    code = platform.codes.pop()
    async with platform.session(code) as session:
        await session.open()
        await session.answers(Answer(item_id="essay", text=text))
        await session.acked()
        assert not session.rejected
    (record,) = await platform.records_of(code)
    assert record.answer.text == text


async def test_full_queues_of_the_longest_texts_stay_within_the_spools_limits(platform: Platform) -> None:
    """A block is counted with its padding: 300 such answers are five blocks, none above the limit."""
    code = platform.codes.pop()
    async with platform.session(code) as session:
        await session.open()
        for _ in range(12):
            await session.answers(*(Answer(item_id="essay", text="x" * 8_190) for _ in range(25)))
        await session.acked(300)
    assert len(await platform.records_of(code)) == 300
    assert max(len(entry.block) for entry in await platform.blocks()) <= 1 << 20


# Class sessions


async def test_writers_of_a_class_work_side_by_side_by_seat(platform: Platform) -> None:
    code = platform.class_codes.pop()
    async with platform.session(code) as one_tab, platform.session(code) as other_tab:
        assert (await one_tab.open()).seats == 3
        assert (await other_tab.open()).opening == 2
        await one_tab.choose("A", seat=1)
        await other_tab.choose("B", seat=2)
        await one_tab.mark(3, Presence.PRESENCE_ABSENT)
        await one_tab.acked()
        await other_tab.acked()
    records = {(record.seat, record.kind) for record in await platform.records_of(code)}
    assert records == {(1, RecordKind.ANSWER), (2, RecordKind.ANSWER), (3, RecordKind.MARK)}


async def test_the_same_tab_opened_again_ends_its_own_older_stream_only(platform: Platform) -> None:
    code, writer = platform.class_codes.pop(), os.urandom(16)
    async with (
        platform.session(code, writer=writer) as older,
        platform.session(code) as other,
        platform.session(code, writer=writer) as newer,
    ):
        await older.open()
        await other.open()
        await newer.open()
        assert isinstance(await status_of(older), SessionSuperseded)
        await other.choose("A", seat=1)
        await other.acked()


@pytest.mark.parametrize(
    ("seat", "presence", "reason"),
    [
        (0, 1, "UNKNOWN_SEAT"),
        (4, 1, "UNKNOWN_SEAT"),
        (2**32 - 1, 1, "UNKNOWN_SEAT"),
        (1, 0, "EMPTY"),
        (1, 99, "EMPTY"),
    ],
)
async def test_a_mark_that_cannot_be_is_rejected(platform: Platform, seat: int, presence: int, reason: str) -> None:
    async with platform.session(platform.class_codes[0]) as session:
        await session.open()
        await session.mark(seat, presence)
        await session.acked()
        assert session.rejected == {1: RejectReason.Value(f"REJECT_REASON_{reason}")}


async def test_a_pupil_session_has_no_seat_to_mark(platform: Platform) -> None:
    async with platform.session(platform.codes[0]) as session:
        await session.open()
        await session.mark(1, Presence.PRESENCE_ABSENT)
        await session.acked()
        assert session.rejected == {1: RejectReason.REJECT_REASON_UNKNOWN_SEAT}


async def test_one_class_writer_finishes_and_the_others_go_on(platform: Platform) -> None:
    code, writer = platform.class_codes.pop(), os.urandom(16)
    async with platform.session(code, writer=writer) as session, platform.session(code) as other:
        await session.open()
        await other.open()
        await session.choose("A", seat=1)
        await session.finish()
        await session.finished()
        await other.choose("B", seat=2)
        await other.acked()
    async with platform.session(code, writer=writer) as session:
        assert (await session.open()).read_only


async def test_nothing_that_clients_did_wrong_was_an_internal_error(platform: Platform) -> None:
    assert platform.nodes[0].faults() == []

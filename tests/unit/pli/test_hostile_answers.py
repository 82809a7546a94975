"""Answers that no pupil gives: each rejected for its reason, quickly, and none of them an error."""

from __future__ import annotations

import math
from time import process_time

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from pli.ingest.v1.ingest_pb2 import Answer, Choices, Cleared, RejectReason
from pli.instrument import AnswerRules
from pli.vault.v1.bundle_pb2 import ItemType, PublicInstrument, PublicItem

RULES = AnswerRules(
    PublicInstrument(
        version="1",
        items=[
            PublicItem(id="choice", type=ItemType.ITEM_TYPE_CHOICE, options=["A", "B"]),
            PublicItem(id="choices", type=ItemType.ITEM_TYPE_CHOICES, options=["A", "B", "C"]),
            PublicItem(id="text", type=ItemType.ITEM_TYPE_TEXT),
            PublicItem(id="number", type=ItemType.ITEM_TYPE_NUMBER),
        ],
    )
)
ACUTE = "\u0301"


def verdict(answer: Answer, seats: int = 0) -> str:
    return RejectReason.Name(RULES.check(answer, seats)).removeprefix("REJECT_REASON_")


def number(text: str) -> Answer:
    return Answer(item_id="number", number=text)


def text(content: str) -> Answer:
    return Answer(item_id="text", text=content)


@pytest.mark.parametrize(
    "typed",
    [
        "NaN", "nan", "inf", "Infinity", "-inf", str(math.inf), "1e400", "0x10", "1_000", "1/3", "١٢", "½", "²", "1 2",
        "1\0", "\u22121", "1.2,3", "+", "-", ",", "+-1", "1+", "\ufeff1", "1\u200b", "one",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_number_is_rejected(typed: str) -> None:
    assert verdict(number(typed)) == "BAD_NUMBER"


def test_400_digits_are_too_long_and_32_are_not() -> None:
    assert verdict(number("9" * 400)) == "TOO_LONG"
    assert verdict(number("9" * 33)) == "TOO_LONG"
    assert verdict(number("9" * 32)) == "UNSPECIFIED"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\0b", "BAD_TEXT"),
        ("\0", "BAD_TEXT"),
        ("user\u202egnp.exe", "BAD_TEXT"),
        ("\u2066hidden\u2069", "BAD_TEXT"),
        ("\x1b[2Jcleared", "BAD_TEXT"),
        ("e" + ACUTE * 31, "BAD_TEXT"),
        (ACUTE * 4_096, "BAD_TEXT"),
        (ACUTE * 100_000, "TOO_LONG"),
        ("x" * 8_192, "UNSPECIFIED"),
        ("x" * 8_193, "TOO_LONG"),
        ("é" * 4_096, "UNSPECIFIED"),
        ("é" * 4_096 + "x", "TOO_LONG"),
        ("👩" * 2_048, "UNSPECIFIED"),
        ("👩" * 2_048 + "x", "TOO_LONG"),
        ("\ufdfa" * 2_730, "UNSPECIFIED"),
        ("<script>alert(1)</script>", "UNSPECIFIED"),
        ("=cmd|' /C calc'!A0", "UNSPECIFIED"),
        ("'; DROP TABLE pupils; --", "UNSPECIFIED"),
        ("{{7*7}} ${7*7} %s %n", "UNSPECIFIED"),
        ("[red]markup[/red]", "UNSPECIFIED"),
    ],
)
def test_text_is_rejected_for_its_characters_or_length_and_for_nothing_else(content: str, expected: str) -> None:
    assert verdict(text(content)) == expected


def test_a_lone_surrogate_never_reaches_the_rules() -> None:
    with pytest.raises(UnicodeEncodeError):
        text("\ud800").SerializeToString()
    with pytest.raises(DecodeError):
        Answer.FromString(b"\x1a\x03\xed\xa0\x80")


@pytest.mark.parametrize("answer", [text(ACUTE * 8_192), text("\u4e00" * 2_730), number("9" * 1_000_000)])
def test_a_hostile_answer_costs_microseconds(answer: Answer) -> None:
    started = process_time()
    for _ in range(20):
        RULES.check(answer, 0)
    assert process_time() - started < 1.0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "UNSPECIFIED"),
        (["A", "B", "C"], "UNSPECIFIED"),
        (["A", "A"], "UNKNOWN_OPTION"),
        (["A", "Z"], "UNKNOWN_OPTION"),
        ([""], "UNKNOWN_OPTION"),
        (["A;B"], "UNKNOWN_OPTION"),
        (["\uff21"], "UNKNOWN_OPTION"),
        (["A"] * 65, "TOO_LONG"),
        (["x" * 100_000], "UNKNOWN_OPTION"),
        ([str(n) for n in range(100_000)], "TOO_LONG"),
    ],
)
def test_options_are_those_offered_each_once(options: list[str], expected: str) -> None:
    assert verdict(Answer(item_id="choices", choices=Choices(options=options))) == expected


@pytest.mark.parametrize("item_id", ["", "other", "CHOICE", "choice ", "choice\0", "x" * 100_000, "\u0441hoice"])
def test_an_item_that_is_not_in_the_instrument_is_unknown(item_id: str) -> None:
    assert verdict(Answer(item_id=item_id, cleared=Cleared())) == "UNKNOWN_ITEM"


def test_of_two_values_in_one_message_the_last_one_counts() -> None:
    both = text("written").SerializeToString() + Answer(choices=Choices(options=["A"])).SerializeToString()
    answer = Answer.FromString(both)
    assert answer.WhichOneof("value") == "choices"
    assert verdict(answer) == "WRONG_TYPE"


@pytest.mark.parametrize("seat", [1, 2, 36, 2**32 - 1])
def test_a_pupil_session_has_no_seat(seat: int) -> None:
    assert verdict(Answer(item_id="choice", choices=Choices(options=["A"]), seat=seat)) == "UNKNOWN_SEAT"


@pytest.mark.parametrize("elapsed_ms", [0, 1, 2**32 - 1])
def test_the_time_of_a_client_is_advisory_and_never_a_reason(elapsed_ms: int) -> None:
    assert verdict(Answer(item_id="choice", choices=Choices(options=["A"]), elapsed_ms=elapsed_ms)) == "UNSPECIFIED"


@given(st.binary(max_size=60), st.integers(0, 40))
def test_whatever_decodes_gets_a_verdict(wire: bytes, seats: int) -> None:
    try:
        answer = Answer.FromString(wire)
    except DecodeError:
        return
    assert RULES.check(answer, seats) in RejectReason.values()

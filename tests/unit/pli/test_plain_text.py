"""Which characters text from people may hold."""

from __future__ import annotations

import unicodedata
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.plain_text import MAX_MARKS, has_forbidden_text

ACUTE = "\u0301"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Une réponse,\n\tsur deux lignes",
        "L\u2019Hôte",
        "日本語",
        "نص عربي مع تشكيل مُشَكَّل",
        "हिन्दी में उत्तर",
        "ภาษาไทยที่มีวรรณยุกต์",
        "👩\u200d🏫 👍🏽",
        "e" + ACUTE * MAX_MARKS,
        ("e" + ACUTE * MAX_MARKS) * 100,
        "\u200e\u200f\u00a0\u00ad",
    ],
)
def test_what_people_write_in_any_language_is_allowed(text: str) -> None:
    assert not has_forbidden_text(text)


def test_of_the_controls_only_line_feed_and_tab_are_allowed() -> None:
    controls = {chr(point) for point in range(0x110000) if unicodedata.category(chr(point)) == "Cc"}
    assert {character for character in controls if not has_forbidden_text(f"a{character}b")} == {"\n", "\t"}


def test_every_override_embedding_and_isolate_of_direction_is_refused() -> None:
    directing = {
        chr(point)
        for point in range(0x110000)
        if unicodedata.bidirectional(chr(point)) in {"LRO", "RLO", "LRE", "RLE", "PDF", "LRI", "RLI", "FSI", "PDI"}
    }
    assert len(directing) == 9
    assert all(has_forbidden_text(f"a{character}b") for character in directing)


@pytest.mark.parametrize("mark", [ACUTE, "\u20dd", "\u0e34", "\U000e0100", "\u0903"])
@pytest.mark.parametrize("before", ["", "e", "\u4e00" * 50])
def test_a_run_of_marks_longer_than_a_stream_safe_one_is_refused(mark: str, before: str) -> None:
    assert not has_forbidden_text(before + mark * MAX_MARKS)
    assert has_forbidden_text(before + mark * (MAX_MARKS + 1))
    assert has_forbidden_text(before + "e" * 100 + mark * (MAX_MARKS + 1) + "e")


@pytest.mark.parametrize("text", [ACUTE * 100_000, ("e" + ACUTE * 30) * 3_000, "\u4e00" * 100_000, "\u4e00" * 30 + "e"])
def test_hostile_text_costs_no_more_than_its_length(text: str) -> None:
    started = process_time()
    has_forbidden_text(text)
    assert process_time() - started < 1.0, "a scan of 100 000 characters takes milliseconds unless it is quadratic"


@given(st.text())
def test_a_text_is_refused_exactly_when_one_of_its_lines_is(text: str) -> None:
    assert has_forbidden_text(text) == any(map(has_forbidden_text, text.split("\n")))

"""Scores: by hand-made expectations, by rule, and on real pupils where PLI_REAL_DATA names the folder."""

from __future__ import annotations

import csv
import os
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.ingest.v1.ingest_pb2 import Answer, Choices, Cleared, Presence
from pli.instrument import answer_from_text
from pli.responses import parse_responses
from vault.instrument import Instrument, parse_instrument
from vault.results_csv import write_results
from vault.roster import parse_roster
from vault.scoring import Result, Scorer

SMALL = Path(__file__).parents[1] / "data" / "small"
FOLDERS = [SMALL, *(Path(name) for name in [os.environ.get("PLI_REAL_DATA")] if name)]


def scored_as(item: str, *cells: str) -> list[Decimal | None]:
    """What each cell is worth in an instrument of this one item."""
    instrument = one_item(item)
    (public,) = instrument.public_part().items
    scorer = Scorer(instrument)
    return [scorer.score({"i": answer_from_text(public, cell)}).scores[0] for cell in cells]


def one_item(item: str) -> Instrument:
    text = f'id = "x"\ntitle = "X"\nversion = "1"\n[[item]]\nid = "i"\ndomain = "d"\n{item}'
    return parse_instrument(text.encode(), "instrument.toml")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_given_responses_get_the_expected_scores(folder: Path) -> None:
    instrument = parse_instrument((folder / "instrument.toml").read_bytes(), "instrument.toml")
    roster = parse_roster([(folder / "roster.csv").read_bytes()], "roster.csv", date(2026, 9, 1))
    public = instrument.public_part()
    items = {item.id: item for item in public.items}
    known = {pupil.pupil_id for pupil in roster.pupils}
    responses = parse_responses((folder / "responses.csv").read_bytes(), "responses.csv", public, known)
    scorer = Scorer(instrument)

    def result(pupil_id: str) -> Result:
        given = responses.get(pupil_id, [])
        return scorer.score({item_id: answer_from_text(items[item_id], cell) for item_id, cell in given})

    written = b"".join(
        write_results(((pupil.pupil_id, result(pupil.pupil_id)) for pupil in roster.pupils), list(items))
    )
    without_maximum = [row[:2] + row[3:] for row in csv.reader(written.decode().splitlines())]
    assert len(without_maximum) == len(roster.pupils) + 1
    assert without_maximum == list(csv.reader((folder / "expected_scores.csv").read_text().splitlines()))


def test_a_choice_is_worth_the_points_of_its_option() -> None:
    item = 'type = "choice"\noptions = ["A", "B", "C"]\nscores = { "A" = 2, "B" = 0.5 }'
    assert scored_as(item, "A", "B", "C", "D") == [2, Decimal("0.5"), 0, 0]


def test_choices_count_as_a_set_and_only_when_exact() -> None:
    item = 'type = "choices"\noptions = ["A", "B", "C"]\nkey = ["C", "A"]'
    assert scored_as(item, "A;C", "C;A", "A", "A;B;C", "A;C;C") == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "cell", ["L'été", "l'ÉTÉ", "  l'été\t", "l'e\u0301te\u0301", "L'E\u0301TÉ", "\u00a0l'été\u202f"]
)
def test_texts_are_compared_without_case_blanks_and_composition(cell: str) -> None:
    assert scored_as('type = "text"\nkey = "l\'été"', cell) == [1]


@pytest.mark.parametrize("cell", ["l'ete", "l été", "l'étés", "l'é té"])
def test_other_texts_are_worth_nothing(cell: str) -> None:
    assert scored_as('type = "text"\nkey = "l\'été"', cell) == [0]


def test_inner_blanks_of_a_text_are_collapsed() -> None:
    assert scored_as('type = "text"\nkey = "en plein  été"', "en  plein\u00a0 été", "enplein été") == [1, 0]


def test_a_number_counts_within_its_tolerance_and_not_beyond() -> None:
    item = 'type = "number"\nkey = 0.3\ntolerance = 0.1'
    assert scored_as(item, "0.4", "0,2", ".3", "0.4000000000000000000000000001", "0.19", "-0.3") == [
        1,
        1,
        1,
        0,
        0,
        0,
    ]


def test_digits_beyond_the_usual_precision_count() -> None:
    item = 'type = "number"\nkey = "1234567890123456789012345678901"'
    assert scored_as(item, "1234567890123456789012345678901", "1234567890123456789012345678902") == [1, 0]


def test_a_number_near_two_keys_gets_the_higher_score() -> None:
    item = 'type = "number"\nscores = { "10" = 1, "11" = 2 }\ntolerance = 1'
    assert scored_as(item, "10", "9", "12", "8") == [2, 1, 2, 0]


@pytest.mark.parametrize("cell", ["NaN", "inf", "-Infinity", "1e1", "1_0", "\u0661\u0660", "", "+", "0x0A"])
def test_what_is_not_a_number_is_worth_nothing(cell: str) -> None:
    assert scored_as('type = "number"\nkey = 10\ntolerance = 100', cell) == [0]


@pytest.mark.parametrize("answer", [Answer(cleared=Cleared()), Answer(), Answer(blob=b"A"), Answer(number="0")])
@pytest.mark.parametrize(
    "item",
    [
        'type = "choice"\noptions = ["A"]\nkey = "A"',
        'type = "choices"\noptions = ["A"]\nkey = ["A"]',
        'type = "text"\nkey = "A"',
    ],
)
def test_cleared_missing_and_foreign_values_are_worth_nothing(item: str, answer: Answer) -> None:
    assert Scorer(one_item(item)).score({"i": answer}).total == 0


def test_no_number_at_all_is_not_the_number_zero() -> None:
    scorer = Scorer(one_item('type = "number"\nkey = 0'))
    assert scorer.score({"i": Answer(cleared=Cleared())}).total == 0
    assert scorer.score({"i": Answer(number="0")}).total == 1


@pytest.mark.parametrize("presence", [Presence.PRESENCE_ABSENT, Presence.PRESENCE_EXEMPT])
def test_the_absent_and_exempt_have_no_score_at_all(presence: Presence.ValueType) -> None:
    instrument = parse_instrument((SMALL / "instrument.toml").read_bytes(), "instrument.toml")
    result = Scorer(instrument).score({"fra-01": Answer(choices=Choices(options=["C"]))}, presence)
    assert result.scores == (None,) * 10
    assert result.total is None
    assert result.group is None
    assert [domain.score for domain in result.domains] == [None, None]
    assert result.max_score == 15


def test_domains_add_up_to_the_total() -> None:
    instrument = parse_instrument((SMALL / "instrument.toml").read_bytes(), "instrument.toml")
    given = {"fra-02": Answer(choices=Choices(options=["verbe"])), "mat-09": Answer(number="20,4")}
    result = Scorer(instrument).score(given, Presence.PRESENCE_PRESENT)
    assert [(domain.domain, domain.score, domain.max_score) for domain in result.domains] == [
        ("français", Decimal("0.5"), Decimal(10)),
        ("mathématiques", Decimal(2), Decimal(5)),
    ]
    assert result.total == Decimal("2.5")


def test_a_group_begins_exactly_at_its_share() -> None:
    options = ", ".join(f'"{points}"' for points in range(10))
    scores = ", ".join(f'"{points}" = {points}' for points in range(10))
    item = f'type = "choice"\noptions = [{options}]\nscores = {{ {scores} }}\nmax_score = 10\n'
    groups = "".join(
        f'[[group]]\nname = "{name}"\nfrom = {share}\n' for name, share in [("a", 0), ("b", 0.3), ("c", 0.7)]
    )
    scorer = Scorer(one_item(item + groups))
    reached = [scorer.score({"i": Answer(choices=Choices(options=[str(n)]))}).group for n in range(10)]
    assert "".join(group or "-" for group in reached) == "aaabbbbccc"


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_answer_scores_within_its_item(text: str, number: str) -> None:
    instrument = parse_instrument((SMALL / "instrument.toml").read_bytes(), "instrument.toml")
    final = {item.id: Answer(text=text) if item.type == 3 else Answer(number=number) for item in instrument.items}
    result = Scorer(instrument).score(final)
    for item, score in zip(instrument.items, result.scores, strict=True):
        assert score is not None
        assert 0 <= score <= item.max_score


def test_neither_results_nor_their_parts_print_scores() -> None:
    result = Scorer(one_item('type = "text"\nkey = "A"')).score({"i": Answer(text="A")})
    assert repr(result) == "<Result>"
    assert repr(result.domains[0]) == "<DomainScore d>"

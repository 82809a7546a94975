"""`responses.csv` and `codes.csv`: each fault refused with place and rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.errors import Fault, InputError
from pli.instrument import ACCEPTED, AnswerRules, answer_from_text, read_public_part
from pli.responses import parse_codes, parse_responses
from pli.vault.v1.bundle_pb2 import ItemType, PublicInstrument, PublicItem

SMALL = Path(__file__).parents[1] / "data" / "small"
PUBLIC = PublicInstrument(
    items=[
        PublicItem(id="a", type=ItemType.ITEM_TYPE_CHOICE, options=["A", "B"]),
        PublicItem(id="b", type=ItemType.ITEM_TYPE_CHOICES, options=["A", "B"]),
        PublicItem(id="c", type=ItemType.ITEM_TYPE_TEXT, max_length=5),
        PublicItem(id="d", type=ItemType.ITEM_TYPE_NUMBER),
    ]
)


def parse(text: str) -> dict[str, list[tuple[str, str]]]:
    return parse_responses(text.encode(), "r.csv", PUBLIC, ["P1", "P2", "P3"])


def faults_of(text: str) -> list[Fault]:
    with pytest.raises(InputError) as caught:
        parse(text)
    return list(caught.value.faults)


def test_responses_keep_the_order_of_rows_and_columns_and_leave_empty_cells_out() -> None:
    responses = parse('pupil_id,d,a,c,b\nP2,"1,5",A,,B;A\nP1,,,,\n')
    assert list(responses.items()) == [("P2", [("d", "1,5"), ("a", "A"), ("b", "B;A")]), ("P1", [])]


def test_all_that_is_read_is_what_a_node_accepts() -> None:
    public = read_public_part((SMALL / "instrument.toml").read_bytes(), "instrument.toml")
    known = {f"E{number:02}" for number in range(1, 13)}
    responses = parse_responses((SMALL / "responses.csv").read_bytes(), "responses.csv", public, known)
    rules, items = AnswerRules(public), {item.id: item for item in public.items}
    answers = [answer_from_text(items[item], cell) for given in responses.values() for item, cell in given]
    assert len(answers) == 95
    assert {rules.check(answer, 0) for answer in answers} == {ACCEPTED}


@pytest.mark.parametrize(
    ("text", "line", "column", "value", "rule"),
    [
        ("pupil_id,a,b,c,d\nP1,A,,,\nP9,A,,,\n", 3, "pupil_id", "P9", "no pupil of this id in the roster"),
        ("pupil_id,a,b,c,d,e\nP1,A,,,,\n", 1, "e", "", "no item of this id"),
        ("pupil_id,a,b,c\nP1,A,,\n", 1, "d", "", "must name this column"),
        ("a,b,c,d\nA,,,\n", 1, "pupil_id", "", "must name this column"),
        ("pupil_id,a,b,c,d,a\nP1,A,,,,\n", 1, "a", "", "twice"),
        ("pupil_id,a,b,c,d\nP1,C,,,\n", 2, "a", "C", "an option that the item does not offer"),
        ("pupil_id,a,b,c,d\nP1,A;B,,,\n", 2, "a", "A;B", "an option that the item does not offer"),
        ("pupil_id,a,b,c,d\nP1,,A;C,,\n", 2, "b", "A;C", "an option that the item does not offer"),
        ("pupil_id,a,b,c,d\nP1,,A;A,,\n", 2, "b", "A;A", "named twice"),
        ("pupil_id,a,b,c,d\nP1,,,abcdef,\n", 2, "c", "abcdef", "longer"),
        ("pupil_id,a,b,c,d\nP1,,,a\u202eb,\n", 2, "c", "a\u202eb", "direction override"),
        ("pupil_id,a,b,c,d\nP1,,,,1e3\n", 2, "d", "1e3", "not a number"),
        (
            "pupil_id,a,b,c,d\nP1,A,,,\nP2,,,,\nP1,B,,,\n",
            4,
            "pupil_id",
            "P1",
            "the first of this pupil is on line 2",
        ),
        ("pupil_id,a,b,c,d\nP1,A,,\n", 2, "", "", "4 fields where the header has 5"),
        ("pupil_id,a,b,c,d\nP1,A,,,,\n", 2, "", "", "6 fields where the header has 5"),
        ("pupil_id;a;b;c;d\n", 1, "", "pupil_id;a;b;c;d", "semicolons"),
    ],
)
def test_a_wrong_file_is_refused_with_place_and_rule(text: str, line: int, column: str, value: str, rule: str) -> None:
    (fault,) = faults_of(text)
    assert (fault.file, fault.line, fault.column, fault.value) == ("r.csv", line, column, value)
    assert rule in fault.rule


def test_all_faults_of_a_file_are_told_at_once() -> None:
    faults = faults_of("pupil_id,a,b,c,d\nP1,C,,,x\nP8,A,,,\nP2,A\n")
    assert [(fault.line, fault.column) for fault in faults] == [(2, "a"), (2, "d"), (3, "pupil_id"), (4, "")]


@given(st.lists(st.text(alphabet='aAB,;"\n1', max_size=4), min_size=4, max_size=4))
def test_any_cells_are_either_refused_or_acceptable_to_a_node(cells: list[str]) -> None:
    quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    verdicts = [
        AnswerRules(PUBLIC).check(answer_from_text(item, cell), 0) == ACCEPTED
        for item, cell in zip(PUBLIC.items, cells, strict=True)
    ]
    text = f"pupil_id,a,b,c,d\nP1,{quoted}\n"
    if all(verdicts):
        assert parse(text)["P1"] == [(item.id, cell) for item, cell in zip(PUBLIC.items, cells, strict=True) if cell]
    else:
        assert len(faults_of(text)) == verdicts.count(False)


def test_codes_are_read_in_order() -> None:
    assert list(parse_codes(b"pupil_id,code\nP2,X\n'=P1,Y\n", "codes.csv").items()) == [
        ("P2", "X"),
        ("=P1", "Y"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        (b"pupil_id,code\nP1,SECRET\nP1,SECRET\n", 3, "duplicate"),
        (b"pupil_id,code\nP1,\n", 2, "empty"),
        (b"pupil_id\nP1\n", 1, "must name"),
        (b"pupil_id,code\nP1,SECRET,SECRET\n", 2, "3 fields"),
    ],
)
def test_wrong_codes_files_are_refused_without_showing_a_code(text: bytes, line: int, rule: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_codes(text, "codes.csv")
    assert caught.value.faults[0].line == line
    assert rule in caught.value.faults[0].rule
    assert "SECRET" not in caught.value.message

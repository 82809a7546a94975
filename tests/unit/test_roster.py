"""Rosters: refused whole with the place of every fault, or taken whole."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.errors import Fault, InputError
from vault.roster import Pupil, Roster, parse_roster

SMALL = (Path(__file__).parents[1] / "data" / "small" / "roster.csv").read_bytes()
TODAY = date(2026, 9, 1)
HEADER = "school_id,school_name,class_id,class_name,pupil_id,family_name,given_name,birth_date,sex\n"
ROW = ["S1", "École", "C1", "6e A", "P1", "Ba", "Zoé", "2015-01-01", "F"]


def csv_of(*rows: list[str]) -> bytes:
    return (HEADER + "".join(",".join(row) + "\n" for row in rows)).encode()


def row(**changes: str) -> list[str]:
    names = HEADER.strip().split(",")
    return [changes.get(name, value) for name, value in zip(names, ROW, strict=True)]


def parse(content: bytes) -> Roster:
    return parse_roster([content], "roster.csv", TODAY)


def faults_of(content: bytes) -> list[Fault]:
    with pytest.raises(InputError) as caught:
        parse(content)
    assert caught.value.total >= len(caught.value.faults)
    return list(caught.value.faults)


def test_a_clean_roster_is_read_in_the_order_of_the_file() -> None:
    roster = parse(SMALL)
    assert [pupil.pupil_id for pupil in roster.pupils] == [f"E{number:02}" for number in range(1, 13)]
    assert roster.classes == {"6A": "0130001A", "6B": "0130001A", "6C": "2A00002B", "6D": "9740003C"}
    assert roster.schools["2A00002B"] == 'Collège "Le Maquis", annexe'
    assert roster.pupils[0] == Pupil(
        "0130001A", "Collège Émile-Zola", "6A", "6e A", "E01", "Bäcker", "Zoé", date(2015, 2, 28), "F"
    )
    assert roster.pupils[1].family_name == "L\u2019Hôte, de"
    assert roster.pupils[5].family_name == 'd"Artagnan'
    assert roster.pupils[6].family_name == "=SUM(A1)"
    assert roster.pupils[10].class_name == "6e D\r\n(matin)"


@given(st.integers(1, 64))
def test_pieces_of_any_size_give_the_same_roster(size: int) -> None:
    content = b"\xef\xbb\xbf" + SMALL
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    assert parse_roster(pieces, "roster.csv", TODAY) == parse(SMALL)


def test_bom_crlf_blank_lines_and_a_missing_last_line_end_are_accepted() -> None:
    plain = csv_of(row(), row(pupil_id="P2"))
    assert parse(b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n")) == parse(plain)
    assert parse(plain.rstrip(b"\n")) == parse(plain + b"\r\n\n") == parse(plain)


def test_columns_go_by_name_and_others_are_ignored() -> None:
    names = [*reversed(HEADER.strip().split(",")), "note"]
    content = ",".join(names) + "\n" + ",".join([*reversed(ROW), "x"]) + "\n"
    assert parse(content.encode()) == parse(csv_of(row()))


@pytest.mark.parametrize("sex", ["F", "M", "X", ""])
def test_sex_may_be_left_empty(sex: str) -> None:
    assert parse(csv_of(row(sex=sex))).pupils[0].sex == sex


@pytest.mark.parametrize(
    "name", ["d'Éon", "O\u2019Neill", "=1+1", "@x", "x" * 200, "Nguyễn", "de\u00a0la\u00a0Tour", "李"]
)
def test_names_of_all_kinds_are_taken_as_they_are(name: str) -> None:
    assert parse(csv_of(row(family_name=name))).pupils[0].family_name == name


def test_born_today_is_not_in_the_future() -> None:
    assert parse(csv_of(row(birth_date="2026-09-01"))).pupils[0].birth_date == TODAY


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("birth_date", "2015-02-31", "no such date"),
        ("birth_date", "2015-02-29", "no such date"),
        ("birth_date", "2026-09-02", "in the future"),
        ("birth_date", "20150101", "YYYY-MM-DD"),
        ("birth_date", "01/02/2015", "YYYY-MM-DD"),
        ("birth_date", "", "must not be empty"),
        ("family_name", "", "must not be empty"),
        ("given_name", "  ", "must not be empty"),
        ("school_name", "", "must not be empty"),
        ("pupil_id", "", "must not be empty"),
        ("family_name", "x" * 201, "more than 200 characters"),
        ("class_name", "é" * 201, "more than 200 characters"),
        ("given_name", "Zo\0é", "NUL"),
        ("given_name", "Zo\x07", "control character"),
        ("given_name", "Zo\u202eé", "direction override"),
        ("pupil_id", "P1 ", "blank"),
        ("class_id", '"C\n1"', "line end"),
        ("sex", "f", "F, M, X or empty"),
        ("sex", "1", "F, M, X or empty"),
    ],
)
def test_a_wrong_cell_is_named_with_line_column_value_and_rule(column: str, value: str, rule: str) -> None:
    (fault,) = faults_of(csv_of(row(pupil_id="P0"), row(**{column: value})))
    assert (fault.file, fault.line, fault.column) == ("roster.csv", 3, column)
    assert fault.value[:60] == value.strip('"')[:60]
    assert rule in fault.rule


def test_a_duplicate_pupil_names_the_first_line() -> None:
    (fault,) = faults_of(csv_of(row(), row(pupil_id="P2"), row()))
    assert (fault.line, fault.column, fault.value) == (4, "pupil_id", "P1")
    assert fault.rule == "duplicate pupil; the first is on line 2"


def test_a_pupil_in_two_classes_is_refused() -> None:
    (fault,) = faults_of(csv_of(row(), row(class_id="C2")))
    assert (fault.line, fault.column, fault.value) == (3, "pupil_id", "P1")
    assert fault.rule == "one pupil in two classes; the other one is on line 2"


def test_one_class_in_two_schools_is_refused() -> None:
    (fault,) = faults_of(csv_of(row(), row(pupil_id="P2", school_id="S2")))
    assert (fault.line, fault.column, fault.value) == (3, "class_id", "C1")
    assert fault.rule == "one class in two schools; it is in another one on line 2"


def test_lines_are_counted_through_quoted_line_ends() -> None:
    first = row(school_name='"a\r\nb\r\nc"')
    second = row(pupil_id="P2", school_name='"a\nb"', given_name="")
    (fault,) = faults_of(csv_of(first, second))
    assert (fault.line, fault.column) == (6, "given_name")


@pytest.mark.parametrize(("cells", "count"), [(8, 8), (10, 10), (1, 1)])
def test_a_ragged_row_is_refused(cells: int, count: int) -> None:
    (fault,) = faults_of(csv_of([*row(), "x"][:cells], row(pupil_id="P2")))
    assert fault.line == 2
    assert fault.rule == f"the row has {count} fields where the header has 9"


def test_missing_and_repeated_columns_are_all_named() -> None:
    faults = faults_of(b"school_id,class_id,class_id,pupil_id,family_name,given_name,birth_date,sex\n")
    assert {fault.column for fault in faults} == {"school_name", "class_name", "class_id"}
    assert {fault.line for fault in faults} == {1}


def test_a_file_without_header_is_refused() -> None:
    assert len(faults_of(csv_of(row()).split(b"\n", 1)[1])) == 9


def test_semicolons_instead_of_commas_are_named() -> None:
    (fault,) = faults_of(csv_of(row()).replace(b",", b";"))
    assert "not by semicolons" in fault.rule


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(content: bytes) -> None:
    assert "the file is empty" in faults_of(content)[0].rule


def test_a_header_alone_is_refused() -> None:
    assert faults_of(HEADER.encode())[0].rule == "there is no pupil in the file"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named(encoding: str) -> None:
    (fault,) = faults_of(csv_of(row()).decode().encode(encoding))
    assert fault.line == 1
    assert "this is UTF-16" in fault.rule


def test_latin1_is_named_at_each_cell() -> None:
    content = csv_of(row(given_name="Lea"), row(pupil_id="P2")).decode().encode("latin-1")
    faults = faults_of(content)
    assert [(fault.line, fault.column, fault.value) for fault in faults] == [
        (2, "school_name", "École"),
        (3, "school_name", "École"),
        (3, "given_name", "Zoé"),
    ]
    assert "looks like Latin-1" in faults[0].rule


def test_a_header_in_latin1_is_refused() -> None:
    faults = faults_of((HEADER.strip() + ",élève\n").encode("latin-1"))
    assert [(fault.line, fault.value) for fault in faults] == [(1, "élève")]


@pytest.mark.parametrize(
    ("cell", "rule"),
    [('"never closed', "never closed"), ('"a"b', "only a comma"), ("a\rb", "carriage return stands alone")],
)
def test_broken_csv_is_refused_at_the_line_where_it_breaks(cell: str, rule: str) -> None:
    fault = faults_of(csv_of(row(), row(pupil_id="P2", given_name=cell), row(pupil_id="P3")))[-1]
    assert fault.line == 3
    assert rule in fault.rule


def test_all_faults_are_counted_and_the_first_twenty_shown() -> None:
    rows = [row(pupil_id=f"P{number}", sex="?", given_name="") for number in range(1_000)]
    with pytest.raises(InputError) as caught:
        parse(csv_of(*rows))
    assert caught.value.total == 2_000
    assert len(caught.value.faults) == 20
    assert {fault.line for fault in caught.value.faults} == set(range(2, 12))
    assert "… and 1980 more" in caught.value.message


def test_a_file_over_the_limit_is_refused_as_soon_as_it_is_passed() -> None:
    read: list[int] = []

    def endless() -> Iterator[bytes]:
        yield HEADER.encode()
        while True:
            read.append(len(read))
            yield csv_of(row(pupil_id=f"P{len(read)}"))[len(HEADER) :]

    with pytest.raises(InputError, match="larger than 5000 bytes"):
        parse_roster(endless(), "roster.csv", TODAY, max_bytes=5_000)
    assert len(read) < 200


def test_more_than_a_gigabyte_is_refused_by_its_size_alone() -> None:
    with pytest.raises(InputError, match="larger than 1000000000 bytes"):
        parse_roster([bytes(1_000_000_001)], "roster.csv", TODAY)


def test_a_line_without_end_is_refused_early() -> None:
    read: list[int] = []

    def endless() -> Iterator[bytes]:
        while True:
            read.append(len(read))
            yield b"x" * 65_536

    with pytest.raises(InputError, match="the line is longer"):
        parse_roster(endless(), "roster.csv", TODAY)
    assert len(read) < 20


def test_two_hundred_thousand_rows_are_accepted() -> None:
    def pieces() -> Iterator[bytes]:
        yield HEADER.encode()
        for start in range(0, 200_000, 1_000):
            yield "".join(
                f"S{n // 500},Collège {n // 500},C{n // 25},6e {n % 9},P{n},Éxemple-{n},Zoé,2015-01-{n % 28 + 1:02},F\n"
                for n in range(start, start + 1_000)
            ).encode()

    roster = parse_roster(pieces(), "roster.csv", TODAY)
    assert (len(roster.pupils), len(roster.classes), len(roster.schools)) == (200_000, 8_000, 400)
    assert roster.pupils[199_999].family_name == "Éxemple-199999"


def test_nothing_of_a_pupil_is_printed() -> None:
    roster = parse(SMALL)
    assert repr(roster) == "<Roster of 12 pupils, 4 classes, 3 schools>"
    assert repr(roster.pupils[:2]) == "[<Pupil>, <Pupil>]"

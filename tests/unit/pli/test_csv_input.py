"""CSV files from people: every fault with its place, and memory that no file can exhaust."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.csv_input import MAX_LINE_BYTES, MAX_ROW_BYTES, CsvRows
from pli.errors import Fault, InputError
from pli.faults import FaultList

HEADER = b"id,name\n"


def rows_of(content: bytes | Iterable[bytes], *, max_bytes: int = 10_000_000) -> list[tuple[int, list[str]]]:
    faults = FaultList("list.csv")
    rows = CsvRows([content] if isinstance(content, bytes) else content, faults, max_bytes=max_bytes)
    rows.columns(["id", "name"])
    found = list(rows)
    faults.raise_if_any()
    return found


def faults_of(content: bytes | Iterable[bytes], **limits: int) -> list[Fault]:
    with pytest.raises(InputError) as caught:
        rows_of(content, **limits)
    return list(caught.value.faults)


def fault_of(content: bytes | Iterable[bytes], **limits: int) -> Fault:
    (fault,) = faults_of(content, **limits)
    return fault


# What is taken


@pytest.mark.parametrize(
    "content",
    [
        b"id,name\n1,Zo\xc3\xa9\n2,L'H\xc3\xb4te\n",
        b"\xef\xbb\xbfid,name\r\n1,Zo\xc3\xa9\r\n2,L'H\xc3\xb4te\r\n",
        b"id,name\n1,Zo\xc3\xa9\n2,L'H\xc3\xb4te",
        b'\n"id","name"\n\n"1","Zo\xc3\xa9"\n\r\n2,"L\'H\xc3\xb4te"\n\n',
    ],
    ids=["plain", "BOM and CRLF", "no last line end", "quotes and empty lines"],
)
def test_the_usual_ways_to_write_a_file_mean_the_same(content: bytes) -> None:
    assert [row for _, row in rows_of(content)] == [["1", "Zoé"], ["2", "L'Hôte"]]


def test_rows_have_the_line_they_begin_on() -> None:
    content = HEADER + b'1,"a\r\nb\nc"\n\n2,"say ""yes"", please"\n3,\n'
    assert rows_of(content) == [(2, ["1", "a\r\nb\nc"]), (6, ["2", 'say "yes", please']), (7, ["3", ""])]


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)] * 2),
        max_size=8,
    ),
    st.integers(1, 40),
)
def test_what_the_standard_library_writes_is_read_in_pieces_of_any_size(rows: list[tuple[str, str]], size: int) -> None:
    text = StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("id", "name"), *rows])
    content = text.getvalue().encode()
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    assert [tuple(row) for _, row in rows_of(pieces)] == rows


def test_columns_stand_in_any_order_and_more_of_them_are_ignored() -> None:
    rows = CsvRows([b"x,name,y,id\n1,2,3,4\n"], FaultList("list.csv"))
    assert rows.columns(["id", "name"]) == [3, 1]


# What is refused, and where


@pytest.mark.parametrize(
    ("content", "line", "column", "rule"),
    [
        (b"", 1, "", "the file is empty"),
        (b"\xef\xbb\xbf", 1, "", "the file is empty"),
        (b"\n\n", 1, "", "the file is empty"),
        (b"id\n1\n", 1, "name", "must name this column"),
        (b"id;name\n1;Zo\n", 1, "", "separated by commas"),
        (b"id,name,id\n", 1, "id", "names this column twice"),
        (b"ID,name\n", 1, "id", "must name this column"),
        ("id,name\n1,Zoé\n".encode("utf-16"), 1, "", "UTF-16"),
        ("id,name\n1,Zoé\n".encode("utf-16-le"), 1, "", "UTF-16"),
        ("id,name\n1,Zoé\n".encode("utf-16-be"), 1, "", "UTF-16"),
        ("id,name\n1,Zoé\n".encode("latin-1"), 2, "name", "looks like Latin-1"),
        (b"id,n\xe9m\n", 1, "2", "looks like Latin-1"),
        (HEADER + b"1,a\n2\n", 3, "", "1 fields where the header has 2"),
        (HEADER + b"1,a\n2,b,c\n", 3, "", "3 fields where the header has 2"),
        (HEADER + b"1,a\n \n", 3, "", "1 fields where the header has 2"),
        (HEADER + b"1,a\0b\n", 2, "name", "NUL"),
        (b"id\0,name\n", 1, "1", "NUL"),
        (HEADER + b"1,a\r2,b\n", 2, "", "carriage return stands alone"),
        (HEADER + b'1,"a\n2,b\n', 2, "", "never closed"),
        (HEADER + b'1,"a" b\n', 2, "", "only a comma or the end of the line"),
        (HEADER + b'1,"' + b"x" * 140_000 + b'"\n', 2, "", "longer than"),
    ],
)
def test_a_fault_says_line_column_and_rule(content: bytes, line: int, column: str, rule: str) -> None:
    fault = fault_of(content)
    assert (fault.file, fault.line, fault.column) == ("list.csv", line, column)
    assert rule in fault.rule


def test_a_fault_in_a_row_over_several_lines_is_on_the_line_of_its_cell() -> None:
    assert fault_of(HEADER + b'"1\n2\n3",Zo\xe9\n').line == 4


def test_latin_1_is_shown_as_its_owner_meant_it() -> None:
    assert fault_of(HEADER + "1,Zoé\n".encode("latin-1")).value == "Zoé"


def test_every_faulty_row_is_noted_and_the_good_ones_between_them_read() -> None:
    faults = FaultList("list.csv")
    rows = CsvRows([HEADER + b"1\n2,a\n3,b,c\n4,d\n5,\xff\n"], faults)
    assert [row for _, row in rows] == [["2", "a"], ["4", "d"]]
    assert faults.total == 3


# Limits


def endless(first: bytes, piece: bytes, at_most: int) -> Iterator[bytes]:
    """A file without end; asking for more of it than `at_most` bytes is the fault to be found."""
    yield first
    taken = 0
    while True:
        taken += len(piece)
        assert taken <= at_most, "more was read than the limit allows"
        yield piece


def test_a_file_over_the_limit_is_refused_as_soon_as_the_limit_has_come() -> None:
    fault = fault_of(endless(HEADER, b"1,a\n" * 250, 51_000), max_bytes=50_000)
    assert (fault.line, fault.rule) == (0, "the file is larger than 50000 bytes")


@pytest.mark.parametrize("piece", [b"x" * 4_096, b'"' * 64])
def test_a_line_without_end_is_refused_before_it_is_held(piece: bytes) -> None:
    fault = fault_of(endless(HEADER + b"1,a\n2,", piece, MAX_LINE_BYTES + 4_096), max_bytes=1 << 40)
    assert (fault.line, fault.rule) == (3, f"the line is longer than {MAX_LINE_BYTES} bytes")


def test_a_row_without_end_over_many_lines_is_refused_before_it_is_held() -> None:
    fault = fault_of(endless(HEADER + b'1,a\n2,"', b'\n","' * 100, MAX_ROW_BYTES + 4_096), max_bytes=1 << 40)
    assert fault.line == 3
    assert fault.rule.startswith(f"the row that begins here is longer than {MAX_ROW_BYTES} bytes")


def test_a_header_of_a_million_empty_names_is_refused_at_once() -> None:
    assert fault_of(b"id,name" + b"," * 1_000_000 + b"\n").rule == "the header names this column twice"


def test_a_million_faults_are_counted_and_few_kept() -> None:
    with pytest.raises(InputError) as caught:
        rows_of(repeat_rows(b"1,a,b\n", 100_000))
    assert caught.value.total == 100_000
    assert len(caught.value.faults) == 20


def repeat_rows(row: bytes, times: int) -> Iterator[bytes]:
    yield HEADER
    for _ in range(times // 1_000):
        yield row * 1_000


@given(st.lists(st.binary(max_size=50), max_size=6))
def test_any_bytes_are_read_or_refused(pieces: list[bytes]) -> None:
    try:
        found = rows_of([HEADER, *pieces])
    except InputError:
        return
    assert all(len(row) == 2 and line >= 2 for line, row in found)

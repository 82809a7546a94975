"""CSV files that pli writes: no spreadsheet runs them, and every cell comes back."""

from __future__ import annotations

import csv
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.csv_input import CsvRows
from pli.csv_output import csv_chunks, neutralised, restored
from pli.faults import FaultList

CELLS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["=1+1", "'=1", "''", "-", "@x", "\t=1", "+A", "'", "''=1", "\uff1d1", "a\r\nb", 'say "yes"', "a;b", "\r", "\n"]
)


@pytest.mark.parametrize(
    "cell",
    [
        "=SUM(A1)", "+1", "-1", "@SUM", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", "\uff1dSUM(A1)",
        "\uff0b1", "\uff0d1", "\uff20x", "'=1", "''=1",
    ],
)  # fmt: skip
def test_a_cell_that_a_spreadsheet_would_run_begins_with_an_apostrophe(cell: str) -> None:
    assert neutralised(cell) == "'" + cell


@pytest.mark.parametrize("cell", ["", "12", "1-2", "a=b", "L'Hôte", "'quoted'", "0130001A", "Zoé", " "])
def test_any_other_cell_is_written_as_it_is(cell: str) -> None:
    assert neutralised(cell) == cell


@given(CELLS)
def test_every_cell_comes_back(cell: str) -> None:
    assert restored(neutralised(cell)) == cell


@given(st.lists(st.tuples(CELLS, CELLS.filter(bool)), max_size=10))
def test_what_is_written_is_read_by_us_and_by_others(rows: list[tuple[str, str]]) -> None:
    content = b"".join(csv_chunks(["id", "name"], rows))
    ours = [tuple(map(restored, row)) for _, row in CsvRows([content], FaultList("f"))]
    theirs = [tuple(map(restored, row)) for row in csv.reader(StringIO(content.decode(), newline=""), strict=True)][1:]
    assert ours == theirs == rows


def test_a_file_comes_in_pieces_and_ends_every_line_with_one_line_feed() -> None:
    pieces = list(csv_chunks(["id"], ([str(number)] for number in range(50_000))))
    assert len(pieces) > 3
    assert max(map(len, pieces)) < 70_000
    assert b"".join(pieces).split(b"\n") == [b"id", *(b"%d" % number for number in range(50_000)), b""]


def test_without_rows_there_is_still_a_header() -> None:
    assert b"".join(csv_chunks(["pupil_id", "=x"], [])) == b"pupil_id,'=x\n"

from __future__ import annotations

import csv
import io
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.csv_output import neutralised, restored
from pli.errors import IntegrityError
from pli.responses import parse_codes
from vault.results_csv import write_codes, write_results
from vault.scoring import Result


def result(*scores: str | None, maximum: str = "4") -> Result:
    points = tuple(None if score is None else Decimal(score) for score in scores)
    given = [score for score in points if score is not None]
    total = sum(given, Decimal(0)) if given else None
    return Result(points, total, Decimal(maximum), (), None)


def test_results_have_whole_numbers_without_decimals_and_nothing_for_the_absent() -> None:
    rows = [
        ("P1", result("1", "0.50", "2.0")),
        ("P2", result("0", "0.5", "0.5")),
        ("P3", result(None, None, None)),
        ("P4", result("1E+1", "0", "100.00", maximum="4.50")),
    ]
    assert b"".join(write_results(rows, ["a", "b", "c"])) == (
        b"pupil_id,score,max_score,a,b,c\nP1,3.5,4,1,0.5,2\nP2,1,4,0,0.5,0.5\nP3,,4,,,\nP4,110,4.5,10,0,100\n"
    )


def test_a_result_of_another_instrument_is_not_written() -> None:
    with pytest.raises(IntegrityError, match="2 items"):
        list(write_results([("P1", result("1", "1"))], ["a", "b", "c"]))


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_cells_that_a_spreadsheet_would_run_are_neutralised(first: str) -> None:
    written = b"".join(write_results([(first + "1+1", result("1"))], ["a"])).decode()
    (_, row) = csv.reader(io.StringIO(written, newline=""))
    assert row[0] == "'" + first + "1+1"


def test_ids_in_the_header_are_neutralised_too() -> None:
    assert b"".join(write_results([], ["=a"])) == b"pupil_id,score,max_score,'=a\n"


def test_plain_cells_are_left_alone() -> None:
    assert [neutralised(cell) for cell in ["P-1", "d'Artagnan", "'t Hooft", ""]] == [
        "P-1",
        "d'Artagnan",
        "'t Hooft",
        "",
    ]


@given(st.text(alphabet="'=+-@\t\r\nabé", max_size=6))
def test_neutralising_can_always_be_undone(cell: str) -> None:
    assert restored(neutralised(cell)) == cell
    assert neutralised(cell)[:1] not in {"=", "+", "-", "@", "\t", "\r", "\n"}


@given(st.dictionaries(st.text(alphabet="'=+-@,;\"\r\nPé1", min_size=1, max_size=5), st.just("ABCD-EFGH-JKMN")))
def test_exported_codes_read_back_for_any_pupil_id(codes: dict[str, str]) -> None:
    assert parse_codes(b"".join(write_codes(codes.items())), "codes.csv") == codes


def test_many_rows_come_in_pieces_that_make_one_file() -> None:
    pieces = list(write_codes((f"P{number:06}", "ABCD-EFGH-JKMN") for number in range(20_000)))
    assert len(pieces) > 3
    lines = b"".join(pieces).decode().split("\n")
    assert lines[0] == "pupil_id,code"
    assert lines[20_000] == "P019999,ABCD-EFGH-JKMN"
    assert lines[20_001:] == [""]

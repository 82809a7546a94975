"""The named files that leave the vault: `results.csv` and `codes.csv`.

`results.csv`: `pupil_id,score,max_score`, then one column per item in instrument order; rows in the
order they come (roster order). Whole numbers without decimals, others without trailing zeros. Not
answered is 0; of the absent and exempt, score and items are empty.

Cells that a spreadsheet would run are written with a leading apostrophe, which
`pli.csv_output.restored` takes away again: pupil ids stay unique and can be matched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal

from pli.csv_output import csv_chunks
from pli.errors import IntegrityError
from vault.scoring import Result


def write_results(rows: Iterable[tuple[str, Result]], item_ids: Sequence[str]) -> Iterator[bytes]:
    """The file in pieces, from (pupil id, result) pairs.

    Raises IntegrityError when a result was scored with another number of items.
    """
    return csv_chunks(
        ["pupil_id", "score", "max_score", *item_ids],
        (_result_row(pupil_id, result, len(item_ids)) for pupil_id, result in rows),
    )


def write_codes(rows: Iterable[tuple[str, str]]) -> Iterator[bytes]:
    """`pupil_id,code` in pieces, from (pupil id, code) pairs."""
    return csv_chunks(["pupil_id", "code"], rows)


def _result_row(pupil_id: str, result: Result, items: int) -> list[str]:
    if len(result.scores) != items:
        raise IntegrityError(
            f"a result has scores for {len(result.scores)} items, the instrument has {items}; score again"
        )
    return [pupil_id, _number(result.total), _number(result.max_score), *map(_number, result.scores)]


def _number(number: Decimal | None) -> str:
    if number is None:
        return ""
    written = format(number, "f")
    return written.rstrip("0").rstrip(".") if "." in written else written

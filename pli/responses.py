"""`responses.csv`: answers that were really given, replayed through client sessions.

`pupil_id`, then one column per item of the instrument; an empty cell is an item not answered;
options of a "choices" item are written `A;C`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from pli.csv_input import CsvRows
from pli.csv_output import restored
from pli.faults import FaultList
from pli.ingest.v1.ingest_pb2 import RejectReason
from pli.instrument import ACCEPTED, AnswerRules, answer_from_text
from pli.vault.v1.bundle_pb2 import PublicInstrument

RULES: Final[Mapping[RejectReason.ValueType, str]] = {
    RejectReason.REJECT_REASON_UNKNOWN_ITEM: "no item of this id in the instrument",
    RejectReason.REJECT_REASON_UNKNOWN_OPTION: "an option that the item does not offer, or one named twice",
    RejectReason.REJECT_REASON_TOO_LONG: "longer than the item allows",
    RejectReason.REJECT_REASON_BAD_NUMBER: "not a number: an optional sign, digits, one point or comma",
    RejectReason.REJECT_REASON_BAD_TEXT: "holds a control character, a direction override or too many marks",
}
"""Why a cell is refused; the node would reject the same answer for the same reason."""


def parse_responses(
    content: bytes, file_name: str, public: PublicInstrument, known_pupils: Collection[str]
) -> dict[str, list[tuple[str, str]]]:
    """Per pupil, in the order of the file, (item id, cell) of each answered item in column order.

    A pupil whose cells are all empty is there with an empty list. Raises InputError with every
    fault: unknown or repeated pupil, a column that is no item or an item without a column, a cell
    that a node would reject, ragged rows, and what `CsvRows` refuses.
    """
    faults = FaultList(file_name)
    rows = CsvRows([content], faults)
    (pupil_column,) = rows.columns(["pupil_id"])
    items = {item.id: item for item in public.items}
    for name in rows.header:
        if name != "pupil_id" and name not in items:
            faults.add(1, name, "", "no item of this id in the instrument")
    rows.columns([item.id for item in public.items])
    columns = [(index, items[name]) for index, name in enumerate(rows.header) if name in items]
    pupils = known_pupils if isinstance(known_pupils, set | frozenset | dict) else frozenset(known_pupils)
    rules = AnswerRules(public)
    first_line: dict[str, int] = {}
    responses: dict[str, list[tuple[str, str]]] = {}
    for line, row in rows:
        pupil_id = row[pupil_column]
        if pupil_id in first_line:
            rule = f"duplicate row; the first of this pupil is on line {first_line[pupil_id]}"
            rows.fault(line, row, pupil_column, rule)
        elif pupil_id not in pupils:
            rows.fault(line, row, pupil_column, "no pupil of this id in the roster")
        first_line.setdefault(pupil_id, line)
        given = responses[pupil_id] = []
        for index, item in columns:
            cell = row[index]
            if not cell:
                continue
            reason = rules.check(answer_from_text(item, cell), seats=0)
            if reason != ACCEPTED:
                rows.fault(line, row, index, RULES[reason])
            given.append((item.id, cell))
    faults.raise_if_any()
    return responses


def parse_codes(content: bytes, file_name: str) -> dict[str, str]:
    """`codes.csv` as the vault exports it: pupil id → code, in the order of the file.

    Raises InputError for a repeated pupil, an empty cell, and what `CsvRows` refuses; no code is
    shown in it.
    """
    faults = FaultList(file_name)
    rows = CsvRows([content], faults)
    pupil_column, code_column = rows.columns(["pupil_id", "code"])
    codes: dict[str, str] = {}
    for line, row in rows:
        pupil_id, code = restored(row[pupil_column]), row[code_column]
        if pupil_id in codes:
            rows.fault(line, row, pupil_column, "duplicate row for this pupil")
        elif not pupil_id or not code:
            faults.add(line, "code" if pupil_id else "pupil_id", "", "must not be empty")
        codes[pupil_id] = code
    faults.raise_if_any()
    return codes

"""`roster.csv`: schools, classes, pupils. Read whole, or refused whole.

Columns by header name, others ignored: `school_id, school_name, class_id, class_name, pupil_id,
family_name, given_name, birth_date, sex`. All but `sex` must be filled; none has more than 200
characters. Ids decide, names are labels: a class id belongs to one school, a pupil id to one class.
`birth_date` is ISO 8601 (YYYY-MM-DD) and not in the future; `sex` is F, M, X or empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from operator import itemgetter
from typing import Final

from pli.csv_input import MAX_FILE_BYTES, CsvRows
from pli.faults import FaultList
from pli.plain_text import has_forbidden_text

COLUMNS: Final = (
    "school_id",
    "school_name",
    "class_id",
    "class_name",
    "pupil_id",
    "family_name",
    "given_name",
    "birth_date",
    "sex",
)
MAX_CHARACTERS: Final = 200
SEXES: Final = frozenset({"F", "M", "X", ""})

_ID_COLUMNS = frozenset({"school_id", "class_id", "pupil_id"})
_ID_INDEXES = tuple(index for index, name in enumerate(COLUMNS) if name in _ID_COLUMNS)
_ISO_DATE = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True, slots=True, repr=False)
class Pupil:
    """One row. Its representation tells nothing of it."""

    school_id: str
    school_name: str
    class_id: str
    class_name: str
    pupil_id: str
    family_name: str
    given_name: str
    birth_date: date
    sex: str

    def __repr__(self) -> str:
        return "<Pupil>"


@dataclass(frozen=True, slots=True, repr=False)
class Roster:
    """All pupils in the order of the file, with what they are in."""

    pupils: list[Pupil]
    classes: dict[str, str]
    """Class id → school id, in the order of the file."""
    schools: dict[str, str]
    """School id → the first name that the file gives it."""

    def __repr__(self) -> str:
        counts = f"{len(self.pupils)} pupils, {len(self.classes)} classes, {len(self.schools)} schools"
        return f"<Roster of {counts}>"


def parse_roster(chunks: Iterable[bytes], file_name: str, today: date, *, max_bytes: int = MAX_FILE_BYTES) -> Roster:
    """Reads a roster that arrives in pieces of any size.

    Raises InputError with the first faults by line and the number of all, as soon as more than
    `max_bytes` have come, and otherwise when all was read.
    """
    faults = FaultList(file_name)
    rows = CsvRows(chunks, faults, max_bytes=max_bytes)
    reading = _Reading(rows, faults, today)
    pick = itemgetter(*reading.columns)
    for line, row in rows:
        reading.take(line, row, pick(row))
    if not reading.first_lines and not faults.total:
        faults.add(0, "", "", "there is no pupil in the file")
    faults.raise_if_any()
    return reading.roster


class _Reading:
    """The state of one pass over the file."""

    def __init__(self, rows: CsvRows, faults: FaultList, today: date) -> None:
        self.columns = rows.columns(COLUMNS)
        self.roster = Roster([], {}, {})
        self.first_lines: dict[str, tuple[int, str]] = {}
        self._class_lines: dict[str, int] = {}
        self._shared: dict[str, str] = {}
        self._dates: dict[str, date | None] = {}
        self._rows = rows
        self._faults = faults
        self._today = today

    def take(self, line: int, row: list[str], cells: tuple[str, ...]) -> None:
        school_id, school_name, class_id, class_name, pupil_id, family_name, given_name, born, sex = cells
        if self._needs_a_closer_look(cells):
            self._check_cells(line, row, cells)
        if born not in self._dates:
            self._dates[born] = _parsed_date(born)
        birth_date = self._dates[born]
        if birth_date is None:
            if born:
                self._fault(line, row, "birth_date", _date_rule(born))
        elif birth_date > self._today:
            self._fault(line, row, "birth_date", "the birth date is in the future")
        if sex not in SEXES:
            self._fault(line, row, "sex", "must be F, M, X or empty")
        self._check_places(line, row, school_id, class_id, pupil_id)
        # Once the file is sure to be refused, its names need not be kept any longer.
        if self._faults.total or birth_date is None:
            self.roster.pupils.clear()
            return
        share = self._shared.setdefault
        self.roster.schools.setdefault(school_id, school_name)
        self.roster.pupils.append(
            Pupil(
                share(school_id, school_id),
                share(school_name, school_name),
                share(class_id, class_id),
                share(class_name, class_name),
                pupil_id,
                family_name,
                share(given_name, given_name),
                birth_date,
                share(sex, sex),
            )
        )

    def _needs_a_closer_look(self, cells: tuple[str, ...]) -> bool:
        # One test of the whole row; almost every row ends here.
        text = "".join(cells)
        if not text.isprintable() or has_forbidden_text(text) or not all(cells[:8]):
            return True
        if len(text) > MAX_CHARACTERS and max(map(len, cells)) > MAX_CHARACTERS:
            return True
        return any(map(str.isspace, cells)) or any(" " in cells[index] for index in _ID_INDEXES)

    def _check_cells(self, line: int, row: list[str], cells: tuple[str, ...]) -> None:
        for name, cell in zip(COLUMNS, cells, strict=True):
            if not cell.strip():
                if name != "sex":
                    self._fault(line, row, name, "must not be empty")
            elif len(cell) > MAX_CHARACTERS:
                self._fault(line, row, name, f"has more than {MAX_CHARACTERS} characters")
            elif has_forbidden_text(cell.replace("\r\n", "\n")):
                self._fault(line, row, name, "holds a control character or a direction override")
            elif name in _ID_COLUMNS and (cell != cell.strip() or not cell.isprintable()):
                self._fault(line, row, name, "an id has no blank at its ends and no line end within")

    def _check_places(self, line: int, row: list[str], school_id: str, class_id: str, pupil_id: str) -> None:
        if not (school_id and class_id and pupil_id):
            return
        school_of_class = self.roster.classes.setdefault(class_id, school_id)
        if school_of_class != school_id:
            rule = f"one class in two schools; it is in another one on line {self._class_lines[class_id]}"
            self._fault(line, row, "class_id", rule)
        else:
            self._class_lines.setdefault(class_id, line)
        first_line, first_class = self.first_lines.setdefault(pupil_id, (line, class_id))
        if first_line != line and first_class != class_id:
            rule = f"one pupil in two classes; the other one is on line {first_line}"
            self._fault(line, row, "pupil_id", rule)
        elif first_line != line:
            self._fault(line, row, "pupil_id", f"duplicate pupil; the first is on line {first_line}")

    def _fault(self, line: int, row: list[str], name: str, rule: str) -> None:
        self._rows.fault(line, row, self.columns[COLUMNS.index(name)], rule)


def _parsed_date(text: str) -> date | None:
    if not _ISO_DATE.fullmatch(text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _date_rule(text: str) -> str:
    if _ISO_DATE.fullmatch(text):
        return "there is no such date"
    return "must be a date as YYYY-MM-DD"

"""Writing CSV files that a spreadsheet opens without running anything.

A cell that a spreadsheet would take for a formula gets a leading apostrophe (OWASP, "CSV
Injection"). The rule can be undone: `restored(neutralised(cell)) == cell` for every cell, because a
cell that already begins with apostrophes before such a character gets one more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_TO_QUOTE = re.compile('[,;"\r\n\t]')
_CHUNK_CHARACTERS: Final = 64 * 1024


def neutralised(cell: str) -> str:
    """The cell as it is written to a file."""
    return "'" + cell if _FORMULA.match(cell) else cell


def restored(cell: str) -> str:
    """The cell as it was before `neutralised`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_chunks(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[bytes]:
    """The file as UTF-8 in pieces of about 64 kB: RFC 4180, lines ended by LF, cells neutralised."""
    lines = [_line(header)]
    size = len(lines[0])
    for row in rows:
        lines.append(_line(row))
        size += len(lines[-1])
        if size >= _CHUNK_CHARACTERS:
            yield "".join(lines).encode()
            lines.clear()
            size = 0
    yield "".join(lines).encode()


def _line(cells: Sequence[str]) -> str:
    return ",".join(map(_written, cells)) + "\n"


def _written(cell: str) -> str:
    # csv.writer leaves a carriage return unquoted when lines end with LF alone, and readers then
    # see a line end; so the quoting is done here. Semicolons and tabs are quoted because some
    # spreadsheets split at them.
    cell = neutralised(cell)
    return '"' + cell.replace('"', '""') + '"' if _TO_QUOTE.search(cell) else cell

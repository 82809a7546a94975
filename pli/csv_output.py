"""Writing CSV files that a spreadsheet opens without running anything.

A cell that a spreadsheet would take for a formula gets a leading apostrophe (OWASP, "CSV
Injection"). The rule can be undone: `restored(neutralised(cell)) == cell` for every cell, because a
cell that already begins with apostrophes before such a character gets one more.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_CHUNK_CHARACTERS: Final = 64 * 1024


def neutralised(cell: str) -> str:
    """The cell as it is written to a file."""
    return "'" + cell if _FORMULA.match(cell) else cell


def restored(cell: str) -> str:
    """The cell as it was before `neutralised`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_chunks(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[bytes]:
    """The file as UTF-8 in pieces of about 64 kB: RFC 4180, lines ended by LF, cells neutralised."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([neutralised(cell) for cell in header])
    for row in rows:
        writer.writerow([neutralised(cell) for cell in row])
        if buffer.tell() >= _CHUNK_CHARACTERS:
            yield buffer.getvalue().encode()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode()

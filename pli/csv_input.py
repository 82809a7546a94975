"""Reading the CSV files that people hand in, with the exact place of everything that is wrong.

The format is RFC 4180 in UTF-8: commas, `"` around fields that hold commas, quotes or line ends,
lines ended by LF or CRLF, a header line first. A byte order mark and empty lines are passed over.
Every file is read as it arrives and never held whole.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from pli.faults import FaultList

MAX_FILE_BYTES: Final = 1_000_000_000
"""A larger file is refused as soon as this many bytes have come."""

MAX_LINE_BYTES: Final = 1 << 20
"""A longer line is refused; it bounds the memory that one line can take."""

MAX_ROW_BYTES: Final = 1 << 20
"""The same for a row, which may go over many lines when its fields are quoted."""

_UTF8_BOM = b"\xef\xbb\xbf"
_NOT_UTF8 = "the file must be UTF-8, and this looks like Latin-1 or Windows-1252: save it as UTF-8"
_UTF16 = "the file must be UTF-8, and this is UTF-16: save it as UTF-8"


class CsvRows:
    """The rows under the header, each with the line it starts on and as wide as the header.

    Rows that are ragged or not UTF-8 are noted in `faults` and left out; a quote that is never
    closed makes the rest unreadable and raises InputError at once, as does a file without a header.
    """

    def __init__(self, chunks: Iterable[bytes], faults: FaultList, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._faults = faults
        self._suspicious = False
        self._row_line = 1
        self._row_bytes = 0
        self._reader = csv.reader(self._decoded(_byte_lines(chunks, faults, max_bytes)), strict=True)
        self.header: list[str] = []
        self.header = self._read_header()

    def columns(self, required: Sequence[str]) -> list[int]:
        """Where each required column stands. Raises InputError when one is missing or there twice."""
        if len(self.header) == 1 and ";" in self.header[0]:
            self._faults.add(1, "", self.header[0], "columns are separated by commas, not by semicolons")
            self._faults.refuse()
        for name in required:
            if name not in self.header:
                self._faults.add(1, name, "", "the header must name this column")
        for name in sorted(name for name, times in Counter(self.header).items() if times > 1):
            self._faults.add(1, name, "", "the header names this column twice")
        self._faults.raise_if_any()
        return [self.header.index(name) for name in required]

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        width = len(self.header)
        while (found := self._next_row()) is not None:
            line, row = found
            if self._suspicious and self._has_bad_bytes(line, row):
                continue
            if len(row) != width:
                rule = f"the row has {len(row)} fields where the header has {width}"
                self._faults.add(line, "", "", rule)
                continue
            yield line, row

    def fault(self, line: int, row: Sequence[str], index: int, rule: str) -> None:
        """Notes a fault of one cell at the line where the cell, not its row, begins."""
        inner = sum(cell.count("\n") for cell in row[:index])
        column = self.header[index] if index < len(self.header) else str(index + 1)
        self._faults.add(line + inner, column, _shown(row[index]), rule)

    def _next_row(self) -> tuple[int, list[str]] | None:
        while True:
            line = self._row_line = self._reader.line_num + 1
            self._row_bytes = 0
            try:
                row = next(self._reader, None)
            except csv.Error as error:
                self._faults.add(line, "", "", _csv_rule(str(error)))
                self._faults.refuse()
            if row is None:
                return None
            if row:
                return line, row

    def _read_header(self) -> list[str]:
        found = self._next_row()
        if found is None:
            self._faults.add(1, "", "", "the file is empty; it must begin with a header line")
            self._faults.refuse()
        line, row = found
        if self._suspicious and self._has_bad_bytes(line, row):
            self._faults.refuse()
        return row

    def _decoded(self, lines: Iterable[bytes]) -> Iterator[str]:
        # Bytes that are not UTF-8 are let through as lone surrogates, so that the fault can be
        # reported with its column once the row is split.
        for line in lines:
            self._row_bytes += len(line)
            if self._row_bytes > MAX_ROW_BYTES:
                rule = f"the row that begins here is longer than {MAX_ROW_BYTES} bytes: a quote may never be closed"
                self._faults.add(self._row_line, "", "", rule)
                self._faults.refuse()
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                text = line.decode("utf-8", "surrogateescape")
                self._suspicious = True
            if "\0" in text:
                self._suspicious = True
            yield text

    def _has_bad_bytes(self, line: int, row: Sequence[str]) -> bool:
        self._suspicious = False
        before = self._faults.total
        for index, cell in enumerate(row):
            if "\0" in cell:
                self.fault(line, row, index, "NUL is not allowed")
            elif not cell.isascii() and any("\udc80" <= character <= "\udcff" for character in cell):
                self.fault(line, row, index, _NOT_UTF8)
        return self._faults.total > before


def _byte_lines(chunks: Iterable[bytes], faults: FaultList, max_bytes: int) -> Iterator[bytes]:
    """Physical lines with their ends. UTF-8 never uses the byte of LF for anything else."""
    size, number, waiting = 0, 0, list[bytes]()
    waiting_size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            faults.add(0, "", "", f"the file is larger than {max_bytes} bytes")
            faults.refuse()
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            waiting.append(piece)
            number += 1
            line = b"".join(waiting) + b"\n"
            yield _checked(line, number, faults)
            waiting.clear()
            waiting_size = 0
        waiting.append(rest)
        waiting_size += len(rest)
        if waiting_size > MAX_LINE_BYTES:
            _checked(b"".join(waiting), number + 1, faults)
    if waiting_size:
        yield _checked(b"".join(waiting), number + 1, faults)


def _checked(line: bytes, number: int, faults: FaultList) -> bytes:
    if number == 1:
        if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:2]:
            faults.add(1, "", "", _UTF16)
            faults.refuse()
        line = line.removeprefix(_UTF8_BOM)
    if len(line) > MAX_LINE_BYTES:
        faults.add(number, "", "", f"the line is longer than {MAX_LINE_BYTES} bytes")
        faults.refuse()
    return line


def _shown(cell: str) -> str:
    """The cell for its owner's eyes: undecodable bytes as Latin-1 would show them."""
    return cell.encode("utf-8", "surrogateescape").decode("latin-1") if _has_escapes(cell) else cell


def _has_escapes(cell: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in cell)


def _csv_rule(message: str) -> str:
    """What the messages of Python's csv module mean for the person who made the file."""
    if "unexpected end" in message or "field limit" in message:
        return (
            "a quoted field that begins here is never closed, or is longer than "
            f"{csv.field_size_limit()} characters; nothing after it could be read"
        )
    if "new-line character" in message:
        return "a carriage return stands alone; lines end with LF or CRLF"
    return 'after the closing " of a field only a comma or the end of the line may follow'

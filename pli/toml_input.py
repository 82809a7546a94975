"""Reading a TOML file that a person hands in, keeping the line of every table and key.

The standard parser gives values without places, so the places come from a scan of the lines. It is
exact for the usual layout (`[[table]]` headers, one key per line); for inline tables the place is 0,
"the whole file".
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from pli.faults import FaultList

_HEADER = re.compile(r"""^\s*(\[\[?)\s*["']?([^\]"'.\s]+)["']?\s*(?:\.\s*["']?([^\]"'\s]+)["']?\s*)?\]""")
_KEY = re.compile(r"""^\s*["']?([^"'=\s.\[#]+)["']?\s*[.=]""")
_PLACE = re.compile(r"\(at line (\d+), column (\d+)\)")


@dataclass(frozen=True, slots=True, repr=False)
class Table:
    """One TOML table with its place. The getters note a fault and return None for a wrong value."""

    values: Mapping[str, Any]
    faults: FaultList
    line: int = 0
    key_lines: Mapping[str, int] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def fault(self, key: str, rule: str, value: object = "") -> None:
        """Notes a fault at the line of `key`, or of the table where the key is absent."""
        shown = value if isinstance(value, str) else repr_of(value)
        self.faults.add(self.key_lines.get(key, self.line), key, shown, rule)

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Notes every key that is not in `known`."""
        for key in self.values:
            if key not in known:
                self.fault(key, f"unknown key; known are {', '.join(sorted(known))}")

    def string(self, key: str, *, required: bool = True) -> str | None:
        """A string; absent is a fault only where required."""
        value = self._present(key, required)
        if value is None or isinstance(value, str):
            return value
        self.fault(key, f"must be a string, is {toml_type(value)}", value)
        return None

    def strings(self, key: str, *, required: bool = True) -> tuple[str, ...] | None:
        """A list of strings."""
        value = self._present(key, required)
        if value is None:
            return None
        if not isinstance(value, list):
            self.fault(key, f"must be a list of strings, is {toml_type(value)}", value)
            return None
        for entry in value:
            if not isinstance(entry, str):
                self.fault(key, f"must be a list of strings, holds {toml_type(entry)}", entry)
                return None
        return tuple(value)

    def number(self, key: str, *, required: bool = True) -> Decimal | None:
        """An integer or decimal, exactly as written."""
        value = self._present(key, required)
        if value is None:
            return None
        number = as_number(value)
        if number is None:
            self.fault(key, f"must be a finite number, is {toml_type(value)}", value)
            return None
        return number

    def tables(self, key: str) -> list[Mapping[str, Any]]:
        """A list of tables, `[[key]]`; empty when absent."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            self.fault(key, f"must be a list of tables, written [[{key}]]")
            return []
        return value

    def _present(self, key: str, required: bool) -> Any:
        value = self.values.get(key)
        if value is None and required:
            self.fault(key, "this key is missing")
        return value


@dataclass(frozen=True, slots=True, repr=False)
class TomlFile:
    """A whole file: its top-level table, and its lists of tables with their places."""

    root: Table
    _places: Mapping[str, list[tuple[int, dict[str, int]]]]

    def tables(self, key: str) -> list[Table]:
        """The `[[key]]` tables in order."""
        values = self.root.tables(key)
        places = self._places.get(key, [])
        if len(places) != len(values):
            places = [(0, {})] * len(values)
        return [
            Table(table, self.root.faults, line, key_lines)
            for table, (line, key_lines) in zip(values, places, strict=True)
        ]


def read_toml(content: bytes, faults: FaultList, *, max_bytes: int) -> TomlFile:
    """Parses a file of at most `max_bytes`. Raises InputError when it is not TOML at all."""
    if len(content) > max_bytes:
        faults.add(0, "", "", f"the file has {len(content)} bytes, more than {max_bytes}")
        faults.refuse()
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        faults.add(line, "", "", "the file must be UTF-8: save it as UTF-8")
        faults.refuse()
    try:
        values = tomllib.loads(text, parse_float=_decimal)
    except (ValueError, RecursionError) as error:
        line, column, rule = _toml_rule(error, text)
        faults.add(line, column, "", rule)
        faults.refuse()
    root_lines, places = _places(text)
    return TomlFile(Table(values, faults, 0, root_lines), places)


def as_number(value: object) -> Decimal | None:
    """The exact number behind a TOML value; None for anything else, NaN and infinity included."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    if isinstance(value, Decimal) and value.is_finite():
        return value
    return None


def toml_type(value: object) -> str:
    """What TOML calls the type of a value, with its article."""
    if isinstance(value, bool):
        return "a boolean"
    for kind, name in ((str, "a string"), (int, "an integer"), (Decimal, "a decimal"), (list, "a list")):
        if isinstance(value, kind):
            return name
    return "a table" if isinstance(value, dict) else "a date or time"


def repr_of(value: object) -> str:
    """A value as a person would write it; containers only by their kind."""
    return toml_type(value) if isinstance(value, list | dict) else str(value)


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        # An exponent beyond what Decimal holds. It is refused like any other number out of bounds.
        return Decimal("NaN")


def _toml_rule(error: Exception, text: str) -> tuple[int, str, str]:
    if isinstance(error, RecursionError):
        return 0, "", "not valid TOML: nested too deeply"
    message = str(error)
    place = _PLACE.search(message)
    if place:
        return int(place[1]), place[2], f"not valid TOML: {message[: place.start()].strip()}"
    message = message.removesuffix("(at end of document)").strip()
    return text.rstrip("\n").count("\n") + 1, "", f"not valid TOML: {message}"


def _places(text: str) -> tuple[dict[str, int], dict[str, list[tuple[int, dict[str, int]]]]]:
    """Lines of the top-level keys, and per list of tables (line of header, lines of its keys)."""
    root: dict[str, int] = {}
    found: dict[str, list[tuple[int, dict[str, int]]]] = {}
    current, nested = root, False
    quote = ""
    for number, line in enumerate(text.split("\n"), start=1):
        if quote:
            quote = "" if line.count(quote) % 2 else quote
            continue
        if header := _HEADER.match(line):
            opening, name, inner = header.groups()
            nested = inner is not None
            if inner is not None:
                current = found[name][-1][1] if name in found else {}
                current.setdefault(inner, number)
            else:
                current = {}
                root.setdefault(name, number)
                if opening == "[[":
                    found.setdefault(name, []).append((number, current))
        elif not nested and (key := _KEY.match(line)):
            current.setdefault(key[1], number)
        for mark in ('"""', "'''"):
            if line.count(mark) % 2:
                quote = mark
    return root, found

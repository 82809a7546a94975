"""The public part of `instrument.toml`: everything the platform may know, strictly checked.

Top level: `id`, `title`, `version`, any number of `[[group]]` and at least one `[[item]]`.
`[[group]]`: `name`, `from`. `[[item]]`: `id`, `domain`, `type`, then `options` ("choice" and
"choices"), `max_length` ("text"), `tolerance` ("number"), and `key` or `scores` with an optional
`max_score`. The keys of this second half are known here by name only; the vault reads and checks
their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pli.faults import FaultList
from pli.plain_text import has_forbidden_text
from pli.toml_input import Table, TomlFile, read_toml
from pli.vault.v1.bundle_pb2 import ItemType, PublicInstrument, PublicItem

MAX_FILE_BYTES: Final = 4 << 20
"""Limit of `PutInstrumentRequest.toml`."""

MAX_ID_BYTES: Final = 64
MAX_OPTIONS: Final = 64
MAX_OPTION_BYTES: Final = 64
MAX_TEXT_BYTES: Final = 8_192
MAX_TITLE_CHARACTERS: Final = 200

OPTION_SEPARATOR: Final = ";"
"""Between the options of a "choices" answer in files: `A;C`."""

ITEM_TYPES: Final[Mapping[str, ItemType.ValueType]] = {
    "choice": ItemType.ITEM_TYPE_CHOICE,
    "choices": ItemType.ITEM_TYPE_CHOICES,
    "text": ItemType.ITEM_TYPE_TEXT,
    "number": ItemType.ITEM_TYPE_NUMBER,
}

_COLUMNS_OF_FILES = frozenset({"pupil_id", "score", "max_score"})
_ROOT_KEYS = ("id", "title", "version", "group", "item")
_ITEM_KEYS = ("id", "domain", "type", "options", "key", "scores", "max_score", "max_length", "tolerance")
_CHOICE_TYPES = (ItemType.ITEM_TYPE_CHOICE, ItemType.ITEM_TYPE_CHOICES)


@dataclass(frozen=True, slots=True, repr=False)
class InstrumentFile:
    """A parsed file: its public part, and the TOML it came from, keys included.

    `items` pairs each public item with its table, faulty ones included as far as their type is
    known, so that all faults of a file are found in one reading. It is of use only when `faults`
    stays empty.
    """

    public: PublicInstrument
    toml: TomlFile
    items: list[tuple[PublicItem, Table]]
    faults: FaultList


def read_instrument_file(content: bytes, file_name: str) -> InstrumentFile:
    """Reads and checks the public part. Faults are in the result; what is no TOML raises InputError."""
    faults = FaultList(file_name)
    toml = read_toml(content, faults, max_bytes=MAX_FILE_BYTES)
    root = toml.root
    root.refuse_unknown(_ROOT_KEYS)
    public = PublicInstrument(
        id=_identifier(root, "id") or "",
        title=label(root, "title") or "",
        version=_identifier(root, "version") or "",
    )
    tables = toml.tables("item")
    if not tables:
        root.fault("item", "an instrument has at least one [[item]]")
    seen: dict[str, int] = {}
    items: list[tuple[PublicItem, Table]] = []
    for table in tables:
        item = _public_item(table)
        if item is None:
            continue
        if item.id in seen:
            table.fault("id", f"duplicate item; the first is on line {seen[item.id]}", item.id)
        elif item.id:
            seen[item.id] = table.key_lines.get("id", table.line)
        items.append((item, table))
        public.items.append(item)
    return InstrumentFile(public, toml, items, faults)


def label(table: Table, key: str) -> str | None:
    """A text for people: 1 to 200 characters, not blank, without controls."""
    value = table.string(key)
    if value is None:
        return None
    if not value.strip():
        table.fault(key, "must not be empty")
        return None
    if len(value) > MAX_TITLE_CHARACTERS:
        table.fault(key, f"has more than {MAX_TITLE_CHARACTERS} characters", value)
        return None
    if has_forbidden_text(value) or "\n" in value:
        table.fault(key, "holds a control character, a line end or a direction override")
        return None
    return value


def _identifier(table: Table, key: str) -> str | None:
    value = table.string(key)
    if value is None:
        return None
    if rule := _identifier_rule(value, MAX_ID_BYTES):
        table.fault(key, rule, value)
        return None
    return value


def _identifier_rule(value: str, max_bytes: int) -> str | None:
    if not value:
        return "must not be empty"
    if len(value.encode()) > max_bytes:
        return f"has more than {max_bytes} bytes"
    if value != value.strip():
        return "begins or ends with a blank"
    if has_forbidden_text(value) or "\n" in value or "\t" in value:
        return "holds a control character, a line end or a direction override"
    return None


def _public_item(table: Table) -> PublicItem | None:
    table.refuse_unknown(_ITEM_KEYS)
    item_id = _identifier(table, "id")
    if item_id in _COLUMNS_OF_FILES:
        table.fault("id", "this name is taken by a column of the result files", item_id)
    label(table, "domain")
    type_name = table.string("type")
    if type_name is not None and type_name not in ITEM_TYPES:
        table.fault("type", f"unknown type; known are {', '.join(ITEM_TYPES)}", type_name)
    if type_name is None or type_name not in ITEM_TYPES:
        return None
    kind = ITEM_TYPES[type_name]
    options = _options(table, kind) if kind in _CHOICE_TYPES else _refused(table, "options", type_name)
    if kind == ItemType.ITEM_TYPE_TEXT:
        max_length = _max_length(table)
    else:
        max_length = 0
        _refused(table, "max_length", type_name)
    if kind != ItemType.ITEM_TYPE_NUMBER:
        _refused(table, "tolerance", type_name)
    return PublicItem(id=item_id or "", type=kind, options=options, max_length=max_length)


def _refused(table: Table, key: str, type_name: str) -> tuple[str, ...]:
    if key in table:
        table.fault(key, f'an item of type "{type_name}" has no such key')
    return ()


def _options(table: Table, kind: ItemType.ValueType) -> tuple[str, ...]:
    options = table.strings("options")
    if options is None:
        return ()
    if not 1 <= len(options) <= MAX_OPTIONS:
        table.fault("options", f"an item offers 1 to {MAX_OPTIONS} options")
    seen = set[str]()
    for option in options:
        if rule := _identifier_rule(option, MAX_OPTION_BYTES):
            table.fault("options", f"an option {rule}", option)
        if option in seen:
            table.fault("options", "the option is offered twice", option)
        if kind == ItemType.ITEM_TYPE_CHOICES and OPTION_SEPARATOR in option:
            table.fault("options", f'options of "choices" hold no "{OPTION_SEPARATOR}"', option)
        seen.add(option)
    return options


def _max_length(table: Table) -> int:
    value = table.number("max_length", required=False)
    if value is None:
        return 0
    if value != value.to_integral_value() or not 1 <= value <= MAX_TEXT_BYTES:
        table.fault("max_length", f"must be a whole number from 1 to {MAX_TEXT_BYTES}", str(value))
        return 0
    return int(value)

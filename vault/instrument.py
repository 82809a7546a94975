"""`instrument.toml` with its keys: what the vault scores with.

The public part is checked by `pli.instrument_file`; here are the rules for what only the vault may
know:

- an item has a `key`, worth one point, or `scores`, a table from accepted answer to points;
- "choice": the key is an option. "choices": a list of options, all of them and no other, in any
  order; in `scores` they are written `A;C`. "text": one text or a list of accepted texts, compared
  as `comparable_text` says. "number": a number, met when the answer is within `tolerance` of it;
- points are at most `max_score` of the item (by default its highest score), and no item is worth
  more than 100; no points are negative, and they have at most 6 decimals;
- `[[group]]`s begin at 0 and rise; `from` is a share of the maximum of the whole instrument.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, TypeAlias

from pli.faults import MAX_EXCERPT
from pli.instrument import MAX_NUMBER_CHARACTERS, NUMBER
from pli.instrument_file import MAX_TEXT_BYTES, OPTION_SEPARATOR, InstrumentFile, label, read_instrument_file
from pli.toml_input import Table, as_number, repr_of, toml_type
from pli.vault.v1.bundle_pb2 import ItemType, PublicInstrument, PublicItem

MAX_ITEM_SCORE: Final = Decimal(100)
MAX_DECIMALS: Final = 6

_NUMBER_RULE = f"must be a number of at most {MAX_NUMBER_CHARACTERS} characters"

Accepted: TypeAlias = "str | frozenset[str] | Decimal"
"""An accepted answer: option ("choice"), set of options ("choices"), comparable text, number."""


@dataclass(frozen=True, slots=True, repr=False)
class Item:
    """One item with its key. `max_length` 0 is the general limit."""

    id: str
    domain: str
    type: ItemType.ValueType
    options: tuple[str, ...]
    scores: Mapping[Accepted, Decimal]
    max_score: Decimal
    max_length: int
    tolerance: Decimal

    def __repr__(self) -> str:
        return f"<Item {self.id}>"


@dataclass(frozen=True, slots=True)
class Group:
    """A group by score: from this share (0 to 1) of the maximum up to the next group's."""

    name: str
    from_share: Decimal


@dataclass(frozen=True, slots=True, repr=False)
class Instrument:
    """A whole instrument. Its keys appear in no representation."""

    id: str
    title: str
    version: str
    groups: tuple[Group, ...]
    items: tuple[Item, ...]

    def __repr__(self) -> str:
        return f"<Instrument {self.id} version {self.version}, {len(self.items)} items>"

    @property
    def max_score(self) -> Decimal:
        """The highest possible score."""
        return sum((item.max_score for item in self.items), Decimal(0))

    def public_part(self) -> PublicInstrument:
        """What the platform gets: no key, no score, no domain, no group."""
        return PublicInstrument(
            id=self.id,
            title=self.title,
            version=self.version,
            items=[
                PublicItem(id=item.id, type=item.type, options=item.options, max_length=item.max_length)
                for item in self.items
            ],
        )

    def content_digest(self) -> bytes:
        """SHA-256 over everything but layout and comments: tells whether a version was reused.

        Keys can be guessed from it one by one, so it is kept as sealed as the keys themselves.
        """
        items = [
            {
                "id": item.id,
                "domain": item.domain,
                "type": item.type,
                "options": item.options,
                "scores": _plain(item.scores),
                "max_score": str(item.max_score),
                "max_length": item.max_length,
                "tolerance": str(item.tolerance),
            }
            for item in self.items
        ]
        groups = [[group.name, str(group.from_share)] for group in self.groups]
        content = [self.id, self.title, self.version, groups, items]
        return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).digest()


def parse_instrument(content: bytes, file_name: str) -> Instrument:
    """Reads an instrument. Raises InputError with every fault of the file."""
    file = read_instrument_file(content, file_name)
    groups = _groups(file)
    items = [_item(public, table) for public, table in file.items]
    file.faults.raise_if_any()
    public = file.public
    return Instrument(public.id, public.title, public.version, groups, tuple(items))


def comparable_text(text: str) -> str:
    """The form in which texts are compared: NFC, case folded, blanks collapsed and stripped.

    Source: Unicode 3.13, canonical caseless matching (D145), plus blanks as `str.split` sees them.
    """
    folded = unicodedata.normalize("NFD", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def plain_number(text: str) -> Decimal:
    """The exact number behind one that matches `pli.instrument.NUMBER`."""
    return Decimal(text.replace(",", "."))


def canonical(number: Decimal) -> Decimal:
    """Equal numbers, one form: no trailing zeros, no exponent, nothing rounded."""
    written = format(number, "f")
    return Decimal(written.rstrip("0").rstrip(".") if "." in written else written) if number else Decimal(0)


def _groups(file: InstrumentFile) -> tuple[Group, ...]:
    groups: list[Group] = []
    names = set[str]()
    for table in file.toml.tables("group"):
        table.refuse_unknown(("name", "from"))
        name, share = label(table, "name"), table.number("from")
        if name in names:
            table.fault("name", "two groups have this name", name or "")
        names.add(name or "")
        if share is None:
            continue
        if not 0 <= share <= 1 or _decimals(share) > MAX_DECIMALS:
            rule = f"must be a share of the maximum, from 0 to 1, with at most {MAX_DECIMALS} decimals"
            table.fault("from", rule, str(share))
            continue
        if not groups and share != 0:
            table.fault("from", "groups out of order: the first one begins at 0", str(share))
        elif groups and share <= groups[-1].from_share:
            table.fault("from", "groups out of order: each begins above the one before", str(share))
        groups.append(Group(name or "", canonical(share)))
    return tuple(groups)


def _item(public: PublicItem, table: Table) -> Item:
    tolerance = table.number("tolerance", required=False) or Decimal(0)
    if tolerance < 0 or not _is_short(tolerance):
        rule = f"must not be negative nor longer than {MAX_NUMBER_CHARACTERS} characters"
        table.fault("tolerance", rule, str(tolerance))
    reader = _KeyReader(public, table)
    if ("key" in table) == ("scores" in table):
        table.fault("key", 'an item has either "key" or "scores"')
        scores: dict[Accepted, Decimal] = {}
    else:
        scores = reader.from_key() if "key" in table else reader.from_scores()
    return Item(
        id=public.id,
        domain=str(table.values.get("domain", "")),
        type=public.type,
        options=tuple(public.options),
        scores=scores,
        max_score=_max_score(table, scores),
        max_length=public.max_length,
        tolerance=canonical(tolerance) if _is_short(tolerance) else Decimal(0),
    )


def _max_score(table: Table, scores: Mapping[Accepted, Decimal]) -> Decimal:
    highest = max(scores.values(), default=Decimal(0))
    declared = table.number("max_score", required=False)
    if declared is None:
        return highest
    if not 0 < declared <= MAX_ITEM_SCORE or _decimals(declared) > MAX_DECIMALS:
        rule = f"must be above 0 and at most {MAX_ITEM_SCORE}, with at most {MAX_DECIMALS} decimals"
        table.fault("max_score", rule, str(declared))
        return highest
    if "key" in table and declared != 1:
        table.fault("max_score", 'an item with a "key" is worth one point; use "scores"', str(declared))
    for score in scores.values():
        if score > declared:
            rule = f"score above maximum: max_score of the item is {declared}"
            table.fault("scores", rule, str(score))
    return canonical(declared)


class _KeyReader:
    """Reads `key` or `scores` of one item by its type."""

    def __init__(self, public: PublicItem, table: Table) -> None:
        self._item = public
        self._table = table
        self._offered = frozenset(public.options)

    def from_key(self) -> dict[Accepted, Decimal]:
        """The key, worth one point; several accepted texts share it."""
        if self._item.type == ItemType.ITEM_TYPE_CHOICES:
            options = self._table.strings("key")
            accepted = [] if options is None else [self._option_set("key", options)]
        elif self._item.type == ItemType.ITEM_TYPE_NUMBER:
            accepted = [self._number_key()]
        elif self._item.type == ItemType.ITEM_TYPE_TEXT and isinstance(self._table.values["key"], list):
            texts = self._table.strings("key") or ()
            if not texts:
                self._table.fault("key", "the list of accepted texts is empty")
            accepted = [self._written("key", text) for text in texts]
        else:
            text = self._table.string("key")
            accepted = [] if text is None else [self._written("key", text)]
        return self._distinct("key", ((entry, Decimal(1)) for entry in accepted))

    def from_scores(self) -> dict[Accepted, Decimal]:
        """The table of scores; at least one must be above 0."""
        values = self._table.values["scores"]
        if not isinstance(values, dict) or not values:
            self._table.fault("scores", f'must be a table like {{"A" = 2}}, is {toml_type(values)}')
            return {}
        table = values.items()
        entries = ((self._written("scores", text), self._points(text, worth)) for text, worth in table)
        scores = self._distinct("scores", entries)
        if scores and not any(scores.values()):
            self._table.fault("scores", "at least one score must be above 0")
        return scores

    def _distinct(self, key: str, entries: Iterable[tuple[Accepted | None, Decimal | None]]) -> dict[Accepted, Decimal]:
        scores: dict[Accepted, Decimal] = {}
        for accepted, points in entries:
            if accepted is None or points is None:
                continue
            if accepted in scores:
                options = accepted if isinstance(accepted, frozenset) else (str(accepted),)
                self._table.fault(key, "the same answer twice", OPTION_SEPARATOR.join(sorted(options)))
            scores[accepted] = points
        return scores

    def _points(self, text: str, value: object) -> Decimal | None:
        points = as_number(value)
        answer = repr(text[:MAX_EXCERPT])
        if points is None:
            self._table.fault("scores", f"the score of {answer} must be a number", repr_of(value))
        elif points < 0:
            self._table.fault("scores", f"the score of {answer} is negative", str(points))
        elif points > MAX_ITEM_SCORE:
            rule = f"score above maximum: no item is worth more than {MAX_ITEM_SCORE}"
            self._table.fault("scores", rule, str(points))
        elif _decimals(points) > MAX_DECIMALS:
            self._table.fault("scores", f"a score has at most {MAX_DECIMALS} decimals", str(points))
        else:
            return canonical(points)
        return None

    def _written(self, key: str, text: str) -> Accepted | None:
        """One accepted answer as files write it."""
        if self._item.type == ItemType.ITEM_TYPE_CHOICES:
            return self._option_set(key, tuple(text.split(OPTION_SEPARATOR)))
        if self._item.type == ItemType.ITEM_TYPE_NUMBER:
            return self._number(key, text)
        if self._item.type == ItemType.ITEM_TYPE_CHOICE:
            if text in self._offered or not self._offered:
                return text
            self._table.fault(key, "the key is not among the options", text)
            return None
        comparable = comparable_text(text)
        if not comparable:
            self._table.fault(key, "an accepted text must not be empty")
        elif len(text) > (self._item.max_length or MAX_TEXT_BYTES):
            self._table.fault(key, "longer than the item lets an answer be", text)
        else:
            return comparable
        return None

    def _option_set(self, key: str, options: tuple[str, ...]) -> Accepted | None:
        chosen = frozenset(options)
        if not options:
            self._table.fault(key, "the list of options is empty")
        elif len(chosen) != len(options):
            self._table.fault(key, "an option is named twice", OPTION_SEPARATOR.join(options))
        elif self._offered and not chosen <= self._offered:
            for option in sorted(chosen - self._offered):
                self._table.fault(key, "the key is not among the options", option)
        else:
            return chosen
        return None

    def _number_key(self) -> Accepted | None:
        value = self._table.values["key"]
        if isinstance(value, str):
            return self._number("key", value)
        number = as_number(value)
        if number is not None and _is_short(number):
            return canonical(number)
        self._table.fault("key", _NUMBER_RULE, repr_of(value))
        return None

    def _number(self, key: str, text: str) -> Accepted | None:
        if NUMBER.fullmatch(text) and len(text) <= MAX_NUMBER_CHARACTERS:
            return canonical(plain_number(text))
        self._table.fault(key, _NUMBER_RULE, text)
        return None


def _plain(scores: Mapping[Accepted, Decimal]) -> list[list[object]]:
    entries = (
        (sorted(accepted) if isinstance(accepted, frozenset) else str(accepted), str(points))
        for accepted, points in scores.items()
    )
    return sorted(([accepted, points] for accepted, points in entries), key=repr)


def _decimals(number: Decimal) -> int:
    _, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int) or exponent >= 0:
        return 0
    written = "".join(map(str, digits))
    return max(0, -exponent - (len(written) - len(written.rstrip("0"))))


def _is_short(number: Decimal) -> bool:
    # The exponent first: writing 1E+999999999 out in full would take a gigabyte.
    if abs(number.adjusted()) > MAX_NUMBER_CHARACTERS or _decimals(number) > MAX_NUMBER_CHARACTERS:
        return False
    return len(format(number, "f")) <= MAX_NUMBER_CHARACTERS

"""What the platform knows of an instrument, and the check that every answer passes.

Nothing here holds a key: `read_public_part` forgets them, and `PublicInstrument` has no field for
them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from pli.errors import VersionMismatch
from pli.ingest.v1.ingest_pb2 import Answer, Choices, Cleared, Mark, RejectReason
from pli.instrument_file import MAX_OPTIONS, MAX_TEXT_BYTES, OPTION_SEPARATOR, read_instrument_file
from pli.plain_text import has_forbidden_text
from pli.vault.v1.bundle_pb2 import ItemType, PublicInstrument, PublicItem

__all__ = ["ACCEPTED", "NUMBER", "AnswerRules", "answer_from_text", "read_public_part"]

ACCEPTED: Final = RejectReason.REJECT_REASON_UNSPECIFIED
"""What the checks return for an answer that may be stored: 0."""

NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)")
"""A number as typed: optional sign, ASCII digits, at most one point or comma. Use `fullmatch`."""

MAX_NUMBER_CHARACTERS: Final = 32

_UNKNOWN_ITEM: Final = RejectReason.REJECT_REASON_UNKNOWN_ITEM
_WRONG_TYPE: Final = RejectReason.REJECT_REASON_WRONG_TYPE
_UNKNOWN_OPTION: Final = RejectReason.REJECT_REASON_UNKNOWN_OPTION
_TOO_LONG: Final = RejectReason.REJECT_REASON_TOO_LONG
_BAD_NUMBER: Final = RejectReason.REJECT_REASON_BAD_NUMBER
_BAD_TEXT: Final = RejectReason.REJECT_REASON_BAD_TEXT
_UNKNOWN_SEAT: Final = RejectReason.REJECT_REASON_UNKNOWN_SEAT
_EMPTY: Final = RejectReason.REJECT_REASON_EMPTY

_Check = Callable[[Answer], RejectReason.ValueType]


class AnswerRules:
    """The checks of one instrument, prepared once and asked for every answer."""

    def __init__(self, public: PublicInstrument) -> None:
        """Raises VersionMismatch when an item has a type that this version does not know."""
        self.version = public.version
        self._items = {item.id: _rule(item) for item in public.items}

    def check(self, answer: Answer, seats: int) -> RejectReason.ValueType:
        """Why `answer` must be rejected, or ACCEPTED. `seats` is 0 in a pupil session.

        The first rule broken is told, in this order: item, value at all, seat, kind of value, value.
        """
        rule = self._items.get(answer.item_id)
        if rule is None:
            return _UNKNOWN_ITEM
        kind = answer.WhichOneof("value")
        if kind is None:
            return _EMPTY
        seat = answer.seat
        if (seat or seats) and not 1 <= seat <= seats:
            return _UNKNOWN_SEAT
        expected, rest = rule
        if kind != expected:
            return ACCEPTED if kind == "cleared" else _WRONG_TYPE
        if not isinstance(rest, frozenset):
            return rest(answer)
        # Most answers of most instruments are choices: their check stands here, without a call.
        options = answer.choices.options
        if len(options) != 1:
            return _TOO_LONG if options else _EMPTY
        return ACCEPTED if options[0] in rest else _UNKNOWN_OPTION

    def check_mark(self, mark: Mark, seats: int) -> RejectReason.ValueType:
        """Why `mark` must be rejected, or ACCEPTED. A pupil session (`seats` 0) has no seat to mark."""
        if not 1 <= mark.seat <= seats:
            return _UNKNOWN_SEAT
        return ACCEPTED if 1 <= mark.presence <= 3 else _EMPTY


def read_public_part(content: bytes, file_name: str) -> PublicInstrument:
    """The public part of `instrument.toml`. Raises InputError with every fault of that part.

    Values of keys and scores are not looked at: the vault checks them.
    """
    file = read_instrument_file(content, file_name)
    file.faults.raise_if_any()
    return file.public


def answer_from_text(item: PublicItem, cell: str) -> Answer:
    """The answer behind one cell of `responses.csv`; an empty cell is a cleared answer.

    It is converted, not checked: ask `AnswerRules`.
    """
    if not cell:
        return Answer(item_id=item.id, cleared=Cleared())
    if item.type == ItemType.ITEM_TYPE_CHOICE:
        return Answer(item_id=item.id, choices=Choices(options=[cell]))
    if item.type == ItemType.ITEM_TYPE_CHOICES:
        return Answer(item_id=item.id, choices=Choices(options=cell.split(OPTION_SEPARATOR)))
    if item.type == ItemType.ITEM_TYPE_NUMBER:
        return Answer(item_id=item.id, number=cell)
    return Answer(item_id=item.id, text=cell)


def _rule(item: PublicItem) -> tuple[str, frozenset[str] | _Check]:
    """The member of `Answer.value` that the item takes, and the options of a choice or the check."""
    if item.type == ItemType.ITEM_TYPE_CHOICE:
        return "choices", frozenset(item.options)
    if item.type == ItemType.ITEM_TYPE_CHOICES:
        return "choices", _choices_rule(frozenset(item.options))
    if item.type == ItemType.ITEM_TYPE_TEXT:
        return "text", _text_rule(item.max_length or MAX_TEXT_BYTES)
    if item.type == ItemType.ITEM_TYPE_NUMBER:
        return "number", _check_number
    raise VersionMismatch(f"the instrument has an item of type {item.type}, unknown here; update pli")


def _choices_rule(offered: frozenset[str]) -> _Check:
    def check(answer: Answer) -> RejectReason.ValueType:
        options = answer.choices.options
        if len(options) > MAX_OPTIONS:
            return _TOO_LONG
        chosen = set(options)
        return ACCEPTED if len(chosen) == len(options) and chosen <= offered else _UNKNOWN_OPTION

    return check


def _text_rule(max_length: int) -> _Check:
    def check(answer: Answer) -> RejectReason.ValueType:
        text = answer.text
        # A character has at most 4 bytes in UTF-8, so short texts need no encoding to be measured.
        if len(text) > max_length or (len(text) * 4 > MAX_TEXT_BYTES < len(text.encode())):
            return _TOO_LONG
        return _BAD_TEXT if has_forbidden_text(text) else ACCEPTED

    return check


def _check_number(answer: Answer) -> RejectReason.ValueType:
    number = answer.number
    if len(number) > MAX_NUMBER_CHARACTERS:
        return _TOO_LONG
    return ACCEPTED if NUMBER.fullmatch(number) else _BAD_NUMBER

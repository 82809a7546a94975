"""From a pupil's final answers to points.

Rules, by type of item (DESIGN 10; the answer and the key are compared, never shown):

- "choice": the points of the option chosen.
- "choices": the points of exactly this set of options; order does not matter, and part of a set is
  worth something only where `scores` says so.
- "text": the points of the accepted text that is equal after `comparable_text`.
- "number": point and comma are alike, all digits count (decimal arithmetic without rounding); the
  highest score among the keys no further away than `tolerance`.
- Not answered, cleared, or a value of another kind than the item's: 0.
- Absent or exempt: no score at all, neither per item nor in total.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from typing import Final

from pli.ingest.v1.ingest_pb2 import Answer, Presence
from pli.instrument import MAX_NUMBER_CHARACTERS, NUMBER
from pli.vault.v1.bundle_pb2 import ItemType
from vault.instrument import Instrument, Item, comparable_text, plain_number

_ZERO: Final = Decimal(0)

# Two numbers of at most 32 characters differ by at most 64 digits, and weighted sums of scores are
# shorter: within this precision nothing is ever rounded.
_EXACT: Final = Context(prec=4 * MAX_NUMBER_CHARACTERS)

_Points = Callable[[Answer], Decimal]


@dataclass(frozen=True, slots=True, repr=False)
class DomainScore:
    """Points in one domain; `score` is None for the absent and exempt."""

    domain: str
    score: Decimal | None
    max_score: Decimal

    def __repr__(self) -> str:
        return f"<DomainScore {self.domain}>"


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """What a pupil's script is worth. Its representation tells nothing of it.

    `scores` and `domains` are in the order of the instrument. `group` is None where the instrument
    has no groups; group, total and scores are None for the absent and exempt.
    """

    scores: tuple[Decimal | None, ...]
    total: Decimal | None
    max_score: Decimal
    domains: tuple[DomainScore, ...]
    group: str | None

    def __repr__(self) -> str:
        return "<Result>"


class Scorer:
    """Scores scripts by one instrument; prepared once, used for every pupil."""

    def __init__(self, instrument: Instrument) -> None:
        self._max_score = instrument.max_score
        self._items = [(item.id, _points_of(item)) for item in instrument.items]
        members: dict[str, list[int]] = {}
        for index, item in enumerate(instrument.items):
            members.setdefault(item.domain, []).append(index)
        self._domains = [
            (domain, indexes, _sum(instrument.items[index].max_score for index in indexes))
            for domain, indexes in members.items()
        ]
        self._thresholds = [
            (_EXACT.multiply(group.from_share, self._max_score), group.name) for group in instrument.groups
        ]
        absent = tuple(DomainScore(domain, None, max_score) for domain, _, max_score in self._domains)
        self._not_there = Result((None,) * len(self._items), None, self._max_score, absent, None)

    def score(
        self,
        final: Mapping[str, Answer],
        presence: Presence.ValueType = Presence.PRESENCE_PRESENT,
    ) -> Result:
        """The result of one pupil: `final` maps item id to the answer given last.

        Answers to items that the instrument does not have count for nothing.
        """
        if presence in (Presence.PRESENCE_ABSENT, Presence.PRESENCE_EXEMPT):
            return self._not_there
        find = final.get
        scores = [_ZERO if (answer := find(item_id)) is None else points(answer) for item_id, points in self._items]
        with localcontext(_EXACT):
            total = sum(scores, _ZERO)
            domains = tuple(
                [
                    DomainScore(domain, sum([scores[index] for index in indexes], _ZERO), max_score)
                    for domain, indexes, max_score in self._domains
                ]
            )
        return Result(tuple(scores), total, self._max_score, domains, self._group(total))

    def _group(self, total: Decimal) -> str | None:
        reached = None
        for threshold, name in self._thresholds:
            if total >= threshold:
                reached = name
        return reached


def _sum(points: Iterable[Decimal]) -> Decimal:
    with localcontext(_EXACT):
        return sum(points, _ZERO)


def _points_of(item: Item) -> _Points:
    if item.type == ItemType.ITEM_TYPE_CHOICE:
        return _choice_points(item)
    if item.type == ItemType.ITEM_TYPE_CHOICES:
        return _choices_points(item)
    if item.type == ItemType.ITEM_TYPE_NUMBER:
        return _number_points(item)
    return _text_points(item)


# Reading a member of the oneof that is not set gives an empty value, which no key equals: keys are
# never empty. So a cleared answer needs no question of its own.


def _choice_points(item: Item) -> _Points:
    scores = {accepted: points for accepted, points in item.scores.items() if isinstance(accepted, str)}

    def points(answer: Answer) -> Decimal:
        options = answer.choices.options
        return scores.get(options[0], _ZERO) if len(options) == 1 else _ZERO

    return points


def _choices_points(item: Item) -> _Points:
    scores = {accepted: points for accepted, points in item.scores.items() if isinstance(accepted, frozenset)}

    def points(answer: Answer) -> Decimal:
        options = answer.choices.options
        chosen = frozenset(options)
        return scores.get(chosen, _ZERO) if len(chosen) == len(options) else _ZERO

    return points


def _text_points(item: Item) -> _Points:
    scores = {accepted: points for accepted, points in item.scores.items() if isinstance(accepted, str)}

    def points(answer: Answer) -> Decimal:
        return scores.get(comparable_text(answer.text), _ZERO)

    return points


def _number_points(item: Item) -> _Points:
    ranges = [
        (_EXACT.subtract(accepted, item.tolerance), _EXACT.add(accepted, item.tolerance), points)
        for accepted, points in item.scores.items()
        if isinstance(accepted, Decimal)
    ]

    def points(answer: Answer) -> Decimal:
        text = answer.number
        if not NUMBER.fullmatch(text):
            return _ZERO
        given = plain_number(text)
        return max((score for low, high, score in ranges if low <= given <= high), default=_ZERO)

    return points

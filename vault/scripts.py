"""Scripts: all distinct records of one pseudonym, as settlement merges and stores them.

An entry is one opened record: `vault.opening.ENTRY` and the payload, so that everything that is asked
of a record is a slice of it. A script is a version byte and its entries in ascending order of (writer,
seq); the losers of conflicts are kept apart in the same form. The script is the union of what came,
whatever the order: it may be thrown away and made again.

- Same writer and seq, same seat, kind and payload: one record; of its copies the lowest stream opening
  is kept, because a resend after a restart of the spool may come under a later one.
- Same writer and seq, other content: a conflict; the content with the smaller SHA-256 stays.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from operator import itemgetter
from struct import Struct
from struct import error as struct_error

from google.protobuf.message import DecodeError

from pli.errors import IntegrityError
from pli.ingest.v1.ingest_pb2 import Answer, Finish, Mark, Presence
from pli.records import RecordKind
from vault.opening import ENTRY

FORMAT = b"\x01"

KIND = 6
"""Index of an entry's kind."""

SEAT = slice(4, 6)
WRITER = slice(7, 23)
SEQ = slice(23, 31)
PLACE = slice(7, 31)
"""writer, seq: what counts once."""

DIGESTED = slice(23, None)
"""seq, length, payload: what `Finish.digest` is taken over (pli.canonical.FinishDigest)."""

PAYLOAD = slice(ENTRY.size, None)

_LENGTH = Struct(">I")
_LENGTH_AT = 31
_FINISH = int(RecordKind.FINISH)
_ANSWER = int(RecordKind.ANSWER)


@dataclass(frozen=True, slots=True, repr=False)
class Script:
    """The records of one pseudonym. `kept` and `losers` are sorted by place.

    `answers` counts answers and marks; digests are those of the finishes in `kept`.
    """

    kept: list[bytes]
    losers: list[bytes]
    answers: int
    digests_agree: int
    digests_differ: int

    def __repr__(self) -> str:
        return f"Script({len(self.kept)} records)"


NOTHING = Script([], [], 0, 0, 0)


def merge(old: Script, new: Sequence[bytes]) -> Script:
    """The union of a script and more entries, copies among them allowed."""
    entries = [*old.kept, *new]
    by_place = dict(zip(map(_place, entries), entries, strict=True))
    losers = old.losers
    if len(by_place) < len(entries):
        by_place, losers = _union(chain(entries, old.losers))
    places = sorted(by_place)
    kept = [by_place[place] for place in places]
    agree, differ = _digests(kept, places)
    return Script(kept, losers, len(kept) - agree - differ, agree, differ)


def _union(entries: Iterable[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
    contents: dict[bytes, dict[bytes, bytes]] = {}
    for entry in entries:
        place = contents.setdefault(entry[PLACE], {})
        content = entry[4:7] + entry[PAYLOAD]
        known = place.get(content)
        # Entries begin with the stream opening, and the same content is alike in all the rest.
        if known is None or entry < known:
            place[content] = entry
    winners: dict[bytes, bytes] = {}
    losers: list[bytes] = []
    for place_key in sorted(contents):
        ranked = sorted(contents[place_key].items(), key=_rank_of_content)
        winners[place_key] = ranked[0][1]
        losers += [entry for _, entry in ranked[1:]]
    return winners, losers


def _rank_of_content(item: tuple[bytes, bytes]) -> bytes:
    return sha256(item[0]).digest()


def _digests(kept: list[bytes], places: list[bytes]) -> tuple[int, int]:
    """How many finishes agree with the records of their writer before them, and how many differ."""
    kinds = bytes(map(_kind, kept))
    agree = differ = count = start = 0
    writer, digest = b"", sha256()
    at = kinds.find(_FINISH)
    while at >= 0:
        finish = kept[at]
        if finish[WRITER] != writer:
            writer, digest, count = finish[WRITER], sha256(), 0
            start = bisect_left(places, writer)
        digest.update(b"".join(map(_digested, kept[start:at])))
        count += at - start
        said = parsed_finish(finish)
        if said.count == count and said.digest == digest.digest():
            agree += 1
        else:
            differ += 1
        start = at + 1
        at = kinds.find(_FINISH, start)
    return agree, differ


_kind, _place, _digested = itemgetter(KIND), itemgetter(PLACE), itemgetter(DIGESTED)


def join(entries: Sequence[bytes]) -> bytes:
    """Entries as they are sealed."""
    return FORMAT + b"".join(entries)


def split(content: bytes) -> list[bytes]:
    """The entries of what `join` made.

    Raises:
        IntegrityError: cut short, or of another version.
    """
    if content[:1] != FORMAT:
        raise IntegrityError("a script has another format than this version reads")
    entries: list[bytes] = []
    at, end, head = 1, len(content), ENTRY.size
    try:
        while at < end:
            after = at + head + _LENGTH.unpack_from(content, at + _LENGTH_AT)[0]
            entries.append(content[at:after])
            at = after
    except struct_error as error:
        raise IntegrityError("a script is cut short") from error
    if at != end:
        raise IntegrityError("a script is cut short")
    return entries


@dataclass(frozen=True, slots=True, repr=False)
class Final:
    """What a script comes to: per item the answer given last, and the presence marked last.

    `unreadable` counts records that a node sealed but that hold no message of their kind: they count
    for nothing, and must not keep anyone else from being scored.
    """

    answers: dict[str, Answer]
    presence: Presence.ValueType
    unreadable: int

    def __repr__(self) -> str:
        return f"Final({len(self.answers)} items)"


def final_answers(kept: Sequence[bytes]) -> Final:
    """Decides by (opening in which it was given, seq) (I16).

    Where two writers are alike in both, the one whose stream was opened later wins, then the higher
    writer. Answers taken back are left out.
    """
    answers: dict[str, tuple[Answer, bytes]] = {}
    presence, marked, unreadable = Presence.PRESENCE_PRESENT, _LOWEST, 0
    for entry in kept:
        kind = entry[KIND]
        try:
            if kind == _ANSWER:
                answer = _read_answer(entry[PAYLOAD])
                known = answers.get(answer.item_id)
                if known is None or _rank(known[0].opening, known[1]) < _rank(answer.opening, entry):
                    answers[answer.item_id] = answer, entry
            elif kind != _FINISH:
                mark = Mark.FromString(entry[PAYLOAD])
                rank = _rank(mark.opening, entry)
                if marked < rank:
                    presence, marked = mark.presence, rank
        except DecodeError:
            unreadable += 1
    final = {item: answer for item, (answer, _) in answers.items() if not answer.HasField("cleared")}
    return Final(final, presence, unreadable)


_Rank = tuple[int, int, int, bytes]
_LOWEST: _Rank = (-1, 0, 0, b"")
_read_answer = Answer.FromString


def _rank(given: int, entry: bytes) -> _Rank:
    opening, _, _, writer, seq, _ = ENTRY.unpack_from(entry)
    return given, seq, opening, writer


def parsed_finish(entry: bytes) -> Finish:
    """The finish in an entry of that kind; an empty one, which agrees with nothing, if unreadable."""
    try:
        return Finish.FromString(entry[PAYLOAD])
    except DecodeError:
        # One bad finish must not stop the settlement of everyone else: it counts as a digest that differs.
        return Finish()

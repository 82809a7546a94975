"""Scripts: the same whatever the order of arrival; the answer given last counts (I16)."""

from __future__ import annotations

from hashlib import sha256
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.errors import IntegrityError
from pli.ingest.v1.ingest_pb2 import Answer, Presence
from pli.records import RecordKind
from pli.sealing import NewRecord
from tests.support.sealing_node import Writer
from vault.opening import ENTRY
from vault.scripts import NOTHING, PAYLOAD, Script, final_answers, join, merge, parsed_finish, split

FIRST, SECOND = b"1" * 16, b"2" * 16
PUPIL = b"p" * 16


def entry(writer: bytes, record: NewRecord, stream: int = 1) -> bytes:
    seq, seat, kind, payload = record
    return ENTRY.pack(stream, seat, kind, writer, seq, len(payload)) + payload


def given_by(writer: Writer, *records: NewRecord, stream: int | None = None) -> list[bytes]:
    return [entry(writer.writer, record, stream or writer.opening) for record in records]


def chosen(entries: list[bytes]) -> dict[str, str]:
    return {item: answer.choices.options[0] for item, answer in final_answers(entries).answers.items()}


PLACES = st.tuples(
    st.sampled_from([FIRST, SECOND]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0, 1]),
    st.sampled_from(list(RecordKind)),
    st.sampled_from([b"", b"x", b"yy", b"y" * 70]),
)
ENTRIES = st.lists(PLACES.map(lambda p: ENTRY.pack(p[2], p[3], p[4], p[0], p[1], len(p[5])) + p[5]), max_size=30)


@given(ENTRIES, st.randoms(use_true_random=False), st.integers(0, 30), st.integers(0, 30))
def test_any_order_any_copies_and_any_split_into_runs_give_the_same_script(
    entries: list[bytes], random: Random, first: int, second: int
) -> None:
    whole = merge(NOTHING, entries)
    shuffled = [*entries, *random.sample(entries, len(entries) // 2)]
    random.shuffle(shuffled)
    low, high = sorted((first, second))
    script = NOTHING
    for part in (shuffled[:low], shuffled[low:high], shuffled[high:]):
        script = merge(script, part)
    assert script == whole


@given(ENTRIES)
def test_each_place_is_kept_once_and_every_other_content_beside_it(entries: list[bytes]) -> None:
    script = merge(NOTHING, entries)
    places = [found[7:31] for found in script.kept]
    assert places == sorted({found[7:31] for found in entries})
    contents = {(found[7:31], found[4:7], found[PAYLOAD]) for found in entries}
    assert {(found[7:31], found[4:7], found[PAYLOAD]) for found in script.kept + script.losers} == contents
    assert len(script.kept) + len(script.losers) == len(contents)
    for winner in script.kept:
        of_place = [found for found in entries if found[7:31] == winner[7:31]]
        smallest = min(sha256(found[4:7] + found[PAYLOAD]).digest() for found in of_place)
        assert sha256(winner[4:7] + winner[PAYLOAD]).digest() == smallest


def test_of_two_copies_the_one_of_the_earlier_stream_is_kept() -> None:
    writer = Writer(PUPIL)
    record = writer.choose("a", "A")
    early, late = entry(writer.writer, record, 1), entry(writer.writer, record, 2)
    assert merge(NOTHING, [late, early]) == merge(merge(NOTHING, [late]), [early]) == merge(NOTHING, [early])


@given(ENTRIES)
def test_entries_survive_storage(entries: list[bytes]) -> None:
    assert split(join(entries)) == entries


@given(ENTRIES.filter(bool), st.data())
def test_a_stored_script_cut_short_is_refused(entries: list[bytes], data: st.DataObject) -> None:
    content = join(entries)
    boundaries = {len(join(entries[:count])) for count in range(len(entries) + 1)}
    length = data.draw(st.integers(0, len(content) - 1).filter(lambda length: length not in boundaries))
    with pytest.raises(IntegrityError):
        split(content[:length])


def test_a_stored_script_of_another_version_is_refused() -> None:
    with pytest.raises(IntegrityError, match="format"):
        split(b"\2" + join([])[1:])


# What a script comes to


def test_a_later_answer_replaces_the_earlier() -> None:
    writer = Writer(PUPIL)
    entries = given_by(writer, writer.choose("a", "A"), writer.choose("b", "B"), writer.choose("a", "C"))
    assert chosen(entries) == {"a": "C", "b": "B"}


def test_an_answer_taken_back_is_no_answer_and_may_be_given_again() -> None:
    writer = Writer(PUPIL)
    taken_back = given_by(writer, writer.choose("a", "A"), writer.clear("a"))
    assert chosen(taken_back) == {}
    assert chosen(taken_back + given_by(writer, writer.choose("a", "B"))) == {"a": "B"}


def test_a_device_that_returns_late_does_not_override_what_was_given_after_it() -> None:
    old, new = Writer(PUPIL, FIRST, opening=1), Writer(PUPIL, SECOND, opening=2)
    kept_back = [old.choose("a", "A"), old.choose("a", "B"), old.choose("b", "A")]
    after = given_by(new, new.choose("a", "C"))
    # The old device sends in a stream of a later opening what was given in the first.
    late = given_by(old, *kept_back, stream=3)
    for order in (after + late, late + after):
        assert chosen(merge(NOTHING, order).kept) == {"a": "C", "b": "A"}


def test_in_one_opening_the_higher_number_wins() -> None:
    first, second = Writer(PUPIL, FIRST), Writer(PUPIL, SECOND)
    early = given_by(first, first.choose("a", "A"))
    second.choose("b", "A")
    later = given_by(second, second.choose("a", "B"))
    for order in (early + later, later + early):
        assert chosen(order) == {"a": "B"}


@given(st.randoms(use_true_random=False))
def test_two_tabs_alike_in_opening_and_number_are_decided_whatever_the_order(random: Random) -> None:
    entries = []
    for name in (FIRST, SECOND):
        tab = Writer(PUPIL, name)
        entries += given_by(tab, tab.choose("a", "A" if name == FIRST else "B"), stream=2 if name == FIRST else 1)
    random.shuffle(entries)
    assert chosen(entries) == {"a": "A"}, "the stream that was opened later"


def test_the_presence_marked_last_counts() -> None:
    writer = Writer(PUPIL)
    entries = given_by(writer, writer.mark(Presence.PRESENCE_ABSENT), writer.choose("a", "A"))
    assert final_answers(entries).presence == Presence.PRESENCE_ABSENT
    entries += given_by(writer, writer.mark(Presence.PRESENCE_PRESENT))
    assert final_answers(entries[::-1]).presence == Presence.PRESENCE_PRESENT


def test_without_a_mark_a_pupil_is_there() -> None:
    assert final_answers([]).presence == Presence.PRESENCE_PRESENT


@pytest.mark.parametrize("kind", [RecordKind.ANSWER, RecordKind.MARK])
def test_a_record_that_is_no_message_counts_for_nothing_and_stops_nobody(kind: RecordKind) -> None:
    writer = Writer(PUPIL)
    entries = given_by(writer, writer.choose("a", "A"), (9, 0, kind, b"\xff\xff\xff"))
    final = final_answers(entries)
    assert (final.unreadable, list(final.answers)) == (1, ["a"])


def test_an_unknown_value_is_no_answer_but_no_fault() -> None:
    writer = Writer(PUPIL)
    entries = given_by(writer, writer.give(Answer(item_id="a", opening=1)))
    assert final_answers(entries).unreadable == 0


# What the client says it gave


def finished(*changes: NewRecord, digest: bytes | None = None) -> Script:
    writer = Writer(PUPIL)
    records = [writer.choose("a", "A"), writer.clear("b"), writer.mark(Presence.PRESENCE_PRESENT)]
    finish = writer.finish(digest=digest)
    return merge(NOTHING, given_by(writer, *records, finish, *changes))


def test_a_finish_agrees_with_all_that_came_before_it() -> None:
    script = finished()
    assert (script.answers, script.digests_agree, script.digests_differ) == (3, 1, 0)


def test_a_finish_disagrees_when_one_record_is_missing_or_altered_or_too_many() -> None:
    complete = finished().kept
    for kept in (complete[1:], complete[:1] + complete[2:], [*complete[:2], complete[2] + b"x", complete[3]]):
        assert merge(NOTHING, kept).digests_differ == 1
    extra = Writer(PUPIL, complete[0][7:23], seq=0)
    assert finished(digest=bytes(32)).digests_differ == 1
    assert merge(NOTHING, [*complete[1:], *given_by(extra, extra.choose("a", "B"))]).digests_differ == 1


def test_each_writer_is_compared_with_its_own_finish() -> None:
    first, second = Writer(PUPIL, FIRST), Writer(PUPIL, SECOND)
    entries = given_by(first, first.choose("a", "A"), first.finish())
    entries += given_by(second, second.choose("a", "B"), second.choose("b", "B"))
    assert (merge(NOTHING, entries).digests_agree, merge(NOTHING, entries).digests_differ) == (1, 0)
    entries += given_by(second, second.finish())
    assert merge(NOTHING, entries[::-1]).digests_agree == 2


def test_what_was_sent_after_a_finish_is_not_in_its_digest() -> None:
    assert finished((5, 0, RecordKind.ANSWER, b"")).digests_agree == 1


def test_a_second_finish_covers_what_the_first_did_and_more() -> None:
    writer = Writer(PUPIL)
    entries = given_by(writer, writer.choose("a", "A"), writer.finish(), writer.choose("b", "B"), writer.finish())
    assert merge(NOTHING, entries).digests_agree == 2


def test_a_finish_that_is_no_message_agrees_with_nothing() -> None:
    broken = entry(FIRST, (1, 0, RecordKind.FINISH, b"\xff"))
    assert parsed_finish(broken).count == 0
    assert merge(NOTHING, [broken]).digests_differ == 1


def test_a_late_record_turns_a_digest_that_differed_into_one_that_agrees() -> None:
    complete = finished().kept
    part = merge(NOTHING, [complete[0], complete[2], complete[3]])
    assert part.digests_differ == 1
    assert merge(part, [complete[1]]) == finished_like(complete)


def finished_like(entries: list[bytes]) -> Script:
    script = merge(NOTHING, entries)
    assert script.digests_agree == 1
    return script


def test_a_script_shows_how_much_it_holds_and_nothing_of_it() -> None:
    assert repr(finished()) == "Script(4 records)"
    assert repr(final_answers(finished().kept)) == "Final(1 items)"

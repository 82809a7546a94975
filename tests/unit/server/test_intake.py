"""Which of the live sessions of one code a newcomer displaces."""

from __future__ import annotations

from pli.instrument import AnswerRules
from pli.secret import Secret
from pli.vault.v1.bundle_pb2 import Bundle, PublicInstrument
from server.backlog import Backlog
from server.intake import Intake
from server.session import Session

BACKLOG = Backlog(1_000)
CODE = b"p" * 16


async def nobody_reads(_response: object) -> None:
    raise AssertionError


def intake() -> Intake:
    return Intake(Bundle(), AnswerRules(PublicInstrument()), Secret(b"k"), [], [], BACKLOG)


def session(opening: int, *, writer: bytes = b"w" * 16, seats: int = 0, arrival: int = 0) -> Session:
    return Session(CODE, writer, opening, seats, 0, 0, BACKLOG, nobody_reads, None, arrival)


def test_a_newer_opening_displaces_the_older_one() -> None:
    live, older, newer = intake(), session(1), session(2, writer=b"x" * 16)
    assert live.add(older) == []
    assert live.add(newer) == [(older, 2)]


def test_a_stream_that_arrives_late_is_displaced_itself() -> None:
    live, older, newer = intake(), session(1), session(2)
    live.add(newer)
    assert live.add(older) == [(older, 2)]


def test_of_two_streams_under_one_opening_the_newcomer_stays() -> None:
    live, first, second = intake(), session(3), session(3)
    live.add(first)
    assert live.add(second) == [(first, 3)]


def test_of_twins_under_one_opening_the_one_that_was_answered_last_stays_whichever_comes_first() -> None:
    live, first, second = intake(), session(3, arrival=7), session(3, arrival=8)
    live.add(second)
    assert live.add(first) == [(first, 3)]


def test_writers_of_a_class_displace_only_their_own_older_streams() -> None:
    live = intake()
    mine, other, again = session(1, seats=3), session(2, writer=b"x" * 16, seats=3), session(3, seats=3)
    assert live.add(mine) == []
    assert live.add(other) == []
    assert live.add(again) == [(mine, 3)]


def test_an_opening_elsewhere_displaces_the_older_sessions_here() -> None:
    live, older, same = intake(), session(1), session(2)
    live.add(older)
    live.add(same)
    assert live.supersede(CODE, 2, b"x" * 16) == [older]
    assert live.supersede(b"q" * 16, 9, b"x" * 16) == []


def test_an_opening_elsewhere_displaces_a_class_writer_only_by_itself() -> None:
    live, mine = intake(), session(1, seats=3)
    live.add(mine)
    assert live.supersede(CODE, 2, b"x" * 16) == []
    assert live.supersede(CODE, 2, b"w" * 16) == [mine]


def test_sessions_are_counted_and_forgotten_once() -> None:
    live, one, two = intake(), session(1), session(2)
    live.add(one)
    live.add(two)
    assert (live.live, len(live.all_sessions())) == (2, 2)
    live.remove(one)
    live.remove(one)
    live.remove(two)
    assert (live.live, live.sessions) == (0, {})

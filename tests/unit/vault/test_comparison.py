"""The comparison of a ledger with scripts: every lie of a platform has its verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from pli.codes import Code
from pli.ledger import Ledger, LedgerSession, code_digest, content_digest
from pli.records import RecordKind
from pli.sealing import NewRecord
from pli.secret import Secret
from pli.vault.v1.rehearsal_pb2 import LedgerVerdict, VerifyLedgerResponse
from tests.support.sealing_node import Writer
from vault.opening import ENTRY
from vault.verification import MAX_LINES, Comparison

KEY = Secret(b"k" * 32)
PUPIL, OTHER = b"p" * 16, b"q" * 16
CODE = code_digest(KEY.reveal(), Code("A" * 12))
LOST, ALTERED = LedgerVerdict.LEDGER_VERDICT_LOST, LedgerVerdict.LEDGER_VERDICT_ALTERED
DUPLICATED, UNEXPECTED = LedgerVerdict.LEDGER_VERDICT_DUPLICATED, LedgerVerdict.LEDGER_VERDICT_UNEXPECTED
RECOVERED, WRONG_CODE = LedgerVerdict.LEDGER_VERDICT_RECOVERED, LedgerVerdict.LEDGER_VERDICT_WRONG_CODE


@dataclass
class Client:
    """One session and its ledger; what it sent is settled unless a test takes it away."""

    writer: Writer = field(default_factory=lambda: Writer(PUPIL))
    session: LedgerSession = field(default_factory=lambda: LedgerSession(code=CODE))
    records: list[NewRecord] = field(default_factory=list)

    def send(self, *records: NewRecord) -> None:
        for record in records:
            seq, _, kind, payload = record
            self.session.sent[seq] = content_digest(KEY.reveal(), self.writer.writer, seq, kind, payload)
            self.records.append(record)

    def settled(self) -> list[bytes]:
        return [
            ENTRY.pack(1, seat, kind, self.writer.writer, seq, len(payload)) + payload
            for seq, seat, kind, payload in self.records
        ]


@pytest.fixture
def client() -> Client:
    """Three answers, sent and acknowledged."""
    client = Client()
    client.send(*(client.writer.choose(item, "A") for item in "abc"))
    client.session.durable_seq = 3
    return client


def compared(
    client: Client, *scripts: tuple[bytes, list[bytes]], codes: dict[bytes, bytes] | None = None
) -> VerifyLedgerResponse:
    comparison = Comparison(Ledger("c-1", {client.writer.writer: client.session}), KEY, codes)
    for pseudonym, records in scripts:
        comparison.take(pseudonym, records)
    return comparison.end()


def counts(outcome: VerifyLedgerResponse) -> dict[str, int]:
    """The counts that are not 0."""
    return {
        name.name: value
        for name, value in outcome.ListFields()
        if name.name not in ("lines", "codes_compared", "sessions")
    }


def lines(outcome: VerifyLedgerResponse) -> list[tuple[int, Any]]:
    return [(line.seq, line.verdict) for line in outcome.lines]


RIGHT = {"sent": 3, "acknowledged": 3, "in_vault": 3}


def test_what_was_acknowledged_and_is_there_is_right(client: Client) -> None:
    outcome = compared(client, (PUPIL, client.settled()))
    assert counts(outcome) == RIGHT
    assert (outcome.sessions, lines(outcome), outcome.codes_compared) == (1, [], False)


def test_an_acknowledged_answer_that_is_not_there_is_lost(client: Client) -> None:
    outcome = compared(client, (PUPIL, client.settled()[1:]))
    assert counts(outcome) == {"sent": 3, "acknowledged": 3, "in_vault": 2, "lost": 1}
    assert lines(outcome) == [(1, LOST)]
    assert outcome.lines[0].writer == client.writer.writer


def test_all_is_lost_when_there_is_no_script(client: Client) -> None:
    assert counts(compared(client)) == {"sent": 3, "acknowledged": 3, "lost": 3}


def test_an_acknowledged_answer_of_other_content_is_lost_and_what_is_there_unexpected(client: Client) -> None:
    seq, seat, kind, payload = client.records[1]
    client.records[1] = (seq, seat, kind, payload[:-1] + b"Z")
    outcome = compared(client, (PUPIL, client.settled()))
    assert counts(outcome) == {**RIGHT, "lost": 1, "unexpected": 1}
    assert lines(outcome) == [(2, ALTERED)]


def test_the_kind_of_a_record_is_part_of_what_was_sent(client: Client) -> None:
    seq, seat, _, payload = client.records[0]
    client.records[0] = (seq, seat, RecordKind.MARK, payload)
    assert lines(compared(client, (PUPIL, client.settled()))) == [(1, ALTERED)]


def test_an_answer_of_other_content_that_nobody_acknowledged_is_unexpected_alone(client: Client) -> None:
    client.session.durable_seq = 2
    seq, seat, kind, payload = client.records[2]
    client.records[2] = (seq, seat, kind, payload + b"x")
    outcome = compared(client, (PUPIL, client.settled()))
    assert counts(outcome) == {**RIGHT, "acknowledged": 2, "unexpected": 1}
    assert lines(outcome) == [(3, UNEXPECTED)]


def test_an_answer_that_is_there_twice_is_duplicated_once_however_often(client: Client) -> None:
    once = client.settled()
    outcome = compared(client, (PUPIL, [*once, once[0]]), (OTHER, [once[0], once[0]]))
    assert counts(outcome) == {**RIGHT, "duplicated": 1}
    assert lines(outcome) == [(1, DUPLICATED)]


def test_an_altered_copy_beside_the_right_one_is_a_duplicate_too(client: Client) -> None:
    once = client.settled()
    altered = once[0][:-1] + b"Z"
    assert counts(compared(client, (PUPIL, [*once, altered]))) == {**RIGHT, "duplicated": 1}
    client.session.sent[1] = content_digest(KEY.reveal(), client.writer.writer, *_numbered(client.records[0]))
    again = compared(client, (PUPIL, [altered, once[0]]))
    assert (again.lost, again.unexpected, again.duplicated) == (1, 1, 1)


def _numbered(record: NewRecord) -> tuple[int, int, bytes]:
    seq, _, kind, payload = record
    return seq, kind, payload


def test_an_answer_that_nobody_sent_is_unexpected(client: Client) -> None:
    client.records.append(client.writer.choose("a", "C"))
    outcome = compared(client, (PUPIL, client.settled()))
    assert counts(outcome) == {**RIGHT, "in_vault": 4, "unexpected": 1}
    assert lines(outcome) == [(4, UNEXPECTED)]


def test_a_session_that_nobody_had_is_unexpected(client: Client) -> None:
    stranger = Client(Writer(OTHER))
    stranger.send(stranger.writer.choose("a", "A"))
    outcome = compared(client, (PUPIL, client.settled()), (OTHER, stranger.settled()))
    assert counts(outcome) == {**RIGHT, "in_vault": 4, "unexpected": 1}


def test_a_rejected_answer_that_is_there_is_unexpected_and_one_that_is_not_is_right(client: Client) -> None:
    client.session.rejected[2] = 1
    there = compared(client, (PUPIL, client.settled()))
    assert counts(there) == {**RIGHT, "acknowledged": 2, "rejected": 1, "unexpected": 1}
    assert lines(there) == [(2, UNEXPECTED)]
    fresh = Client(client.writer)
    fresh.send(*client.records)
    fresh.session.durable_seq, fresh.session.rejected[2] = 3, 1
    absent = compared(fresh, (PUPIL, [fresh.settled()[0], fresh.settled()[2]]))
    assert counts(absent) == {"sent": 3, "acknowledged": 2, "rejected": 1, "in_vault": 2}


def test_an_answer_of_unknown_fate_may_be_there_or_not(client: Client) -> None:
    client.session.durable_seq = 1
    outcome = compared(client, (PUPIL, client.settled()[:2]))
    assert counts(outcome) == {"sent": 3, "acknowledged": 1, "in_vault": 2, "recovered": 1}
    assert lines(outcome) == [(2, RECOVERED)]


def test_another_writers_durable_seq_believed_is_seen_as_loss(client: Client) -> None:
    client.session.durable_seq = 99
    assert counts(compared(client, (PUPIL, client.settled()[:1])))["lost"] == 2


def test_finishes_are_compared_and_not_counted_as_answers(client: Client) -> None:
    client.send(client.writer.finish())
    client.session.durable_seq = 4
    assert counts(compared(client, (PUPIL, client.settled()))) == RIGHT


def test_a_finish_that_is_lost_or_was_never_sent_is_found(client: Client) -> None:
    finish = client.writer.finish()
    client.records.append(finish)
    assert lines(compared(client, (PUPIL, client.settled()))) == [(4, UNEXPECTED)]
    fresh = Client(client.writer)
    fresh.send(*client.records)
    fresh.session.durable_seq = 4
    assert lines(compared(fresh, (PUPIL, fresh.settled()[:3]))) == [(4, LOST)]


def test_answers_under_another_code_than_the_one_they_were_given_with_are_unexpected(client: Client) -> None:
    right = compared(client, (PUPIL, client.settled()), codes={PUPIL: CODE})
    assert (counts(right), right.codes_compared) == (RIGHT, True)
    for codes in ({OTHER: bytes(16)}, {}):
        fresh = Client(client.writer)
        fresh.send(*client.records)
        fresh.session.durable_seq = 3
        outcome = compared(fresh, (OTHER, fresh.settled()), codes=codes)
        assert counts(outcome) == {**RIGHT, "unexpected": 3}
        assert {verdict for _, verdict in lines(outcome)} == {WRONG_CODE}


def test_a_session_whose_code_the_ledger_does_not_know_is_compared_without_it(client: Client) -> None:
    client.session.code = b""
    assert counts(compared(client, (PUPIL, client.settled()), codes={PUPIL: CODE})) == RIGHT


def test_a_ledger_digest_under_another_key_is_no_evidence(client: Client) -> None:
    comparison = Comparison(Ledger("c-1", {client.writer.writer: client.session}), Secret(b"x" * 32), None)
    comparison.take(PUPIL, client.settled())
    assert comparison.end().lost == 3


def test_an_empty_ledger_against_an_empty_vault_is_right() -> None:
    assert counts(Comparison(Ledger("c-1", {}), KEY, None).end()) == {}


def test_lines_are_bounded_and_the_worst_come_first() -> None:
    client = Client()
    client.send(*(client.writer.choose("a", "A") for _ in range(MAX_LINES + 20)))
    harmless = client.settled()[: MAX_LINES + 10]
    client.session.durable_seq = 0
    outcome = compared(client, (PUPIL, harmless))
    assert (outcome.recovered, len(outcome.lines)) == (MAX_LINES + 10, MAX_LINES)
    fresh = Client(client.writer)
    fresh.send(*client.records)
    fresh.session.durable_seq = 5
    worst = compared(fresh, (PUPIL, fresh.settled()[5:]))
    assert [verdict for _, verdict in lines(worst)][:6] == [LOST] * 5 + [RECOVERED]
    assert len(worst.lines) == MAX_LINES

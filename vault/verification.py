"""The comparison of a ledger with the settled scripts: what clients were told, against what is there.

Only verdicts come out of it, and only for campaigns that were created as rehearsals: a ledger and its
key could be used to try answers against a vault of real pupils.

The ledger is in memory (about 150 bytes a message); scripts are read one after another, and each
message's digest in the ledger is replaced by a mark once the vault was seen to hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from pli.errors import InputError, StateError, VaultLocked
from pli.ledger import Ledger, LedgerSession, code_digest, content_digest
from pli.records import RecordKind
from pli.secret import Secret
from pli.vault.v1.rehearsal_pb2 import LedgerVerdict, LineVerdict, VerifyLedgerResponse
from vault.campaigns import find
from vault.code_issue import issued_codes
from vault.keyring import IdentityKeys, KeyRing
from vault.script_store import all_scripts
from vault.scripts import KIND, PAYLOAD, SEQ, WRITER
from vault.settlement import is_settled
from vault.store.database import Database

MAX_LINES = 1_000
"""Lines in one answer; the counts say how many there are."""

_FINISH = int(RecordKind.FINISH)

# What stands in the place of a digest once the message was found. Digests have 16 bytes.
_FOUND, _FOUND_AGAIN = b"=", b"+"
_MARKS = frozenset({_FOUND, _FOUND_AGAIN})


def check_rehearsal(connection: Connection, campaign_id: str) -> None:
    """Whether a ledger of this campaign may be compared at all.

    Raises:
        NotFound: there is no such campaign.
        StateError: it was not created as a rehearsal.
    """
    if not find(connection, campaign_id).rehearsal:
        raise StateError(
            f"campaign {campaign_id} is of real pupils: no ledger is compared with it; "
            "rehearse with a campaign created for that"
        )


async def verify_ledger(
    database: Database, keyring: KeyRing, campaign_id: str, ledger: Ledger, ledger_key: Secret
) -> VerifyLedgerResponse:
    """Compares; codes as well if identities are unlocked. `ledger` is used up by it.

    Raises:
        NotFound, StateError: as `check_rehearsal`; or not all that has landed is settled.
        InputError: the ledger is of another campaign.
        VaultLocked: the answers of this campaign are locked.
        IntegrityError: a stored script or code was altered.
    """
    if ledger.campaign_id != campaign_id:
        raise InputError(f"the ledger was not written in campaign {campaign_id}; give the ledger of this campaign")
    answers = keyring.answers(campaign_id)
    try:
        identities = keyring.identities(campaign_id)
    except VaultLocked:
        identities = None

    def compare(connection: Connection) -> VerifyLedgerResponse:
        check_rehearsal(connection, campaign_id)
        if not is_settled(connection, campaign_id):
            raise StateError(
                f"not all that has landed of campaign {campaign_id} is settled and scored; "
                "settle it first: CampaignService.Settle"
            )
        codes = None if identities is None else _codes(connection, identities, ledger, ledger_key.reveal())
        comparison = Comparison(ledger, ledger_key, codes)
        for pseudonym, records in all_scripts(connection, answers):
            comparison.take(pseudonym, records)
        return comparison.end()

    return await database.read(compare)


def _codes(connection: Connection, keys: IdentityKeys, ledger: Ledger, ledger_key: bytes) -> dict[bytes, bytes]:
    """Pseudonym → digest of its code, for the codes of the ledger alone."""
    wanted = {session.code for session in ledger.sessions.values()}
    digests = ((pseudonym, code_digest(ledger_key, code)) for _, pseudonym, code in issued_codes(connection, keys))
    return {pseudonym: digest for pseudonym, digest in digests if digest in wanted}


class Comparison:
    """Takes scripts one by one; `end` says what came of it. Uses up the ledger.

    `codes` is pseudonym → digest of its code; None if codes cannot be compared.

    Finishes are compared like answers and marks, but not counted in `sent`, `acknowledged` and
    `in_vault`. One that the vault does not hold cannot be told from an answer and counts as one.
    """

    def __init__(self, ledger: Ledger, ledger_key: Secret, codes: Mapping[bytes, bytes] | None) -> None:
        self._sessions = ledger.sessions
        self._key = ledger_key.reveal()
        self._codes = codes
        self._outcome = VerifyLedgerResponse(sessions=len(ledger.sessions), codes_compared=codes is not None)
        self._finishes = self._finishes_acknowledged = 0
        self._bad: list[LineVerdict] = []
        self._recovered: list[LineVerdict] = []

    def take(self, pseudonym: bytes, records: Sequence[bytes]) -> None:
        """The records (vault.opening.ENTRY) in the script of this pseudonym."""
        code = None if self._codes is None else self._codes.get(pseudonym, b"")
        for record in records:
            writer, seq = record[WRITER], int.from_bytes(record[SEQ], "big")
            session = self._sessions.get(writer)
            sent = None if session is None else session.sent.get(seq)
            if session is not None and sent in _MARKS:
                self._take_again(session, writer, seq)
                continue
            self._outcome.in_vault += record[KIND] != _FINISH
            if session is None or sent is None:
                self._unexpected(writer, seq, LedgerVerdict.LEDGER_VERDICT_UNEXPECTED)
            elif content_digest(self._key, writer, seq, record[KIND], record[PAYLOAD]) != sent:
                self._take_altered(session, writer, seq)
            else:
                is_other_code = code is not None and session.code not in (b"", code)
                self._take_right(session, writer, seq, is_other_code=is_other_code)
                if record[KIND] == _FINISH:
                    self._finishes += 1
                    self._finishes_acknowledged += session.is_acknowledged(seq)

    def end(self) -> VerifyLedgerResponse:
        """The verdicts; counts are of the whole, lines of what is not as it should be."""
        outcome = self._outcome
        for writer, session in self._sessions.items():
            outcome.sent += len(session.sent)
            for seq, sent in session.sent.items():
                outcome.rejected += seq in session.rejected
                if session.is_acknowledged(seq):
                    outcome.acknowledged += 1
                    if sent not in _MARKS:
                        outcome.lost += 1
                        self._say(self._bad, writer, seq, LedgerVerdict.LEDGER_VERDICT_LOST)
        outcome.sent -= self._finishes
        outcome.acknowledged -= self._finishes_acknowledged
        outcome.lines.extend([*self._bad, *self._recovered][:MAX_LINES])
        return outcome

    def _take_right(self, session: LedgerSession, writer: bytes, seq: int, *, is_other_code: bool) -> None:
        session.sent[seq] = _FOUND
        if seq in session.rejected:
            self._unexpected(writer, seq, LedgerVerdict.LEDGER_VERDICT_UNEXPECTED)
        elif is_other_code:
            self._unexpected(writer, seq, LedgerVerdict.LEDGER_VERDICT_WRONG_CODE)
        elif not session.is_acknowledged(seq):
            self._outcome.recovered += 1
            self._say(self._recovered, writer, seq, LedgerVerdict.LEDGER_VERDICT_RECOVERED)

    def _take_altered(self, session: LedgerSession, writer: bytes, seq: int) -> None:
        session.sent[seq] = _FOUND
        if session.is_acknowledged(seq):
            self._outcome.lost += 1
            self._unexpected(writer, seq, LedgerVerdict.LEDGER_VERDICT_ALTERED)
        else:
            self._unexpected(writer, seq, LedgerVerdict.LEDGER_VERDICT_UNEXPECTED)

    def _take_again(self, session: LedgerSession, writer: bytes, seq: int) -> None:
        if session.sent[seq] == _FOUND:
            session.sent[seq] = _FOUND_AGAIN
            self._outcome.duplicated += 1
            self._say(self._bad, writer, seq, LedgerVerdict.LEDGER_VERDICT_DUPLICATED)

    def _unexpected(self, writer: bytes, seq: int, verdict: LedgerVerdict.ValueType) -> None:
        self._outcome.unexpected += 1
        self._say(self._bad, writer, seq, verdict)

    def _say(self, lines: list[LineVerdict], writer: bytes, seq: int, verdict: LedgerVerdict.ValueType) -> None:
        if len(lines) < MAX_LINES:
            lines.append(LineVerdict(writer=writer, seq=seq, verdict=verdict))

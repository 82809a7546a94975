"""The client's queue: what was given, numbered and kept, and what the platform said of it.

It knows no stream. Everything stays until `Finished`, because the platform may go back in time and
must then be given again what it once had (docs/protocol.md, rules 5, 6 and 9).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pli.canonical import FinishDigest, canonical
from pli.client.events import SessionObserver
from pli.errors import IntegrityError
from pli.ingest.v1.ingest_pb2 import Answer, Answers, Finish, Rejected, RejectReason, SubmitRequest
from pli.records import RecordKind

MAX_ANSWERS = 64
"""In one message, by the protocol."""

MAX_MESSAGE_BYTES = 128 * 1024
"""Half of what a node takes as one message: long texts go in several."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What is known of a session's answers, by number."""

    durable_seq: int
    """Everything up to here is settled on the platform's disk: stored, or rejected."""
    last_seq: int
    """The last number given."""
    rejected: Mapping[int, RejectReason.ValueType]
    """Never stored, and why."""

    @property
    def unsettled(self) -> range:
        """Numbers of which nothing is known yet; after a close, of what is not stored."""
        return range(self.durable_seq + 1, self.last_seq + 1)

    @property
    def stored(self) -> int:
        """How many are stored."""
        return self.durable_seq - sum(seq <= self.durable_seq for seq in self.rejected)


class AnswerQueue:
    """One writer. Tells the observer what goes out and what was said of it."""

    __slots__ = (
        "_finish_opening", "_finish_seq", "_kept", "_next_seq", "_observed_seq", "_observer", "_rejected",
        "_sent_seq", "durable_seq", "told_seq", "writer",
    )  # fmt: skip

    def __init__(self, writer: bytes, observer: SessionObserver) -> None:
        self.writer = writer
        self.durable_seq = 0
        """By what the current opening said."""
        self.told_seq = 0
        """The highest durable seq ever told: what the platform must not fall below."""
        self._observer = observer
        self._kept: list[bytes] = []
        self._rejected: dict[int, RejectReason.ValueType] = {}
        self._next_seq = 1
        self._sent_seq = 0
        self._observed_seq = 0
        self._finish_seq = 0
        self._finish_opening = 0

    @property
    def last_seq(self) -> int:
        """The last number given; the finish has one too."""
        return self._finish_seq or len(self._kept)

    @property
    def waiting(self) -> int:
        """How many numbers are not settled."""
        return self.last_seq - self.durable_seq

    @property
    def in_flight(self) -> int:
        """How many numbers went out on this stream and are not settled."""
        return self._next_seq - 1 - self.durable_seq

    @property
    def finish_seq(self) -> int:
        """The number of the finish; 0 before there is one."""
        return self._finish_seq

    @property
    def accepted(self) -> int:
        """How many answers count: given and not rejected."""
        answers = len(self._kept)
        return answers - sum(seq <= answers for seq in self._rejected)

    def settled(self) -> Settled:
        """A snapshot."""
        return Settled(self.durable_seq, self.last_seq, MappingProxyType(dict(self._rejected)))

    def rejection(self, seq: int) -> RejectReason.ValueType | None:
        """Why this number was rejected; None for one that was not."""
        return self._rejected.get(seq)

    def give(self, answer: Answer) -> int:
        """Keeps an answer and returns its number. Its `opening` must be the one in which it was given."""
        self._kept.append(canonical(answer))
        return len(self._kept)

    def finish(self, opening: int) -> None:
        """Nothing follows. The finish goes out when all before it is settled."""
        if not self._finish_seq:
            self._finish_seq = len(self._kept) + 1
            self._finish_opening = opening

    def resumed(self, durable_seq: int, rejected: Iterable[Rejected]) -> None:
        """An `Opened`: it alone counts, also where it says less than was told before.

        Raises:
            IntegrityError: the platform claims numbers that were never sent.
        """
        told = {each.seq: each.reason for each in rejected}
        self._refuse_unsent(max((durable_seq, *told)))
        for seq, reason in told.items():
            self._observer.rejected(self.writer, seq, reason)
        self._rejected = told
        self._settle(durable_seq)
        self._next_seq = durable_seq + 1

    def acked(self, durable_seq: int) -> bool:
        """An `Ack`. Whether it settled anything new.

        Raises:
            IntegrityError: the platform claims numbers that were never sent.
        """
        self._refuse_unsent(durable_seq)
        before = self.durable_seq
        self._settle(max(before, durable_seq))
        return self.durable_seq > before

    def reject(self, seq: int, reason: RejectReason.ValueType) -> None:
        """A `Rejected`: the number is settled by the ack that follows.

        Raises:
            IntegrityError: the number was never sent.
        """
        self._refuse_unsent(seq)
        self._observer.rejected(self.writer, seq, reason)
        self._rejected[seq] = reason

    def expected(self, seq: int) -> None:
        """An `Expected`: the next message starts at this number.

        Raises:
            IntegrityError: a number that was never sent, or that is settled.
        """
        self._refuse_unsent(seq - 1)
        if seq <= self.durable_seq:
            raise IntegrityError(f"the platform asks for number {seq}, which it settled before")
        self._next_seq = min(self._next_seq, seq)

    def next_request(self, max_in_flight: int) -> SubmitRequest | None:
        """The next message to send, or None while there is nothing, or no room."""
        if self._next_seq == self._finish_seq:
            return self._next_finish() if self.durable_seq == len(self._kept) else None
        first, answers = self._next_seq, list[Answer]()
        end = min(len(self._kept), first + MAX_ANSWERS - 1, self.durable_seq + max_in_flight)
        room = MAX_MESSAGE_BYTES
        for seq in range(first, end + 1):
            payload = self._kept[seq - 1]
            room -= len(payload)
            if room < 0 and answers:
                break
            self._observe(seq, RecordKind.ANSWER, payload)
            answers.append(Answer.FromString(payload))
        if not answers:
            return None
        self._sent(first + len(answers) - 1)
        return SubmitRequest(answers=Answers(first_seq=first, answers=answers))

    def forget(self) -> None:
        """After `Finished`, and not before: the answers may go."""
        self._kept = [b""] * len(self._kept)

    def _next_finish(self) -> SubmitRequest:
        digest = FinishDigest()
        for seq, payload in enumerate(self._kept, start=1):
            if seq not in self._rejected:
                digest.add(seq, payload)
        finish = Finish(seq=self._finish_seq, count=digest.count, digest=digest.digest(), opening=self._finish_opening)
        self._observe(finish.seq, RecordKind.FINISH, canonical(finish))
        self._sent(finish.seq)
        return SubmitRequest(finish=finish)

    def _observe(self, seq: int, kind: RecordKind, payload: bytes) -> None:
        if seq > self._observed_seq:
            self._observer.sent(self.writer, seq, kind, payload)
            self._observed_seq = seq

    def _sent(self, seq: int) -> None:
        self._next_seq = seq + 1
        self._sent_seq = max(self._sent_seq, seq)

    def _settle(self, durable_seq: int) -> None:
        self._observer.acked(self.writer, durable_seq)
        self.durable_seq = durable_seq
        self.told_seq = max(self.told_seq, durable_seq)

    def _refuse_unsent(self, seq: int) -> None:
        if seq > self._sent_seq:
            raise IntegrityError(f"the platform speaks of number {seq}, of which only {self._sent_seq} were sent")

    def __repr__(self) -> str:
        return f"AnswerQueue({self.last_seq} given, {self.durable_seq} durable)"

"""`IngestService.Submit`: one stream, one session (steps 1 to 6 of docs/life-of-an-answer.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from pli.canonical import canonical
from pli.codes import MAX_TYPED_CHARACTERS, REFUSAL, parse_code
from pli.errors import (
    CampaignClosed,
    CampaignNotOpen,
    CodeRefused,
    Draining,
    NotFound,
    Overloaded,
    PliError,
    SessionSuperseded,
    StreamViolation,
    Unavailable,
    VersionMismatch,
)
from pli.ingest.v1.ingest_pb2 import (
    Answers,
    Finish,
    Mark,
    Open,
    Opened,
    Receipt,
    Rejected,
    RejectReason,
    SubmitRequest,
    SubmitResponse,
)
from pli.ingest.v1.ingest_pb2_grpc import IngestServiceServicer
from pli.pseudonym import PREFIX_BYTES, PSEUDONYM_BYTES, pseudonym_of
from pli.records import RecordKind
from pli.rpc.server import Context
from server.committer import SUPERSEDED
from server.config import SessionLimits
from server.identity import NodeIdentity
from server.intake import Intake
from server.session import REJECTED, Session
from server.store.spool import (
    CLOSED,
    FINISHED,
    FULL,
    NOT_OPEN,
    READ_ONLY,
    REFUSED,
    STALE,
    OpenedSession,
)

log = structlog.get_logger()

PROTOCOL_VERSION = 1
MAX_ANSWERS = 64
MAX_SEQ = 2**53 - 1
"""The spool counts in doubles; no client ever comes near."""

ID_BYTES = 16
DIGEST_BYTES = 32
UNREADABLE = "a message is not readable; update the application"
STALLED = "the spool is stalled; open again later, keep what is not acknowledged"
_ANSWER, _MARK, _FINISH = int(RecordKind.ANSWER), int(RecordKind.MARK), int(RecordKind.FINISH)


class IngestService(IngestServiceServicer):
    """Serves streams for as long as `intake` returns something; None means not ready."""

    def __init__(
        self,
        intake: Callable[[], Intake | None],
        identity: NodeIdentity,
        limits: SessionLimits,
        clock_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._intake = intake
        self._identity = identity
        self._limits = limits
        self._clock_ms = clock_ms
        self._random_bytes = random_bytes
        self.draining = False

    async def Submit(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]  # coroutine style: context.read and context.write, which the stubs do not model
        """Serves one stream from Open to its end."""
        try:
            await self._serve(context)
        except grpc.aio.InternalError:
            # The peer vanished in the middle of a read or a write: there is nobody left to answer.
            return

    async def _serve(self, context: Context) -> None:
        # Read before anything is refused: a client whose first write meets the end of its stream never
        # sees the status (gRPC makes it INTERNAL).
        first = await self._first(context)
        intake = self._ready()
        session = await self._open(intake, first, context)
        if session is None:
            return
        try:
            error = await self._until_end(intake, session, context)
            await session.last_words(self._limits.last_words_seconds)
            if error is not None:
                raise error
        finally:
            session.gone()
            intake.remove(session)

    def _ready(self) -> Intake:
        if self.draining:
            raise Draining("this node is stopping; open again, another one takes the session")
        intake = self._intake()
        if intake is None:
            raise Unavailable("this node is not ready; try again, here or at another node")
        return intake

    async def _first(self, context: Context) -> Open:
        try:
            async with asyncio.timeout(self._limits.open_seconds):
                request = await _read(context)
        except TimeoutError as error:
            # Not a violation: a slow line cures itself, and the client must open again by itself.
            raise Unavailable("no Open came in time; open again, and send it at once") from error
        if request is None or request.WhichOneof("message") != "open":
            raise StreamViolation("the first message of a stream must be Open")
        return request.open

    async def _until_end(self, intake: Intake, session: Session, context: Context) -> PliError | None:
        """Serves the session; the status that its stream ends with, None for OK."""
        try:
            for displaced, opening in intake.add(session):
                displaced.supersede(opening, SessionSuperseded(SUPERSEDED))
            # The look that ends all streams of a stopping worker may have missed one that was just opening.
            self._ready()
            await self._read(intake, session, context)
        except asyncio.CancelledError:
            # Cancelled by ourselves, to end the stream with a status; or by gRPC, because the client left.
            task = asyncio.current_task()
            if session.ending is None or task is None:
                raise
            task.uncancel()
        except PliError as error:
            return error
        return session.ending

    async def _open(self, intake: Intake, request: Open, context: Context) -> Session | None:
        """Answers `Opened`. None when the session is read-only and complete with that."""
        pseudonym = self._named(intake, request)
        shard = intake.shard(pseudonym)
        opener = intake.openers[shard]
        if opener.waiting > self._limits.max_opens_waiting or intake.live >= self._limits.max_sessions:
            raise self._overloaded()
        verdict = await opener.open(pseudonym, request.writer, request.token)
        self._refuse(intake, verdict)
        intake.counts.opened += 1
        arrival = intake.counts.opened
        intake.counts.displaced += verdict.displaced
        if request.acked_seq > verdict.durable_seq:
            intake.counts.went_back += 1
            log.error("spool_went_back", pseudonym_prefix=pseudonym[:PREFIX_BYTES].hex(), shard=shard)
        read_only = verdict.verdict == READ_ONLY
        try:
            async with asyncio.timeout(self._limits.open_seconds):
                await context.write(SubmitResponse(opened=self._opened(intake, verdict, read_only)))
        except TimeoutError as error:
            raise Unavailable("the client did not read its Opened in time; open again") from error
        if read_only:
            return None
        return Session(
            pseudonym,
            bytes(request.writer),
            verdict.opening,
            verdict.seats,
            verdict.durable_seq,
            len(verdict.rejected),
            intake.backlog,
            context.write,
            asyncio.current_task(),
            arrival,
        )

    def _named(self, intake: Intake, request: Open) -> bytes:
        """The pseudonym behind an Open; a random one for a mistyped code, so that it takes as long."""
        if request.protocol_version != PROTOCOL_VERSION:
            raise VersionMismatch(f"this node speaks protocol version {PROTOCOL_VERSION}; update the application")
        if request.campaign_id != intake.bundle.campaign_id:
            raise NotFound("this platform serves another campaign; check the address and the campaign's id")
        if len(request.writer) != ID_BYTES or len(request.token) != ID_BYTES:
            raise StreamViolation(f"Open.writer and Open.token must have {ID_BYTES} bytes")
        try:
            return pseudonym_of(intake.pseudonym_key, parse_code(request.code[: MAX_TYPED_CHARACTERS + 1]))
        except CodeRefused:
            return self._random_bytes(PSEUDONYM_BYTES)

    def _refuse(self, intake: Intake, verdict: OpenedSession) -> None:
        match verdict.verdict:
            case v if v == NOT_OPEN:
                raise CampaignNotOpen("the campaign is not open yet; wait for its start")
            case v if v == CLOSED:
                raise CampaignClosed("the campaign is closed, and this code was not used on this device")
            case v if v == REFUSED:
                intake.counts.refused += 1
                raise CodeRefused(REFUSAL)
            case v if v == STALE:
                raise Unavailable("the spool took too long to open the session; open again")
            case v if v == FULL:
                raise self._overloaded()

    def _overloaded(self) -> Overloaded:
        # An individual slot: ten thousand clients that come back at once would be refused at once.
        share = int.from_bytes(self._random_bytes(4), "big") / 2**32
        slot = int(share * self._limits.retry_slot_ms)
        return Overloaded("too many at this moment; keep the connection and open again then", retry_after_ms=slot)

    def _opened(self, intake: Intake, verdict: OpenedSession, read_only: bool) -> Opened:
        opened = Opened(
            opening=verdict.opening,
            durable_seq=verdict.durable_seq,
            rejected=[Rejected(seq=seq, reason=reason) for seq, reason in verdict.rejected],  # type: ignore[arg-type]  # an enum's number
            max_in_flight=self._limits.max_in_flight,
            seats=verdict.seats,
            instrument_version=intake.rules.version,
            closes_at_ms=intake.closes_at_ms,
            server_time_ms=self._clock_ms(),
            read_only=read_only,
        )
        if verdict.state == FINISHED and verdict.receipt:
            opened.receipt.CopyFrom(Receipt.FromString(verdict.receipt))
        return opened

    async def _read(self, intake: Intake, session: Session, context: Context) -> None:
        """Reads until the client finishes or leaves. Never waits for a write."""
        committer = intake.committers[intake.shard(session.pseudonym)]
        max_in_flight, stalled_seconds = self._limits.max_in_flight, self._limits.stalled_seconds
        read, backlog = context.read, intake.backlog
        while True:
            if session.in_flight >= max_in_flight and not await session.room(stalled_seconds):
                raise Unavailable(STALLED)
            if backlog.full and not await backlog.room(stalled_seconds):
                raise Unavailable(STALLED)
            if not intake.reading.is_set():
                await self._until_reading(intake)
            try:
                request = await read()
            except DecodeError as error:
                raise StreamViolation(UNREADABLE) from error
            if not isinstance(request, SubmitRequest):
                break
            try:
                self._take(intake, session, request)
            finally:
                if session.waiting:
                    committer.submit(session)
            if session.finish_receipt is not None:
                break
        # The client has said its last word: what was read gets its ack before the stream ends.
        while session.in_flight:
            if not await session.room(stalled_seconds):
                raise Unavailable(STALLED)

    async def _until_reading(self, intake: Intake) -> None:
        try:
            async with asyncio.timeout(self._limits.stalled_seconds):
                await intake.reading.wait()
        except TimeoutError as error:
            raise Unavailable("the platform is full; open again later, keep what is not acknowledged") from error

    def _take(self, intake: Intake, session: Session, request: SubmitRequest) -> None:
        match request.WhichOneof("message"):
            case "answers":
                self._take_answers(intake, session, request.answers)
            case "mark":
                self._take_mark(intake, session, request.mark)
            case "finish":
                self._take_finish(intake, session, request.finish)
            case _:
                raise StreamViolation("after Open only Answers, Mark and Finish are expected")

    def _take_answers(self, intake: Intake, session: Session, message: Answers) -> None:
        answers, seq = message.answers, message.first_seq
        count = len(answers)
        if not 1 <= count <= MAX_ANSWERS:
            raise StreamViolation(f"Answers must hold 1 to {MAX_ANSWERS} answers")
        if not self._in_order(session, seq, count):
            return
        check, seats, opening = intake.rules.check, session.seats, session.opening
        for answer in answers:
            if seq == session.next_seq:
                reason = check(answer, seats)
                if not reason and not 1 <= answer.opening <= opening:
                    reason = RejectReason.REJECT_REASON_BAD_OPENING
                if reason:
                    self._reject(session, seq, reason)
                else:
                    session.take((seq, answer.seat, _ANSWER, canonical(answer)))
            seq += 1

    def _take_mark(self, intake: Intake, session: Session, mark: Mark) -> None:
        if not self._in_order(session, mark.seq, 1):
            return
        reason = intake.rules.check_mark(mark, session.seats)
        if not reason and not 1 <= mark.opening <= session.opening:
            reason = RejectReason.REJECT_REASON_BAD_OPENING
        if reason:
            self._reject(session, mark.seq, reason)
        else:
            session.take((mark.seq, mark.seat, _MARK, canonical(mark)))

    def _take_finish(self, intake: Intake, session: Session, finish: Finish) -> None:
        if not self._in_order(session, finish.seq, 1):
            return
        accepted = session.next_seq - 1 - session.rejected_count
        if finish.count != accepted or len(finish.digest) != DIGEST_BYTES:
            self._reject(session, finish.seq, RejectReason.REJECT_REASON_BAD_FINISH)
        elif not 1 <= finish.opening <= session.opening:
            self._reject(session, finish.seq, RejectReason.REJECT_REASON_BAD_OPENING)
        else:
            session.finish_receipt = self._identity.receipt(
                intake.bundle.campaign_id, session.pseudonym, finish.seq, accepted, self._clock_ms
            )
            session.take((finish.seq, 0, _FINISH, canonical(finish)))

    def _in_order(self, session: Session, first_seq: int, count: int) -> bool:
        """Whether something in this message is new. A gap is told, a repetition is acknowledged again."""
        if not 1 <= first_seq <= MAX_SEQ - count:
            raise StreamViolation(f"a seq must lie between 1 and {MAX_SEQ}")
        if first_seq > session.next_seq:
            session.tell_expected()
            return False
        if first_seq + count <= session.next_seq:
            session.repeat_ack()
            return False
        return True

    def _reject(self, session: Session, seq: int, reason: int) -> None:
        if session.rejected_count >= self._limits.max_rejections:
            raise StreamViolation("too many messages of this writer were rejected; update the application")
        session.rejected_count += 1
        session.take((seq, reason, REJECTED, b""))


async def _read(context: Context) -> SubmitRequest | None:
    """The next message; None when the client has said that there is none.

    Raises:
        StreamViolation: what came is not a message of this protocol.
    """
    try:
        request = await context.read()
    except DecodeError as error:
        raise StreamViolation(UNREADABLE) from error
    return request if isinstance(request, SubmitRequest) else None

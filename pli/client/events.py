"""What a session tells while it runs: events for the application, and the observer that keeps a ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pli.codes import Code
from pli.errors import PliError
from pli.ingest.v1.ingest_pb2 import RejectReason


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A stream is open, for the first time or again."""

    opening: int
    durable_seq: int
    instrument_version: str
    closes_at_ms: int
    """Unix time by the platform's clock; 0 when not scheduled."""
    server_time_ms: int
    """The platform's clock now; advisory, for a countdown."""


@dataclass(frozen=True, slots=True)
class SessionInterrupted:
    """The stream ended. Everything given is kept; the session opens again by itself after the wait."""

    error: PliError
    retry_in_ms: int


@dataclass(frozen=True, slots=True)
class OverloadTold:
    """The platform has no room at this moment and gave this session a slot of its own."""

    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class DrainTold:
    """The process behind this stream is about to stop; the session moves to another one."""

    reconnect_after_ms: int


@dataclass(frozen=True, slots=True)
class ClosingTold:
    """The window is closing: finish now."""

    until_ms: int
    """Unix time by the platform's clock at which the last answer can be taken."""


@dataclass(frozen=True, slots=True)
class SupersededTold:
    """The code was opened again elsewhere. The session stops until a person opens it here again."""

    opening: int
    """The opening that won."""


@dataclass(frozen=True, slots=True)
class RejectionTold:
    """One answer will never be stored; the session goes on."""

    seq: int
    reason: RejectReason.ValueType


@dataclass(frozen=True, slots=True)
class SpoolWentBack:
    """The platform knows less of this writer than it once told. Everything is sent again from there."""

    told_seq: int
    durable_seq: int


SessionEvent = (
    SessionOpened
    | SessionInterrupted
    | OverloadTold
    | DrainTold
    | ClosingTold
    | SupersededTold
    | RejectionTold
    | SpoolWentBack
)


class SessionObserver(Protocol):
    """Hears what was sent and what was told, in order, so that it can be compared later.

    Called on the event loop: it must be quick. What it raises ends the session, because an answer
    whose `sent` was not written down must not go out. `pli.ledger.LedgerWriter` is one.
    """

    def opened(self, writer: bytes, code: Code) -> None:
        """This writer is about to open this code. Called once, before the first `Open`."""

    def sent(self, writer: bytes, seq: int, kind: int, payload: bytes) -> None:
        """This message goes out next. Called once per number; `kind` is its RecordKind, `payload` canonical."""

    def acked(self, writer: bytes, durable_seq: int) -> None:
        """Called for every `Ack` and for the `durable_seq` of every `Opened`."""

    def rejected(self, writer: bytes, seq: int, reason: int) -> None:
        """Called for every `Rejected`, also those that an `Opened` repeats, before the ack that covers it."""


class SilentObserver:
    """Hears everything and keeps nothing: what a session has unless it is given another."""

    def opened(self, writer: bytes, code: Code) -> None:
        """Keeps nothing."""

    def sent(self, writer: bytes, seq: int, kind: int, payload: bytes) -> None:
        """Keeps nothing."""

    def acked(self, writer: bytes, durable_seq: int) -> None:
        """Keeps nothing."""

    def rejected(self, writer: bytes, seq: int, reason: int) -> None:
        """Keeps nothing."""

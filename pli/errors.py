"""Every error that pli raises on purpose, in one tree, each with its gRPC status and reason.

    PliError
    ├── InputError            INVALID_ARGUMENT     a file or value that a person gave is wrong
    ├── ConfigError           FAILED_PRECONDITION  configuration, secret files, ports, directories
    ├── StateError            FAILED_PRECONDITION  right request, wrong moment
    │   ├── CampaignNotOpen
    │   ├── CampaignClosed
    │   ├── VaultLocked
    │   └── SessionSuperseded
    ├── NotFound              NOT_FOUND
    ├── AlreadyExists         ALREADY_EXISTS
    ├── CodeRefused           UNAUTHENTICATED      unknown, revoked, finished: all alike
    ├── Forbidden             PERMISSION_DENIED    the role table says no
    ├── StreamViolation       INVALID_ARGUMENT     the client broke the order of the protocol
    ├── VersionMismatch       FAILED_PRECONDITION  the other side speaks another protocol version
    ├── IntegrityError        DATA_LOSS            something sealed or signed does not verify
    ├── Overloaded            RESOURCE_EXHAUSTED   come back at the given moment
    └── Unavailable           UNAVAILABLE          try again, with back-off
        ├── SpoolUnavailable
        │   └── SpoolFull
        ├── SpoolUnsafe
        ├── VaultUnavailable
        └── Draining

`pli.client.AnswerRejected` is one more, of the client alone: on the wire it is `Rejected`, not a status.

A message says what was wrong, where, and what to do. It never holds an answer, a code, a name or a
key: those types refuse to print themselves, and nothing here formats them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import StatusCode

DOMAIN = "pli"
"""`google.rpc.ErrorInfo.domain` of every status that pli sends."""

MAX_MESSAGE_CHARACTERS = 2_000
MAX_FAULTS_BYTES = 8_000
"""A status travels in the trailers, and a peer drops a call whose trailers pass its limit on metadata
(16 kB where nothing is set): so a message and the list of faults beside it are cut."""


class PliError(Exception):
    """Root of the tree. `reason` is stable and part of the protocol; the message is for people."""

    status: ClassVar[StatusCode] = StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a file: where it stands and which rule it breaks.

    `line` and `column` count from 1; 0 means "the whole file" or "the whole line". `value` is an
    excerpt for the person who owns the file; it never travels into a log.
    """

    file: str
    line: int
    column: str
    value: str
    rule: str

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place += f", line {self.line}"
        if self.column:
            place += f", column {self.column}"
        shown = f": {self.value!r}" if self.value else ""
        return f"{place}{shown}: {self.rule}"


class InputError(PliError):
    """A roster, instrument, response or argument is wrong. Nothing of it was taken.

    `faults` holds the first faults found (at most `MAX_FAULTS`); `total` counts all of them.
    """

    status = StatusCode.INVALID_ARGUMENT
    reason = "INPUT_INVALID"
    exit_code = 2
    MAX_FAULTS: ClassVar[int] = 20

    def __init__(self, message: str, faults: tuple[Fault, ...] = (), total: int = 0) -> None:
        self.headline = message
        self.faults = faults[: self.MAX_FAULTS]
        self.total = max(total, len(faults))
        super().__init__(_listed(message, [str(fault) for fault in self.faults], self.total))

    @classmethod
    def received(cls, message: str, lines: list[str], total: int) -> InputError:
        """The error of another process: its faults are known as lines of text only."""
        error = cls(message, total=total)
        error.message = _listed(message, lines, total)
        error.args = (error.message,)
        return error


def _listed(message: str, lines: list[str], total: int) -> str:
    rest = [f"… and {total - len(lines)} more"] if total > len(lines) else []
    return "\n  ".join([message, *lines, *rest])


class ConfigError(PliError):
    """Configuration, a secret file, a port or a directory is not as it must be."""

    status = StatusCode.FAILED_PRECONDITION
    reason = "CONFIGURATION"
    exit_code = 2


class StateError(PliError):
    """The request is right but not at this moment of the campaign's life."""

    status = StatusCode.FAILED_PRECONDITION
    reason = "WRONG_STATE"


class CampaignNotOpen(StateError):
    reason = "CAMPAIGN_NOT_OPEN"


class CampaignClosed(StateError):
    reason = "WINDOW_CLOSED"


class VaultLocked(StateError):
    reason = "VAULT_LOCKED"


class SessionSuperseded(StateError):
    """The same code was opened again, on this or another device; the newest opening wins."""

    reason = "SUPERSEDED"


class NotFound(PliError):
    status = StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(PliError):
    status = StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class CodeRefused(PliError):
    """No session for this code. Whether it is unknown, revoked or finished is not said."""

    status = StatusCode.UNAUTHENTICATED
    reason = "CODE_REFUSED"


class Forbidden(PliError):
    status = StatusCode.PERMISSION_DENIED
    reason = "FORBIDDEN"


class StreamViolation(PliError):
    """A message that the protocol does not allow at this place of the stream."""

    status = StatusCode.INVALID_ARGUMENT
    reason = "PROTOCOL"


class VersionMismatch(PliError):
    status = StatusCode.FAILED_PRECONDITION
    reason = "PROTOCOL_VERSION"


class IntegrityError(PliError):
    """A signature, tag or hash does not verify. The message says which object, never its content."""

    status = StatusCode.DATA_LOSS
    reason = "INTEGRITY"


class Overloaded(PliError):
    """Come back after `retry_after_ms`: an individual, jittered slot."""

    status = StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class Unavailable(PliError):
    status = StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"
    exit_code = 3


class SpoolUnavailable(Unavailable):
    """Redis/Valkey does not answer."""

    reason = "SPOOL_UNAVAILABLE"


class SpoolFull(SpoolUnavailable):
    """The store is at its memory limit: blocks wait until the relay has made room."""

    reason = "SPOOL_FULL"


class SpoolUnsafe(Unavailable):
    """Redis/Valkey answers but may lose what it acknowledges, or is not the store we knew."""

    reason = "SPOOL_UNSAFE"


class VaultUnavailable(Unavailable):
    reason = "VAULT_UNAVAILABLE"


class Draining(Unavailable):
    """This process is shutting down; another one will take the session."""

    reason = "DRAINING"


def _tree(root: type[PliError]) -> dict[str, type[PliError]]:
    found = {root.reason: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


BY_REASON: Mapping[str, type[PliError]] = _tree(PliError)
"""Reason → class, for clients that turn a status back into the typed error."""


def to_status(error: PliError) -> status_pb2.Status:
    """The `google.rpc.Status` that travels in the trailers (`grpc-status-details-bin`).

    The faults of an InputError are its BadRequest: `field` is file:line:column, `description` the whole
    line for people; how many there are in all is `total` in the metadata of its ErrorInfo.
    """
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    message = error.message
    if isinstance(error, InputError):
        message = error.headline
        info.metadata[_TOTAL] = str(error.total)
    details = [_packed(info)]
    if isinstance(error, Overloaded):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if isinstance(error, InputError):
        details.append(_packed(_bad_request(error.faults)))
    code = getattr(code_pb2, error.status.name)
    return status_pb2.Status(code=code, message=message[:MAX_MESSAGE_CHARACTERS], details=details)


def _bad_request(faults: tuple[Fault, ...]) -> error_details_pb2.BadRequest:
    request = error_details_pb2.BadRequest()
    for fault in faults:
        request.field_violations.add(field=f"{fault.file}:{fault.line}:{fault.column}", description=str(fault))
        if request.ByteSize() > MAX_FAULTS_BYTES:
            del request.field_violations[-1]
            break
    return request


def from_status(status: status_pb2.Status) -> PliError:
    """The typed error behind a received status; an unknown reason becomes the family's root."""
    reason, metadata, retry_after_ms, lines = "", dict[str, str](), 0, list[str]()
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_ms = retry.retry_delay.ToMilliseconds()
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            request = error_details_pb2.BadRequest()
            detail.Unpack(request)
            lines = [violation.description for violation in request.field_violations]
    kind = BY_REASON.get(reason)
    if kind is None or kind is PliError:
        kind = _BY_CODE.get(status.code, PliError)
    if issubclass(kind, Overloaded):
        return kind(status.message, retry_after_ms=retry_after_ms)
    if issubclass(kind, InputError):
        total = metadata.get(_TOTAL, "")
        return kind.received(status.message, lines, int(total) if total.isdecimal() and len(total) < 20 else 0)
    return kind(status.message, metadata=metadata)


_TOTAL = "total"

_BY_CODE: Mapping[int, type[PliError]] = {
    code_pb2.UNAVAILABLE: Unavailable,
    code_pb2.DEADLINE_EXCEEDED: Unavailable,
    code_pb2.CANCELLED: Unavailable,
    code_pb2.RESOURCE_EXHAUSTED: Overloaded,
    code_pb2.PERMISSION_DENIED: Forbidden,
    code_pb2.UNAUTHENTICATED: CodeRefused,
    code_pb2.NOT_FOUND: NotFound,
    code_pb2.ALREADY_EXISTS: AlreadyExists,
    code_pb2.FAILED_PRECONDITION: StateError,
    code_pb2.INVALID_ARGUMENT: StreamViolation,
    code_pb2.DATA_LOSS: IntegrityError,
}


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo | error_details_pb2.BadRequest,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed

"""What an application gives, as the protocol's `Answer`; and the error of an answer that was rejected."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from grpc import StatusCode

from pli.errors import InputError, PliError
from pli.ingest.v1.ingest_pb2 import Answer, Choices, Cleared, RejectReason

Number = str | int | Decimal
"""A number as typed, or an exact one. No float: 0.1 is not the number that was typed."""

MAX_ANSWER_BYTES = 16 * 1024
"""Twice what any item takes. What is longer would break the stream at the node's message limit instead
of being rejected by itself, so it gets no number at all."""

MAX_NUMBER_DIGITS = 64
"""Twice what a node takes (32 characters): guards against a Decimal with a huge exponent."""

_MAX_UINT32 = 2**32 - 1


class AnswerRejected(PliError):
    """The platform will never store this answer. The session goes on; `seq` and `reason` say which and why.

    Known to the client alone: on the wire it is `Rejected{seq, reason}`, not a status.
    """

    status = StatusCode.INVALID_ARGUMENT
    reason = "ANSWER_REJECTED"

    def __init__(self, seq: int, why: RejectReason.ValueType) -> None:
        super().__init__(f"answer {seq} was rejected for good: {reason_name(why)}")
        self.seq = seq
        self.why = why


def reason_name(why: RejectReason.ValueType) -> str:
    """`UNKNOWN_ITEM` for `REJECT_REASON_UNKNOWN_ITEM`; the number for one that this version does not know."""
    try:
        return RejectReason.Name(why).removeprefix("REJECT_REASON_")
    except ValueError:
        return f"reason {int(why)}"


def answer_of(
    item_id: str,
    *,
    choice: str | None = None,
    choices: Iterable[str] | None = None,
    text: str | None = None,
    number: Number | None = None,
    cleared: bool = False,
    elapsed_ms: int = 0,
) -> Answer:
    """The message, without `opening`. Whether the instrument takes it is the node's to say.

    Raises:
        InputError: not exactly one value, a value of another type, text that is not Unicode, or more
            than `MAX_ANSWER_BYTES`. The value itself is never quoted.
    """
    given = sum(value is not None for value in (choice, choices, text, number)) + cleared
    if given != 1:
        raise InputError(f"an answer has exactly one of choice, choices, text, number, cleared; {given} were given")
    if not 0 <= elapsed_ms <= _MAX_UINT32:
        raise InputError(f"elapsed_ms must lie between 0 and {_MAX_UINT32}")
    answer = Answer(elapsed_ms=elapsed_ms)
    try:
        answer.item_id = item_id
        if choice is not None:
            answer.choices.CopyFrom(Choices(options=[choice]))
        elif choices is not None:
            answer.choices.CopyFrom(Choices(options=_options(choices)))
        elif text is not None:
            answer.text = text
        elif number is not None:
            answer.number = _written(number)
        else:
            answer.cleared.CopyFrom(Cleared())
        size = answer.ByteSize()
    except (TypeError, ValueError):
        # The library's own message quotes the value: it goes no further.
        raise InputError("a value of an answer has the wrong type, or is text that is not Unicode") from None
    if size > MAX_ANSWER_BYTES:
        raise InputError(f"an answer of {size} bytes is longer than any item takes ({MAX_ANSWER_BYTES})")
    return answer


def _options(choices: Iterable[str]) -> list[str]:
    if isinstance(choices, str):
        raise InputError("choices takes several options, for example ['A', 'C']; use choice for one")
    return list(choices)


def _written(number: Number) -> str:
    """Plain digits, never an exponent: the notation that nodes take."""
    if isinstance(number, str):
        return number
    if isinstance(number, bool) or not isinstance(number, int | Decimal):
        raise InputError("number takes a str, an int or a Decimal")
    exact = Decimal(number)
    if not exact.is_finite() or abs(exact.adjusted()) > MAX_NUMBER_DIGITS:
        raise InputError(f"number must be finite and have at most {MAX_NUMBER_DIGITS} digits")
    return format(exact, "f")

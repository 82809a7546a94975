"""The error tree: one status and reason per class, and the same type on the other side of a call."""

from __future__ import annotations

import re

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from pli import errors
from pli.client import AnswerRejected
from pli.errors import (
    BY_REASON,
    MAX_FAULTS_BYTES,
    MAX_MESSAGE_CHARACTERS,
    Fault,
    InputError,
    Overloaded,
    PliError,
    StreamViolation,
    from_status,
    to_status,
)
from pli.faults import FaultList

EXPECTED = {
    "PliError": ("INTERNAL", "INTERNAL", 1),
    "InputError": ("INVALID_ARGUMENT", "INPUT_INVALID", 2),
    "ConfigError": ("FAILED_PRECONDITION", "CONFIGURATION", 2),
    "StateError": ("FAILED_PRECONDITION", "WRONG_STATE", 1),
    "CampaignNotOpen": ("FAILED_PRECONDITION", "CAMPAIGN_NOT_OPEN", 1),
    "CampaignClosed": ("FAILED_PRECONDITION", "WINDOW_CLOSED", 1),
    "VaultLocked": ("FAILED_PRECONDITION", "VAULT_LOCKED", 1),
    "SessionSuperseded": ("FAILED_PRECONDITION", "SUPERSEDED", 1),
    "NotFound": ("NOT_FOUND", "NOT_FOUND", 1),
    "AlreadyExists": ("ALREADY_EXISTS", "ALREADY_EXISTS", 1),
    "CodeRefused": ("UNAUTHENTICATED", "CODE_REFUSED", 1),
    "Forbidden": ("PERMISSION_DENIED", "FORBIDDEN", 1),
    "StreamViolation": ("INVALID_ARGUMENT", "PROTOCOL", 1),
    "VersionMismatch": ("FAILED_PRECONDITION", "PROTOCOL_VERSION", 1),
    "IntegrityError": ("DATA_LOSS", "INTEGRITY", 1),
    "Overloaded": ("RESOURCE_EXHAUSTED", "OVERLOADED", 1),
    "Unavailable": ("UNAVAILABLE", "UNAVAILABLE", 3),
    "SpoolUnavailable": ("UNAVAILABLE", "SPOOL_UNAVAILABLE", 3),
    "SpoolFull": ("UNAVAILABLE", "SPOOL_FULL", 3),
    "SpoolUnsafe": ("UNAVAILABLE", "SPOOL_UNSAFE", 3),
    "VaultUnavailable": ("UNAVAILABLE", "VAULT_UNAVAILABLE", 3),
    "Draining": ("UNAVAILABLE", "DRAINING", 3),
}
"""Status, reason and exit code: part of the protocol and of the commands, so a change must be meant."""


def tree(root: type[PliError] = PliError) -> list[type[PliError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in tree(child))]


TREE = [kind for kind in tree() if kind.__module__ == errors.__name__]


def raised(kind: type[PliError]) -> PliError:
    if issubclass(kind, Overloaded):
        return kind("at 12:03, come back", retry_after_ms=4_321)
    if issubclass(kind, InputError):
        return kind("roster.csv was refused", (Fault("roster.csv", 3, "sex", "Q", "must be F or M"),), 5)
    return kind("what, where, what to do", metadata={"shard": "3"})


def test_every_error_has_its_status_reason_and_exit_code() -> None:
    assert {kind.__name__: (kind.status.name, kind.reason, kind.exit_code) for kind in TREE} == EXPECTED


def test_every_error_of_the_whole_tree_has_a_reason_of_its_own() -> None:
    assert len(BY_REASON) == len({kind.reason for kind in TREE}) == len(TREE)
    assert set(BY_REASON.values()) == set(TREE)
    assert all("reason" in vars(kind) for kind in TREE)
    assert all(re.fullmatch("[A-Z_]+", reason) for reason in BY_REASON)


def test_no_module_of_the_core_adds_errors_outside_the_tree() -> None:
    """AnswerRejected is of the client alone: on the wire it is `Rejected`, never a status."""
    found = {kind for kind in tree() if kind.__module__.partition(".")[0] == "pli"}
    assert found - {AnswerRejected} == set(TREE)


def test_the_tree_at_the_top_of_the_module_draws_every_error_with_its_status() -> None:
    drawn = re.findall(r"^[ │├└─]{4,}(\w+)(?: +([A-Z_]+))?", errors.__doc__ or "", re.MULTILINE)
    assert [name for name, _ in drawn] == [kind.__name__ for kind in TREE]
    assert all(EXPECTED[name][0] == status for name, status in drawn if status)


@pytest.mark.parametrize("kind", TREE)
def test_the_other_side_gets_the_same_error(kind: type[PliError]) -> None:
    error = raised(kind)
    received = from_status(status_pb2.Status.FromString(to_status(error).SerializeToString()))
    assert type(received) is kind
    assert received.message == error.message == str(received)
    if isinstance(error, Overloaded):
        assert isinstance(received, Overloaded)
        assert received.retry_after_ms == 4_321
    elif isinstance(error, InputError):
        assert isinstance(received, InputError)
        assert received.total == 5
    else:
        assert received.metadata == {"shard": "3"}


@pytest.mark.parametrize("code", [code for code in StatusCode if code != StatusCode.OK])
@pytest.mark.parametrize("reason", ["", "OF_A_LATER_VERSION"])
def test_an_unknown_reason_becomes_the_root_of_its_family(code: StatusCode, reason: str) -> None:
    status = to_status(PliError("said"))
    status.code = code.value[0]
    status.details[0].Pack(error_details_pb2.ErrorInfo(reason=reason, domain="pli"))
    received = from_status(status)
    assert received.message == "said"
    if type(received) is not PliError:
        family = StatusCode.UNAVAILABLE if code in (StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED) else code
        assert received.status == family
    else:
        assert code in (
            StatusCode.UNKNOWN, StatusCode.INTERNAL, StatusCode.ABORTED, StatusCode.OUT_OF_RANGE,
            StatusCode.UNIMPLEMENTED,
        )  # fmt: skip


def test_a_status_without_details_is_still_typed() -> None:
    assert type(from_status(status_pb2.Status(code=code_pb2.INVALID_ARGUMENT))) is StreamViolation
    overloaded = from_status(status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="gRPC's own"))
    assert isinstance(overloaded, Overloaded)
    assert overloaded.retry_after_ms == 0


# Faults of files


def test_an_input_error_says_place_value_and_rule_of_every_fault() -> None:
    faults = FaultList("roster.csv")
    faults.add(12, "birth_date", "31/02/2015", "must be a date as YYYY-MM-DD")
    faults.add(0, "", "", "there is no pupil in the file")
    faults.add(3, "", "", "the row has 8 fields where the header has 9")
    with pytest.raises(InputError) as caught:
        faults.raise_if_any()
    assert str(caught.value).splitlines() == [
        "roster.csv was refused and nothing of it was taken (3 faults); correct it and try again:",
        "  roster.csv: there is no pupil in the file",
        "  roster.csv, line 3: the row has 8 fields where the header has 9",
        "  roster.csv, line 12, column birth_date: '31/02/2015': must be a date as YYYY-MM-DD",
    ]
    violations = bad_request(to_status(caught.value)).field_violations
    assert [violation.field for violation in violations] == [
        "roster.csv:0:",
        "roster.csv:3:",
        "roster.csv:12:birth_date",
    ]


def test_many_faults_are_all_counted_and_the_first_twenty_by_line_shown() -> None:
    faults = FaultList("roster.csv")
    for line in range(500, 0, -1):
        faults.add(line, "sex", "Q", "must be F, M, X or empty")
    with pytest.raises(InputError) as caught:
        faults.refuse()
    assert [fault.line for fault in caught.value.faults] == list(range(1, 21))
    assert caught.value.total == 500
    received = from_status(to_status(caught.value))
    assert received.message == caught.value.message
    assert received.message.endswith("\n  … and 480 more")


def test_nothing_noted_is_nothing_raised() -> None:
    FaultList("roster.csv").raise_if_any()


@given(st.text(min_size=20, max_size=50), st.integers(1, 40))
def test_however_long_names_and_values_are_a_status_fits_into_the_trailers(piece: str, count: int) -> None:
    text = piece * 500
    faults = FaultList(text)
    for line in range(count):
        faults.add(line, text, text, "rule " * 40)
    with pytest.raises(InputError) as caught:
        faults.refuse()
    status = to_status(caught.value)
    assert status.ByteSize() < MAX_FAULTS_BYTES + 4 * MAX_MESSAGE_CHARACTERS
    received = from_status(status)
    assert isinstance(received, InputError)
    shown = len(bad_request(status).field_violations)
    assert shown >= 1
    assert received.total == count
    assert f"… and {count - shown} more" in received.message or shown == count


def test_a_message_of_any_length_is_cut_on_the_way() -> None:
    assert len(from_status(to_status(PliError("x" * 1_000_000))).message) == MAX_MESSAGE_CHARACTERS


def bad_request(status: status_pb2.Status) -> error_details_pb2.BadRequest:
    request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(request) for detail in status.details)
    return request

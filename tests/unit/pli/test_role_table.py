"""Roles: every method of every service has its row, and nobody else may call it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2

import pli
from pli.errors import ConfigError
from pli.rpc.roles import TABLE, check_table, may_call
from pli.rpc.server import methods_of

PROTOS = Path(__file__).parents[3] / "protos"
ROLES = {
    "code holder": "",
    **{
        role: role
        for role in (
            "ingest", "relay", "vault", "operator", "observer", "campaign-admin", "reporter", "custodian",
            "requester", "approver", "statistician", "auditor",
        )
    },
}  # fmt: skip
EVERYONE = set(ROLES)

MATRIX = {
    "/grpc.health.v1.Health/Check": EVERYONE,
    "/grpc.health.v1.Health/List": {"campaign-admin", "operator", "observer"},
    "/grpc.health.v1.Health/Watch": EVERYONE,
    "/pli.ingest.v1.IngestService/Submit": {"code holder"},
    "/pli.ops.v1.OperationsService/GetStatus": {"operator", "observer"},
    "/pli.vault.v1.CampaignService/CloseWindow": {"campaign-admin"},
    "/pli.vault.v1.CampaignService/CreateCampaign": {"campaign-admin"},
    "/pli.vault.v1.CampaignService/GetCampaign": {"campaign-admin", "operator", "observer"},
    "/pli.vault.v1.CampaignService/ImportRoster": {"campaign-admin"},
    "/pli.vault.v1.CampaignService/IssueCodes": {"campaign-admin"},
    "/pli.vault.v1.CampaignService/OpenWindow": {"campaign-admin"},
    "/pli.vault.v1.CampaignService/Publish": {"campaign-admin"},
    "/pli.vault.v1.CampaignService/PutInstrument": {"campaign-admin"},
    "/pli.vault.v1.CampaignService/Settle": {"campaign-admin"},
    "/pli.vault.v1.DepositService/Deposit": {"relay"},
    "/pli.vault.v1.DepositService/EnrolNode": {"relay"},
    "/pli.vault.v1.DepositService/FetchBundle": {"relay"},
    "/pli.vault.v1.DepositService/Sync": {"relay"},
    "/pli.vault.v1.ExportService/Export": {"reporter"},
    "/pli.vault.v1.KeyService/GetLockState": {"custodian", "campaign-admin", "operator", "observer"},
    "/pli.vault.v1.KeyService/Lock": {"custodian"},
    "/pli.vault.v1.KeyService/Unlock": {"custodian"},
    "/pli.vault.v1.RehearsalService/VerifyLedger": {"campaign-admin"},
}
"""Who may call what. A row that changes here is a decision, not a slip."""


def descriptors() -> Iterator[FileDescriptor]:
    for module in pkgutil.walk_packages(pli.__path__, "pli."):
        if module.name.endswith("_pb2"):
            yield importlib.import_module(module.name).DESCRIPTOR


def services() -> list[ServiceDescriptor]:
    files = [*descriptors(), health_pb2.DESCRIPTOR]
    return [service for file in files for service in file.services_by_name.values()]


def test_every_proto_file_has_its_stub() -> None:
    written = {str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto")}
    assert written == {file.name for file in descriptors()}


def test_every_method_of_every_service_has_a_row_and_every_row_a_method() -> None:
    assert TABLE.keys() == set(methods_of(services()))
    check_table(methods_of(services()))


def test_each_role_may_call_exactly_what_the_matrix_says() -> None:
    granted = {
        method: {name for name, role in ROLES.items() if may_call(method, role)} for method in methods_of(services())
    }
    assert granted == MATRIX


def test_the_table_names_no_role_that_nobody_has() -> None:
    assert set().union(*TABLE.values()) == set(ROLES.values())


@pytest.mark.parametrize("role", [*ROLES.values(), "root", "admin", "Relay", "relay ", "*"])
def test_a_method_without_a_row_is_denied_to_everyone(role: str) -> None:
    for method in (
        "/pli.vault.v1.ExportService/ExportAll",
        "",
        "/",
        "Submit",
        "/grpc.reflection.v1.ServerReflection/X",
    ):
        assert not may_call(method, role)


@pytest.mark.parametrize("role", ["root", "admin", "Relay", "relay ", "*", "code holder"])
def test_an_unknown_role_may_call_nothing(role: str) -> None:
    assert not any(may_call(method, role) for method in TABLE)


def test_a_process_with_a_method_that_has_no_row_does_not_start() -> None:
    with pytest.raises(ConfigError, match=r"/pli\.a\.B/C, /pli\.a\.B/D"):
        check_table([*TABLE, "/pli.a.B/D", "/pli.a.B/C"])

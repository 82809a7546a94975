"""Who may call what on the vault: every role against every method over real mTLS, default deny."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pli.development_ca import DevelopmentAuthority
from pli.rpc.client import channel
from pli.rpc.server import Health, make_server
from pli.tls import client_credentials, read_file, server_credentials
from tests.support.issuer import DAY, SERVER, Issuer
from vault.config import VaultSettings
from vault.main.vault import SERVED, Domain

ROLES = (
    "ingest", "relay", "vault", "operator", "observer", "campaign-admin", "requester", "approver", "reporter",
    "statistician", "custodian", "auditor", "janitor",
)  # fmt: skip
"""All of DESIGN 9 that come with a certificate, and one that nobody has heard of."""

ADMIN, WATCH = {"campaign-admin"}, {"campaign-admin", "operator", "observer"}
MATRIX = {
    "DepositService/Deposit": {"relay"},
    "DepositService/Sync": {"relay"},
    "DepositService/FetchBundle": {"relay"},
    "DepositService/EnrolNode": {"relay"},
    "CampaignService/CreateCampaign": ADMIN,
    "CampaignService/ImportRoster": ADMIN,
    "CampaignService/PutInstrument": ADMIN,
    "CampaignService/IssueCodes": ADMIN,
    "CampaignService/Publish": ADMIN,
    "CampaignService/OpenWindow": ADMIN,
    "CampaignService/CloseWindow": ADMIN,
    "CampaignService/GetCampaign": WATCH,
    "CampaignService/Settle": ADMIN,
    "KeyService/Unlock": {"custodian"},
    "KeyService/Lock": {"custodian"},
    "KeyService/GetLockState": WATCH | {"custodian"},
    "ExportService/Export": {"reporter"},
    "RehearsalService/VerifyLedger": ADMIN,
}
"""As the comments of the contract say (protos/pli/vault/v1), and not read from the table in the code."""


@dataclass
class Served:
    """The whole vault as its process serves it."""

    address: str
    authority: DevelopmentAuthority
    domain: Domain


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vault(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """All five services, locked, behind their one listener."""
    directory = tmp_path_factory.mktemp("vault")
    authority = DevelopmentAuthority(directory / "certificates")
    files = authority.issue("vault", "vault-1", ("127.0.0.1",))
    (directory / "state").mkdir()
    settings = VaultSettings(
        tls=files,
        state_dir=directory / "state",
        secret_dirs=(directory / "secrets",),
        public_dir=directory / "public",
    )
    domain = Domain.build(settings)
    health = Health()
    await health.start()
    server = make_server(settings.limits, SERVED, health)
    services = domain.add_services(server, auto_unlock=False)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(files, ask_for_certificate=True))
    await server.start()
    try:
        yield Served(f"127.0.0.1:{port}", authority, domain)
    finally:
        await server.stop(1)
        for service in services:
            await service.finish()
        domain.close()


@asynccontextmanager
async def client(vault: Served, role: str) -> AsyncIterator[grpc.aio.Channel]:
    files = vault.authority.issue(role, f"who-{role}")
    async with channel(vault.address, client_credentials(read_file(files.authority_file), files)) as opened:
        yield opened


async def status_of(opened: grpc.aio.Channel, method: str) -> tuple[grpc.StatusCode, str]:
    """Calls a method of any kind with one empty message: each kind takes the same bytes."""
    try:
        call: Any = opened.stream_stream(f"/pli.vault.v1.{method}")
        async for _ in call(iter([b""]), timeout=20):
            continue
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


@pytest.mark.asyncio(loop_scope="module")
async def test_the_matrix_names_every_method_that_is_served() -> None:
    served = {f"{service.name}/{method.name}" for service in SERVED for method in service.methods}
    assert served == set(MATRIX)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_call_what_the_contract_says_and_nothing_else(vault: Served, role: str) -> None:
    async with client(vault, role) as opened:
        found = {method: await status_of(opened, method) for method in MATRIX}
    denied = {
        method
        for method, answer in found.items()
        if answer == (grpc.StatusCode.PERMISSION_DENIED, f"role {role} may not call /pli.vault.v1.{method}")
    }
    assert {method for method, roles in MATRIX.items() if role not in roles} == denied
    assert vault.domain.keystore.unlocked() == ()


@pytest.mark.asyncio(loop_scope="module")
async def test_unknown_methods_and_services_are_denied_or_unknown_to_everyone(vault: Served) -> None:
    async with client(vault, "campaign-admin-of-all") as opened:
        for method in ("CampaignService/DestroyEverything", "AuditService/Erase"):
            code, _ = await status_of(opened, method)
            assert code is grpc.StatusCode.UNIMPLEMENTED


# Certificates


NOW = datetime.now(UTC)


def pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Trusted:
    """A listener that trusts an authority which issues whatever a test wants."""

    def __init__(self, directory: Path, issuer: Issuer) -> None:
        self.directory = directory
        self.issuer = issuer
        self.key = ec.generate_private_key(ec.SECP256R1())

    def credentials(self, vault: Served, certificate: x509.Certificate | None) -> grpc.ChannelCredentials:
        root = vault.authority.authority_file.read_bytes()
        if certificate is None:
            return grpc.ssl_channel_credentials(root)
        return grpc.ssl_channel_credentials(root, pem_key(self.key), certificate.public_bytes(Encoding.PEM))


@pytest_asyncio.fixture(loop_scope="module")
async def trusted(vault: Served, tmp_path: Path) -> AsyncIterator[tuple[Trusted, str]]:
    """The same services on a second listener, under an authority of the test."""
    issuer = Issuer(NOW)
    root = tmp_path / "root.pem"
    root.write_bytes(issuer.certificate.public_bytes(Encoding.PEM))
    files = vault.authority.issue("vault", f"vault-{tmp_path.name}", ("127.0.0.1",))
    server = make_server(VaultSettings.model_fields["limits"].default, SERVED, health := Health())
    await health.start()
    services = vault.domain.add_services(server, auto_unlock=False)
    with_root = files.model_copy(update={"authority_file": root})
    port = server.add_secure_port("127.0.0.1:0", server_credentials(with_root, ask_for_certificate=True))
    await server.start()
    yield Trusted(tmp_path, issuer), f"127.0.0.1:{port}"
    await server.stop(0)
    for service in services:
        await service.finish()


URI = "spiffe://pli/campaign-admin/alice"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "which", ["none", "self-signed", "another authority", "expired", "not yet valid", "for servers alone"]
)
async def test_a_certificate_that_is_not_to_be_trusted_gets_no_connection(
    vault: Served, trusted: tuple[Trusted, str], which: str
) -> None:
    holder, address = trusted
    certificates = {
        "none": None,
        "self-signed": Issuer(NOW, "alice", key=holder.key).issue(holder.key, URI),
        "another authority": Issuer(NOW).issue(holder.key, URI),
        "expired": holder.issuer.issue(holder.key, URI, ends=NOW - DAY / 2),
        "not yet valid": holder.issuer.issue(holder.key, URI, begins=NOW + DAY / 2),
        "for servers alone": holder.issuer.issue(holder.key, URI, usages=(SERVER,)),
    }
    async with grpc.aio.secure_channel(address, holder.credentials(vault, certificates[which])) as opened:
        code, _ = await status_of(opened, "KeyService/GetLockState")
    assert code is grpc.StatusCode.UNAVAILABLE
    good = holder.issuer.issue(holder.key, URI)
    async with grpc.aio.secure_channel(address, holder.credentials(vault, good)) as opened:
        assert await status_of(opened, "KeyService/GetLockState") == (grpc.StatusCode.OK, ""), "control"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "uris",
    [
        (),
        (URI, "spiffe://pli/custodian/alice"),
        ("https://pli/campaign-admin/alice",),
        ("spiffe://other/campaign-admin/alice",),
        ("spiffe://pli/campaign-admin",),
        ("spiffe://pli//alice",),
        ("spiffe://pli/campaign-admin/alice/x",),
        ("spiffe://pli/Campaign-Admin/alice",),
        ("spiffe://pli/ /alice",),
    ],
)
async def test_a_certificate_without_exactly_one_known_identity_may_call_nothing(
    vault: Served, trusted: tuple[Trusted, str], uris: tuple[str, ...]
) -> None:
    holder, address = trusted
    certificate = holder.issuer.issue(holder.key, *uris)
    async with grpc.aio.secure_channel(address, holder.credentials(vault, certificate)) as opened:
        for method in MATRIX:
            code, _ = await status_of(opened, method)
            assert code is grpc.StatusCode.PERMISSION_DENIED, method

"""`DepositService` over real mTLS, answering as a test tells it to; what it signs, it signs with real keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from pli.errors import Forbidden, VaultUnavailable
from pli.process import bound_address, claim_port
from pli.rpc.server import Context, Health, Limits, make_server
from pli.tls import TlsFiles, server_credentials
from pli.vault.v1 import deposit_pb2
from pli.vault.v1.bundle_pb2 import RegistryChunk, Signed
from pli.vault.v1.deposit_pb2 import (
    BlockVerdict,
    DepositReceipt,
    DepositRequest,
    DepositResponse,
    EnrolNodeRequest,
    EnrolNodeResponse,
    FetchBundleRequest,
    FetchBundleResponse,
    SyncRequest,
    SyncResponse,
    Verdict,
)
from pli.vault.v1.deposit_pb2_grpc import DepositServiceServicer, add_DepositServiceServicer_to_server
from tests.support.played_vault import PlayedVault

MAX_DEPOSIT_BYTES = 8 * 1024 * 1024


def landed(_block: bytes) -> int:
    """The verdict of a vault that takes everything."""
    return Verdict.VERDICT_NEW


@dataclass
class ScriptedVault(DepositServiceServicer):
    """Change its fields while it runs; `deposits` and `syncs` hold what it was asked."""

    vault: PlayedVault
    verdict_of: Callable[[bytes], int] = landed
    spoil: Callable[[DepositReceipt], None] = lambda _receipt: None
    spoil_signed: Callable[[Signed], None] = lambda _signed: None
    unavailable: bool = False
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared: a deposit is taken, and its answer waits."""
    response: SyncResponse = field(default_factory=SyncResponse)
    bundle: Signed | None = None
    registry: list[bytes] = field(default_factory=list)
    refused_nodes: set[bytes] = field(default_factory=set)
    deposits: list[DepositRequest] = field(default_factory=list)
    syncs: list[SyncRequest] = field(default_factory=list)
    certificates: set[bytes] = field(default_factory=set)
    """Of the relays that asked, PEM."""
    enrolments: int = 0
    landed: list[bytes] = field(default_factory=list)
    """SHA-256 of every block deposited, as often as it was."""

    def __post_init__(self) -> None:
        self.answering.set()

    async def Deposit(self, request: DepositRequest, context: Context) -> DepositResponse:  # noqa: N802
        self.deposits.append(request)
        if self.unavailable:
            raise VaultUnavailable("the scripted vault is away")
        self.landed += [sha256(block).digest() for block in request.blocks]
        receipt = DepositReceipt(
            campaign_id=request.campaign_id,
            shard=request.shard,
            blocks=[
                BlockVerdict(digest=sha256(block).digest(), verdict=self.verdict_of(block), records=1)  # type: ignore[arg-type]  # an enum's number
                for block in request.blocks
            ],
            closings=[True for _ in request.closings],
        )
        self.spoil(receipt)
        signed = self.vault.receipt(receipt)
        self.spoil_signed(signed)
        await self.answering.wait()
        return DepositResponse(receipt=signed)

    async def Sync(self, request: SyncRequest, context: Context) -> SyncResponse:  # noqa: N802
        self.syncs.append(request)
        self.certificates |= {bytes(each) for each in context.auth_context()["x509_pem_cert"]}
        if self.unavailable:
            raise VaultUnavailable("the scripted vault is away")
        return self.response

    async def FetchBundle(  # noqa: N802
        self, request: FetchBundleRequest, context: Context
    ) -> AsyncIterator[FetchBundleResponse]:
        assert self.bundle is not None
        yield FetchBundleResponse(bundle=self.bundle)
        half = len(self.registry) // 2
        for rows in (self.registry[:half], self.registry[half:]):
            yield FetchBundleResponse(registry=RegistryChunk(entries=b"".join(rows)))

    async def EnrolNode(self, request: EnrolNodeRequest, context: Context) -> EnrolNodeResponse:  # noqa: N802
        self.enrolments += 1
        key_id, signed = self.vault.enrol(request.enrolment)
        if key_id in self.refused_nodes:
            raise Forbidden("this node's authority is not enrolled")
        return EnrolNodeResponse(enrolled=signed)


@asynccontextmanager
async def listening(service: ScriptedVault, files: TlsFiles) -> AsyncIterator[str]:
    """Serves on 127.0.0.1; its address."""
    health = Health()
    await health.start()
    services: list[Any] = [deposit_pb2.DESCRIPTOR.services_by_name["DepositService"]]
    server = make_server(Limits(max_receive_bytes=MAX_DEPOSIT_BYTES), services, health)
    add_DepositServiceServicer_to_server(service, server)
    with claim_port("127.0.0.1:0") as held:
        address = bound_address(held)
    server.add_secure_port(address, server_credentials(files, ask_for_certificate=True))
    await server.start()
    try:
        yield address
    finally:
        service.answering.set()
        await server.stop(1)

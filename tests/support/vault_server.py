"""The vault's services behind a real mTLS listener in this process, over real parts (vault_parts)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import randbits
from typing import Any

import grpc

from pli.development_ca import DevelopmentAuthority
from pli.errors import PliError
from pli.rpc.client import channel, typed
from pli.rpc.server import Health, Limits, make_server
from pli.tls import client_credentials, read_file, server_credentials
from pli.vault.v1 import (
    campaign_pb2,
    campaign_pb2_grpc,
    deposit_pb2,
    deposit_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
)
from pli.vault.v1.campaign_pb2 import ImportRosterRequest
from pli.vault.v1.deposit_pb2 import ShardState, SyncRequest
from tests.support.vault_parts import CAMPAIGN, ROSTER, VaultParts
from vault.config import MAX_DEPOSIT_BYTES
from vault.epochs import OpenEpochs
from vault.landing import Landing
from vault.life_cycle import LifeCycle
from vault.services.campaign import CampaignService
from vault.services.deposit import DepositService
from vault.services.keys import KeyService
from vault.settlement import Settlement
from vault.store.metadata import METADATA

SERVED = (
    campaign_pb2.DESCRIPTOR.services_by_name["CampaignService"],
    deposit_pb2.DESCRIPTOR.services_by_name["DepositService"],
    keys_pb2.DESCRIPTOR.services_by_name["KeyService"],
)
MARKER = b"m" * 16


@dataclass
class Knobs:
    """What a test may set otherwise."""

    key_files: bool = True
    max_roster_bytes: int = 1 << 20
    stalled_seconds: float = 20.0
    random_bits: Callable[[int], int] = randbits


@dataclass
class VaultServer:
    """A running server, and clients with whatever certificate a test wants."""

    parts: VaultParts
    authority: DevelopmentAuthority
    address: str
    epochs: OpenEpochs
    settlement: Settlement
    key_service: KeyService
    stack: AsyncExitStack
    _channels: dict[tuple[str, str], grpc.aio.Channel] = field(default_factory=dict)

    async def channel(self, role: str, name: str = "alice") -> grpc.aio.Channel:
        """A channel with a certificate of this role and name, kept until the end."""
        if (role, name) not in self._channels:
            files = self.authority.issue(role, name)
            credentials = client_credentials(read_file(files.authority_file), files)
            self._channels[role, name] = await self.stack.enter_async_context(channel(self.address, credentials))
        return self._channels[role, name]

    async def campaigns(self, role: str = "campaign-admin", name: str = "alice") -> Any:
        """A stub of CampaignService."""
        return campaign_pb2_grpc.CampaignServiceStub(await self.channel(role, name))

    async def keys(self, role: str = "custodian", name: str = "carol") -> Any:
        """A stub of KeyService."""
        return keys_pb2_grpc.KeyServiceStub(await self.channel(role, name))

    async def create(self, campaign_id: str = CAMPAIGN) -> None:
        """Makes a campaign by the service."""
        stub = await self.campaigns()
        await stub.CreateCampaign(
            campaign_pb2.CreateCampaignRequest(
                campaign_id=campaign_id,
                title="Évaluation de rentrée",
                rehearsal=True,
                shards=1,
                node_authorities_pem=[self.authority.authority_file.read_text()],
            )
        )

    async def import_roster(self, content: bytes = ROSTER, file_name: str = "roster.csv") -> Any:
        """Imports a roster by the service."""
        return await (await self.campaigns()).ImportRoster(roster_requests(content, file_name))

    async def report(self, *, bundle_version: int, window_version: int, closed: bool = False) -> Any:
        """What a relay says each second."""
        stub: Any = deposit_pb2_grpc.DepositServiceStub(await self.channel("relay", "relay-1"))
        state = ShardState(marker=MARKER, window_version=window_version, blocks_waiting=0, closed=closed)
        return await stub.Sync(
            SyncRequest(campaign_id=CAMPAIGN, relay="relay-1", bundle_version=bundle_version, shards=[state])
        )

    def audited(self) -> list[tuple[str, str, str]]:
        """(action, role, name) of every entry of the audit log."""
        entries = [json.loads(entry) for entry in self.parts.audit_entries()]
        return [(entry["action"], entry["role"], entry["actor"]) for entry in entries]


def roster_requests(
    content: bytes, file_name: str = "roster.csv", campaign_id: str = CAMPAIGN, size: int = 1 << 16
) -> Iterable[ImportRosterRequest]:
    """A file as the contract wants it."""
    yield ImportRosterRequest(campaign_id=campaign_id, file_name=file_name)
    for start in range(0, len(content), size):
        yield ImportRosterRequest(chunk=content[start : start + size])


@asynccontextmanager
async def vault_server(directory: Path, knobs: Knobs | None = None) -> AsyncIterator[VaultServer]:
    """A locked vault that serves; everything is closed at the end."""
    knobs = knobs or Knobs()
    parts = VaultParts(directory, key_files=knobs.key_files)
    authority = DevelopmentAuthority(directory / "certificates")
    epochs = OpenEpochs()
    settlement = Settlement(parts.database, parts.keyring, epochs)
    landing = Landing(parts.database, parts.keyring, parts.clock_ms, epochs)
    life_cycle = LifeCycle(parts.database, parts.keyring, parts.audit, parts.clock_ms, late_grace_ms=1_000)
    campaigns = CampaignService(
        parts.database,
        parts.keyring,
        parts.keystore,
        parts.audit,
        life_cycle,
        settlement,
        clock_ms=parts.clock_ms,
        random_bits=knobs.random_bits,
        max_roster_bytes=knobs.max_roster_bytes,
        stalled_seconds=knobs.stalled_seconds,
    )
    keys = KeyService(parts.keystore, parts.audit, epochs)
    health = Health()
    await health.start()
    server = make_server(Limits(max_receive_bytes=MAX_DEPOSIT_BYTES + 64 * 1024), SERVED, health)
    campaign_pb2_grpc.add_CampaignServiceServicer_to_server(campaigns, server)
    keys_pb2_grpc.add_KeyServiceServicer_to_server(keys, server)
    deposits = DepositService(parts.database, parts.keyring, landing, parts.clock_ms)
    deposit_pb2_grpc.add_DepositServiceServicer_to_server(deposits, server)
    files = authority.issue("vault", "vault-1", ("127.0.0.1",))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(files, ask_for_certificate=True))
    await server.start()
    try:
        async with AsyncExitStack() as stack:
            yield VaultServer(parts, authority, f"127.0.0.1:{port}", epochs, settlement, keys, stack)
    finally:
        await server.stop(1)
        await campaigns.finish()
        await keys.finish()
        landing.close()
        parts.close()


async def refusal(call: Awaitable[object]) -> PliError:
    """The typed error that a call ends with.

    Raises:
        AssertionError: it succeeded.
    """
    try:
        response = await call
    except grpc.aio.AioRpcError as error:
        return typed(error)
    raise AssertionError(f"expected a refusal, got {response!r}")


def content(vault: VaultServer) -> dict[str, int]:
    """Rows of every table but the audit log's: what must not change when something is refused."""
    return {name: vault.parts.rows_in(table) for name, table in METADATA.tables.items() if name not in _LOG_TABLES}


_LOG_TABLES = frozenset({"audit", "log_heads"})

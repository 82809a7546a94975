"""A vault with names in it: real roster, instrument and codes; what pupils give lands in sealed blocks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from pli.codes import Code
from pli.development_ca import DevelopmentAuthority
from pli.instrument import answer_from_text
from pli.rpc.client import channel
from pli.rpc.server import Health, Limits, make_server
from pli.sealing import NewRecord
from pli.tls import client_credentials, read_file, server_credentials
from pli.vault.v1 import export_pb2, export_pb2_grpc, rehearsal_pb2, rehearsal_pb2_grpc
from pli.vault.v1.bundle_pb2 import PublicInstrument
from pli.vault.v1.deposit_pb2 import DepositRequest
from tests.support.sealing_node import SealingNode, Section, Writer
from tests.support.vault_parts import CAMPAIGN, INSTRUMENT, NOW, NOW_MS, VaultParts
from vault.code_issue import issued_codes
from vault.instrument import parse_instrument
from vault.landing import Landing
from vault.roster_store import pupils
from vault.services.export import ExportService
from vault.services.rehearsal import RehearsalService
from vault.settlement import Settlement

SERVED = (
    export_pb2.DESCRIPTOR.services_by_name["ExportService"],
    rehearsal_pb2.DESCRIPTOR.services_by_name["RehearsalService"],
)


@dataclass
class SettledVault:
    """Parts whose both scopes are unlocked, with the small roster, instrument and codes."""

    parts: VaultParts
    authority: DevelopmentAuthority
    landing: Landing
    public: PublicInstrument = field(
        default_factory=lambda: parse_instrument(INSTRUMENT, "instrument.toml").public_part()
    )

    @property
    def codes(self) -> dict[str, tuple[bytes, Code]]:
        """Pupil id → pseudonym and code, in the order of the roster."""
        keys = self.parts.identities
        return self.parts.database.read_now(
            lambda connection: {
                pupil.pupil_id: (pseudonym, code)
                for pupil, (_, pseudonym, code) in zip(
                    pupils(connection, keys), issued_codes(connection, keys), strict=True
                )
            }
        )

    def answers(self, writer: Writer, cells: Iterable[tuple[str, str]]) -> list[NewRecord]:
        """What a row of `responses.csv` becomes."""
        items = {item.id: item for item in self.public.items}
        records = []
        for item_id, cell in cells:
            answer = answer_from_text(items[item_id], cell)
            answer.opening = writer.opening
            records.append(writer.give(answer))
        return records

    async def land(self, *sections: Section) -> None:
        """Lands sections as one block of an epoch of their own."""
        node = SealingNode(CAMPAIGN, self.parts.answers.answer.public_raw, self.authority, NOW_MS)
        epoch = node.epoch()
        request = DepositRequest(
            campaign_id=CAMPAIGN, relay="r", headers=[epoch.header], blocks=[epoch.block(*sections)]
        )
        await self.landing.deposit(request)

    async def settle(self) -> None:
        """Settles and scores."""
        await Settlement(self.parts.database, self.parts.keyring).settle(CAMPAIGN)

    async def play(self, responses: Mapping[str, list[tuple[str, str]]]) -> None:
        """Lands and settles what every pupil gave, each with a finish."""
        codes = self.codes
        for pupil_id, cells in responses.items():
            writer = Writer(codes[pupil_id][0])
            await self.land(writer.sends(*self.answers(writer, cells), writer.finish()))
        await self.settle()

    def execute(self, statement: Any) -> None:
        """Changes the database behind the vault's back."""
        self.parts.database.write_now(lambda connection: connection.execute(statement))


@asynccontextmanager
async def settled_vault(directory: Path) -> AsyncIterator[SettledVault]:
    """Such a vault; closed at the end of the test."""
    authority = DevelopmentAuthority(directory / "authority", NOW)
    parts = VaultParts(directory)
    landing = Landing(parts.database, parts.keyring, lambda: NOW_MS)
    try:
        await parts.create(authority)
        await parts.fill()
        yield SettledVault(parts, authority, landing)
    finally:
        landing.close()
        parts.close()


@dataclass
class Stubs:
    """Clients of the served vault, one per role that may call."""

    exports: Any
    rehearsals: Any


@asynccontextmanager
async def served(vault: SettledVault, directory: Path) -> AsyncIterator[Stubs]:
    """Exports and rehearsals behind a real mTLS listener, called by reporter `rita` and admin `alice`."""
    authority = DevelopmentAuthority(directory)
    parts = vault.parts
    health = Health()
    await health.start()
    server = make_server(Limits(max_receive_bytes=2 << 20), SERVED, health)
    export_pb2_grpc.add_ExportServiceServicer_to_server(
        ExportService(parts.database, parts.keyring, parts.audit), server
    )
    rehearsal_pb2_grpc.add_RehearsalServiceServicer_to_server(RehearsalService(parts.database, parts.keyring), server)
    files = authority.issue("vault", "vault-1", ("127.0.0.1",))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(files, ask_for_certificate=True))
    await server.start()

    def dialled(role: str, name: str) -> grpc.aio.Channel:
        issued = authority.issue(role, name)
        return channel(f"127.0.0.1:{port}", client_credentials(read_file(issued.authority_file), issued))

    try:
        async with dialled("reporter", "rita") as reporter, dialled("campaign-admin", "alice") as admin:
            yield Stubs(export_pb2_grpc.ExportServiceStub(reporter), rehearsal_pb2_grpc.RehearsalServiceStub(admin))
    finally:
        await server.stop(1)

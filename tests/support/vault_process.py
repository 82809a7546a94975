"""A vault as a real process: certificates, configuration, start, kill, restart, clients.

    async with VaultProcess(tmp_path) as vault:              # started, auto_unlock
        stub = vault.campaigns                               # as campaign-admin
        await vault.kill()                                   # kill -9
        await vault.start()                                  # on the same directory and port
        await vault.fill()                                   # campaign, roster, instrument, codes

Everything is on 127.0.0.1, and is stopped by process id when the block ends, also after a failure.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pli.development_ca import DevelopmentAuthority
from pli.rpc.client import channel
from pli.rpc.roles import CAMPAIGN_ADMIN, CUSTODIAN, OBSERVER, RELAY, REPORTER, VAULT
from pli.tls import TlsFiles, client_credentials, read_file
from pli.vault.v1 import (
    campaign_pb2_grpc,
    deposit_pb2_grpc,
    export_pb2_grpc,
    keys_pb2_grpc,
    rehearsal_pb2_grpc,
)
from pli.vault.v1.campaign_pb2 import (
    CreateCampaignRequest,
    GetCampaignRequest,
    GetCampaignResponse,
    ImportRosterRequest,
    IssueCodesRequest,
    PutInstrumentRequest,
)
from tests.support.played_platform import RELAY_NAME
from tests.support.processes import Child
from tests.support.toml_files import write_toml
from tests.support.waiting import until

CAMPAIGN = "eval-2026"
TICK_MS = 20
DRAIN_MS = 8_000

SMALL = Path(__file__).parents[1] / "data" / "small"
PUPILS = 12


class VaultProcess:
    """See the module's docstring. `settings` go into the configuration, over what stands here."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.authority = DevelopmentAuthority(directory / "certificates")
        self.files = self.authority.issue(VAULT, "vault-1", ("127.0.0.1",))
        self.log = directory / "vault.log"
        self.process: Child | None = None
        self._certificates: dict[tuple[str, str], TlsFiles] = {}
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}
        # A port of its own, so that a restarted vault is found again.
        self.address = f"127.0.0.1:{free_port()}"
        self.content: dict[str, Any] = {
            "listen": self.address,
            "state_dir": directory / "state",
            "public_dir": directory / "public",
            "answers_key_file": directory / "keys" / "answers.key",
            "identities_key_file": directory / "keys" / "identities.key",
            "auto_unlock": True,
            "tick_ms": TICK_MS,
            "drain_ms": DRAIN_MS,
            "tls": self.files.model_dump(),
            **settings,
        }
        self.config = self.write_config()

    def write_config(self, name: str = "vault.toml", **changed: Any) -> Path:
        """Writes a configuration that differs from this vault's in what is given."""
        path = write_toml(self.directory / name, {**self.content, **changed})
        secrets = f'secret_dirs = ["{self.directory / "medium-1"}", "{self.directory / "medium-2"}"]\n'
        path.write_text(secrets + path.read_text())
        return path

    async def __aenter__(self) -> VaultProcess:
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # The process

    async def start(self, environ: Mapping[str, str] | None = None) -> None:
        """Starts it and waits until it is ready. One that ran before must have ended."""
        await self._hang_up()
        if self.process is not None:
            assert self.process.status is not None
            await self.process.stop()
        self.process = Child.module("vault.main.vault", "--config", str(self.config), log=self.log, environ=environ)
        facts = await self.process.ready()
        assert facts["ready"] == "vault"
        assert facts["listen"] == self.address

    @property
    def running(self) -> Child:
        assert self.process is not None
        return self.process

    async def kill(self) -> None:
        """kill -9: nothing in memory survives."""
        await self.running.stop(signal.SIGKILL)
        await self._hang_up()

    async def restart(self) -> None:
        """kill -9, and started again on what is on disk."""
        await self.kill()
        await self.start()

    async def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.running.send(signal.SIGTERM)
        return await self.running.ended()

    async def aclose(self) -> None:
        """Stops what still runs. Harmless when repeated."""
        await self._hang_up()
        if self.process is not None:
            await self.process.stop()

    # Clients

    def certificate(self, role: str, name: str) -> TlsFiles:
        """A certificate of this vault's authority; the same one each time."""
        if (role, name) not in self._certificates:
            self._certificates[role, name] = self.authority.issue(role, name)
        return self._certificates[role, name]

    def channel(self, role: str, name: str) -> grpc.aio.Channel:
        """A channel with that certificate, kept until the process is killed or closed."""
        if (role, name) not in self._channels:
            files = self.certificate(role, name)
            credentials = client_credentials(read_file(files.authority_file), files)
            # A vault that is back is asked at once, and not after a back-off of seconds.
            options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
            self._channels[role, name] = channel(self.address, credentials, options)
        return self._channels[role, name]

    @property
    def campaigns(self) -> Any:
        return campaign_pb2_grpc.CampaignServiceStub(self.channel(CAMPAIGN_ADMIN, "ada"))

    @property
    def keys(self) -> Any:
        return keys_pb2_grpc.KeyServiceStub(self.channel(CUSTODIAN, "carol"))

    @property
    def deposits(self) -> Any:
        return deposit_pb2_grpc.DepositServiceStub(self.channel(RELAY, RELAY_NAME))

    @property
    def exports(self) -> Any:
        return export_pb2_grpc.ExportServiceStub(self.channel(REPORTER, "rita"))

    @property
    def rehearsals(self) -> Any:
        return rehearsal_pb2_grpc.RehearsalServiceStub(self.channel(CAMPAIGN_ADMIN, "ada"))

    async def serving(self, role: str = OBSERVER, name: str = "oscar") -> bool:
        """What its health service says, on this person's or process's channel."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel(role, name))
        response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def status(self) -> GetCampaignResponse:
        """GetCampaign."""
        response: GetCampaignResponse = await self.campaigns.GetCampaign(GetCampaignRequest(campaign_id=CAMPAIGN))
        return response

    async def reached(self, state: str) -> GetCampaignResponse:
        """Waits until the campaign is in a state."""

        async def there() -> GetCampaignResponse | None:
            found = await self.status()
            return found if found.state == state else None

        found = await until(there, f"state {state}")
        assert found is not None
        return found

    # A campaign

    async def create(self, shards: int = 1) -> None:
        """Makes the campaign."""
        await self.campaigns.CreateCampaign(
            CreateCampaignRequest(
                campaign_id=CAMPAIGN,
                title="Évaluation de rentrée",
                rehearsal=True,
                shards=shards,
                node_authorities_pem=[self.authority.authority_file.read_text()],
            )
        )

    async def import_roster(self) -> None:
        """Imports the small roster."""

        async def requests() -> Any:
            yield ImportRosterRequest(campaign_id=CAMPAIGN, file_name="roster.csv")
            yield ImportRosterRequest(chunk=(SMALL / "roster.csv").read_bytes())

        await self.campaigns.ImportRoster(requests())

    async def put_instrument(self) -> None:
        """Puts the small instrument."""
        toml = (SMALL / "instrument.toml").read_bytes()
        await self.campaigns.PutInstrument(
            PutInstrumentRequest(campaign_id=CAMPAIGN, file_name="instrument.toml", toml=toml)
        )

    async def issue_codes(self) -> None:
        """Issues all codes."""
        await self.campaigns.IssueCodes(IssueCodesRequest(campaign_id=CAMPAIGN))

    async def fill(self, shards: int = 1) -> None:
        """Everything that publication needs."""
        await self.create(shards)
        await self.import_roster()
        await self.put_instrument()
        await self.issue_codes()

    async def _hang_up(self) -> None:
        await asyncio.gather(*(opened.close() for opened in self._channels.values()))
        self._channels.clear()


def free_port() -> int:
    """A port that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""What is measured with: a campaign on the real services, and the servers to compare, each on the server's core.

The vault and the relay make the campaign and enrol the nodes; while something is measured they do not
run at all, since an ingest node needs neither to take answers. Afterwards they take what was acknowledged
out of the spool, and the vault's count says whether all of it was really stored.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.generator import Job
from bench.machine import Cores, children, pinned
from bench.processes import serving
from cli.deployment import Addresses, Deployment, write_toml
from cli.office import Office
from cli.rehearsal import DRAINED, enrol, office_of, open_campaign
from cli.services import Services, free_address
from cli.simulation import simulate
from pli.errors import StateError
from pli.instrument import read_public_part
from pli.vault.v1.bundle_pb2 import ItemType
from pli.vault.v1.campaign_pb2 import CampaignCounts

CAMPAIGN = "bench"
MAX_MEMORY_MB = 2_048
"""Nothing is taken out of the spool while servers are measured: a million answers may lie in it then."""

SERVING_SECONDS = 30.0
DRAIN_SECONDS = 120.0
ASK_AGAIN_SECONDS = 0.05
_NAMES = {name: f"{name} of the benchmark" for name in ("roster", "instrument", "responses")}


@dataclass(frozen=True, slots=True)
class Target:
    """A server to measure, and the processes whose CPU time and memory are its own."""

    address: str
    pids: list[int]


@dataclass(slots=True)
class Platform:
    """A campaign, its store, and what can be started around it."""

    deployment: Deployment
    office: Office
    cores: Cores
    store_pid: int
    codes: list[str] = field(default_factory=list)
    choices: list[tuple[str, str]] = field(default_factory=list)
    """(item id, option) of answers that the instrument takes."""

    @property
    def authority_pem(self) -> str:
        """What a client of the TLS node trusts."""
        return self.deployment.authority_file.read_text()

    def job(self, target: Target, sessions: int, **settings: Any) -> Job:
        """What the generator shall do to a target; `settings` are further fields of the job."""
        watched = {"server": target.pids, "store": [self.store_pid]}
        return Job(target.address, CAMPAIGN, self.codes[:sessions], self.choices, watched, **settings)

    @asynccontextmanager
    async def vault(self) -> AsyncIterator[None]:
        """The vault and the relay."""
        async with _services(self.deployment) as services:
            await services.start("vault", self.deployment.config("vault"))
            await self.office.create("Benchmark", self.authority_pem)
            await services.start("relay", self.deployment.config("relay"))
            yield

    async def open(self, sessions: int) -> None:
        """Makes the campaign and opens it. Vault, relay and a node must run."""
        files = simulate(sessions, Random(0))  # who they are is not looked at
        codes = await enrol(self.office, files, _NAMES)
        await open_campaign(self.office)
        self.codes = list(codes.values())
        items = read_public_part(files.instrument, _NAMES["instrument"]).items
        self.choices = [
            (item.id, option) for item in items if item.type == ItemType.ITEM_TYPE_CHOICE for option in item.options
        ]

    async def drained(self) -> CampaignCounts:
        """Closes, and waits until everything acknowledged is in the vault, which must run.

        Raises:
            StateError: it is not after two minutes.
        """
        await self.office.close_window()
        found = await self.office.until(lambda answer: answer.state == DRAINED, DRAIN_SECONDS)
        if found.state != DRAINED:
            raise StateError(f"the campaign was not drained: {'; '.join(found.waiting_for)}")
        return found.counts

    @asynccontextmanager
    async def node(self, *, tls: bool) -> AsyncIterator[Target]:
        """An ingest node with one worker. It serves once vault and relay have enrolled it."""
        config = self.deployment.config("server")
        address = self.deployment.addresses.pupils
        if not tls:
            config, address = self._plaintext(config)
        async with _services(self.deployment) as services:
            with pinned(self.cores.server):
                await services.start("server", config)
            supervisor = services.pid("server")
            yield Target(address, [supervisor, *children(supervisor)])

    def _plaintext(self, tls_config: Path) -> tuple[Path, str]:
        address = free_address()
        config = self.deployment.config("server-plaintext")
        changed: dict[str, Any] = {
            "listen": address,
            "listen_operations": free_address(),
            "state_dir": str(self.deployment.root / config.stem),
            "plaintext_for_bench": True,
        }
        write_toml(config, {**tomllib.loads(tls_config.read_text()), **changed})
        return config, address

    @asynccontextmanager
    async def echo(self) -> AsyncIterator[Target]:
        """The bare echo."""
        async with serving("bench.echo_server", cores=self.cores.server) as (address, pid):
            yield Target(address, [pid])

    @asynccontextmanager
    async def naive(self) -> AsyncIterator[Target]:
        """The naive server, on the store and with the rights of an ingest node."""
        spool = tomllib.loads(self.deployment.config("server").read_text())["spool"]
        options = ("--url", spool["url"], "--user", spool["username"], "--password-file", spool["password_file"])
        async with serving("bench.naive_server", *options, cores=self.cores.server) as (address, pid):
            yield Target(address, [pid])


@asynccontextmanager
async def platform_in(directory: Path, cores: Cores) -> AsyncIterator[Platform]:
    """A campaign's store, running in `directory`; vault, relay and nodes are started as they are needed."""
    socket_dir = Path(tempfile.mkdtemp(prefix="pli-"))
    addresses = Addresses(free_address(), free_address(), free_address())
    deployment = Deployment(directory, CAMPAIGN, addresses, socket_dir)
    try:
        deployment.prepare(workers=1, max_memory_mb=MAX_MEMORY_MB)
        async with _services(deployment) as services, office_of(deployment) as office:
            await services.start("spool", deployment.config("spool"), deployment.socket_file)
            yield Platform(deployment, office, cores, services.pid("spool"))
    finally:
        shutil.rmtree(socket_dir, ignore_errors=True)


async def until_serving(target: Target) -> None:
    """Waits until a plaintext node takes sessions.

    Raises:
        StateError: it does not within half a minute.
    """
    async with grpc.aio.insecure_channel(target.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        try:
            async with asyncio.timeout(SERVING_SECONDS):
                while True:
                    answer = await health.Check(health_pb2.HealthCheckRequest())
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                    await asyncio.sleep(ASK_AGAIN_SECONDS)
        except TimeoutError as error:
            raise StateError("the ingest node did not become ready") from error


@asynccontextmanager
async def _services(deployment: Deployment) -> AsyncIterator[Services]:
    """Services that are stopped together. One that dies is an end, not a mishap: its figures are lost."""
    died: list[str] = []
    services = Services(deployment.root / "logs", died.append)
    try:
        yield services
    finally:
        await asyncio.shield(services.stop())
    if died:
        raise StateError(f"{died[0]}: the figures are worth nothing")

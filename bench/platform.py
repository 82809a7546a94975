"""What is measured with: a campaign on the real services, and the servers to compare, each on the server's core.

The vault and the relay make the campaign and enrol the nodes; while something is measured they do not
run at all, since an ingest node needs neither to take answers. Afterwards they take what was acknowledged
out of the spool, and its count says whether all of it was really stored.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from subprocess import DEVNULL, PIPE
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.generator import Job
from bench.machine import Cores, children, pinned
from cli.deployment import Addresses, Deployment, write_toml
from cli.office import Office
from cli.rehearsal import DRAINED, enrol, office_of, open_campaign
from cli.services import Services, free_address
from cli.simulation import simulate
from pli.errors import ConfigError, StateError
from pli.instrument import read_public_part
from pli.vault.v1.bundle_pb2 import ItemType
from pli.vault.v1.campaign_pb2 import CampaignCounts

CAMPAIGN = "bench"
MAX_MEMORY_MB = 2_048
"""Nothing is taken out of the spool while servers are measured: half a million answers lie in it then."""

SERVING_SECONDS = 30.0
DRAIN_SECONDS = 120.0
STOP_SECONDS = 5.0
_NAMES = {name: f"{name} of the benchmark" for name in ("roster", "instrument", "responses")}


@dataclass(frozen=True, slots=True)
class Target:
    """A server to measure."""

    name: str
    address: str
    pids: list[int]
    """The processes whose CPU time and memory are the server's."""


@dataclass(slots=True)
class Platform:
    """The campaign of a benchmark: open, with codes for everybody."""

    deployment: Deployment
    office: Office
    cores: Cores
    store: Services
    codes: list[str]
    choices: list[tuple[str, str]]
    """(item id, option) of answers that the instrument takes."""
    sent: int = 0
    """Answers acknowledged so far by nodes of the campaign."""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def store_pid(self) -> int:
        """The Valkey server."""
        return self.store.pid("spool")

    def job(self, target: Target, sessions: int, **settings: Any) -> Job:
        """What the generator does to a target."""
        watched = {"server": target.pids, "store": [self.store_pid]}
        return Job(target.address, CAMPAIGN, self.codes[:sessions], self.choices, watched, **settings)

    @asynccontextmanager
    async def node(self, *, tls: bool) -> AsyncIterator[Target]:
        """An ingest node with one worker, serving; stopped at the end. Needs the vault and the relay to start."""
        config, address = self._node_config(tls=tls)
        async with _services(self.deployment) as services:
            with pinned(self.cores.server):
                await services.start("server", config)
            if not tls:
                await _until_serving(address)
            supervisor = services.pid("server")
            yield Target("ours", address, [supervisor, *children(supervisor)])

    def _node_config(self, *, tls: bool) -> tuple[Path, str]:
        path = self.deployment.config("server")
        if tls:
            return path, self.deployment.addresses.pupils
        address = free_address()
        plain = tomllib.loads(path.read_text())
        plain |= {
            "listen": address,
            "listen_operations": free_address(),
            "state_dir": str(self.deployment.root / "server-plaintext"),
            "plaintext_for_bench": True,
        }
        write_toml(self.deployment.config("server-plaintext"), plain)
        return self.deployment.config("server-plaintext"), address

    @asynccontextmanager
    async def other(self, name: str) -> AsyncIterator[Target]:
        """The echo or the naive server."""
        arguments = [f"bench.{name}_server"]
        if name == "naive":
            spool = tomllib.loads(self.deployment.config("server").read_text())["spool"]
            arguments += ["--url", spool["url"], "--user", spool["username"], "--password-file", spool["password_file"]]
        with pinned(self.cores.server):
            process = await _started(*arguments)
        try:
            assert process.stdout is not None
            said = json.loads(await process.stdout.readline() or "{}")
            if "listen" not in said:
                raise ConfigError(f"the {name} server ended while starting")
            yield Target(name, said["listen"], [process.pid])
        finally:
            await asyncio.shield(_stopped(process))

    @asynccontextmanager
    async def vault(self) -> AsyncIterator[None]:
        """The vault and the relay, running."""
        async with _services(self.deployment) as services:
            await asyncio.gather(*(services.start(name, self.deployment.config(name)) for name in ("vault", "relay")))
            yield

    async def drained(self) -> CampaignCounts:
        """Closes, and waits until all that was acknowledged lies in the vault.

        Raises:
            StateError: it does not within two minutes.
        """
        await self.office.close_window()
        found = await self.office.until(lambda answer: answer.state == DRAINED, DRAIN_SECONDS)
        if found.state != DRAINED:
            raise StateError(f"the campaign was not drained: {'; '.join(found.waiting_for)}")
        return found.counts


@asynccontextmanager
async def open_platform(directory: Path, sessions: int, cores: Cores) -> AsyncIterator[tuple[Platform, Target]]:
    """Makes the campaign; yields it with a TLS node, the vault and the relay still running."""
    socket_dir = Path(tempfile.mkdtemp(prefix="pli-"))
    addresses = Addresses(free_address(), free_address(), free_address())
    deployment = Deployment(directory, CAMPAIGN, addresses, socket_dir)
    deployment.prepare(workers=1, max_memory_mb=MAX_MEMORY_MB)
    try:
        async with _services(deployment) as store, office_of(deployment) as office:
            await store.start("spool", deployment.config("spool"), deployment.socket_file)
            yield Platform(deployment, office, cores, store, [], []), Target("", "", [])
    finally:
        shutil.rmtree(socket_dir, ignore_errors=True)

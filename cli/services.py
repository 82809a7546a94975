"""The services of one machine as child processes: started, kept running, stopped by process id."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pli.errors import ConfigError

READY_SECONDS = 60.0
"""A service is up in two seconds; on a machine that is busy with something else it takes longer."""

STOP_SECONDS = 12.0
"""Every service drains within 10 s of SIGTERM (FAULTS 7); then it is killed."""

RESTART_PAUSE_SECONDS = 0.2
"""Before the first restart; doubled for each one after: a port may be held by what still drains."""

MAX_RESTART_PAUSE_SECONDS = 5.0
"""A store whose disk is full dies at each write until somebody makes room: it is tried again for ever, at a
pace that costs nothing, and whatever it acknowledged is still there when it is back."""

RESTART_WINDOW_SECONDS = 60.0
"""Deaths further apart are mishaps of their own: the pause begins small again."""

MODULES: Mapping[str, str] = {
    "spool": "server.main.embedded",
    "vault": "vault.main.vault",
    "relay": "server.main.relay",
    "server": "server.main.node",
}
"""Service → the module that is its process. Named as text: the commands import no zone."""

STOP_ORDER = ("server", "relay", "vault", "spool")
"""Whoever hands on stops before whoever takes."""

_LOOPBACK = "127.0.0.1"
FIRST_PORT, PORTS = 15_000, 16_000


@dataclass(slots=True)
class Service:
    """One running service."""

    name: str
    config: Path
    log_file: Path
    process: asyncio.subprocess.Process
    log_start: int = 0
    """Where the log of this start begins in the file."""
    facts: dict[str, str] = field(default_factory=dict)
    restarts: list[float] = field(default_factory=list)


class Services:
    """Starts services and keeps them running until `stop`.

    `modules` replaces entries of MODULES: a test runs a service with a fault seeded into it.
    `on_trouble` is told in a sentence of every death; `failed` is set when one hangs instead of coming up.
    """

    def __init__(
        self,
        logs: Path,
        on_trouble: Callable[[str], None],
        modules: Mapping[str, str] = MODULES,
        executable: str = sys.executable,
    ) -> None:
        self._logs = logs
        self._on_trouble = on_trouble
        self._modules = {**MODULES, **modules}
        self._executable = executable
        self._services: dict[str, Service] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def pid(self, name: str) -> int:
        """The process id of a running service."""
        return self._services[name].process.pid

    async def start(self, name: str, config: Path, socket_file: Path | None = None) -> dict[str, str]:
        """Starts a service, waits until it is up, keeps it up; returns what it says of itself.

        `socket_file`: it is up when this Unix socket takes connections; else when it says so.

        Raises:
            ConfigError: it ended instead, with what it printed, or did not come up in time.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        service = await self._spawn(name, config)
        self._services[name] = service
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._until_up(service, socket_file)
        except TimeoutError as error:
            raise ConfigError(f"{name} did not come up within {READY_SECONDS:.0f} s; see {service.log_file}") from error
        self._keepers.append(asyncio.create_task(self._keep(service, socket_file)))
        return service.facts

    async def stop(self) -> None:
        """SIGTERM for all, in order; SIGKILL for what does not drain in time."""
        self._stopping = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for name in STOP_ORDER:
            if name in self._services:
                await self._end(self._services[name])

    async def _spawn(self, name: str, config: Path) -> Service:
        log_file = self._logs / f"{name}.log"
        with log_file.open("ab") as log:
            log_start = log.tell()
            process = await asyncio.create_subprocess_exec(
                self._executable, "-m", "pli.tied", str(os.getpid()), self._modules[name], "--config", str(config),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log if name == "spool" else asyncio.subprocess.PIPE,
                stderr=log,
                # Ctrl-C reaches the command alone, which then stops its services in order.
                start_new_session=True,
            )  # fmt: skip
        return Service(name, config, log_file, process, log_start)

    async def _until_up(self, service: Service, socket_file: Path | None) -> None:
        if socket_file is None:
            await self._until_said(service)
            return
        while service.process.returncode is None:
            try:
                _, writer = await asyncio.open_unix_connection(socket_file)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
        raise self._ended(service)

    async def _until_said(self, service: Service) -> None:
        if service.process.stdout is None:
            raise ConfigError(f"{service.name} was started without a pipe")
        async for line in service.process.stdout:
            said = json.loads(line)
            if said.get("ready") == service.name:
                service.facts = {key: str(value) for key, value in said.items()}
                return
        await service.process.wait()
        raise self._ended(service)

    def _ended(self, service: Service) -> ConfigError:
        told = "\n  ".join(_last_words(service, 6)) or f"it said nothing; see {service.log_file}"
        return ConfigError(f"{service.name} ended while starting (status {service.process.returncode}):\n  {told}")

    async def _keep(self, service: Service, socket_file: Path | None) -> None:
        """Starts the service again when it dies, with the same configuration."""
        clock = asyncio.get_running_loop().time
        while True:
            status = await service.process.wait()
            now = clock()
            service.restarts = [at for at in service.restarts if now - at < RESTART_WINDOW_SECONDS] + [now]
            last = "".join(_last_words(service, 1))
            self._on_trouble(f"{service.name} died (status {status}) and is started again; its last words: {last}")
            pause = RESTART_PAUSE_SECONDS * 2 ** min(len(service.restarts) - 1, 10)
            await asyncio.sleep(min(pause, MAX_RESTART_PAUSE_SECONDS))
            again = await self._spawn(service.name, service.config)
            service.process, service.log_start = again.process, again.log_start
            try:
                async with asyncio.timeout(READY_SECONDS):
                    await self._until_up(service, socket_file)
            except (ConfigError, TimeoutError) as error:
                if service.process.returncode is None:
                    self._fail(f"{service.name} did not come up again: {error}; see {service.log_file}")
                    return

    def _fail(self, why: str) -> None:
        if not self.failed.done():
            self.failed.set_result(why)

    async def _end(self, service: Service) -> None:
        process = service.process
        if process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            self._on_trouble(f"{service.name} did not stop within {STOP_SECONDS:.0f} s and was killed")
            process.kill()
            await process.wait()


def _last_words(service: Service, lines: int) -> list[str]:
    """The last lines of this start's log that are for people; of a log in JSON alone, its last line."""
    with service.log_file.open("rb") as log:
        log.seek(service.log_start)
        said = log.read().decode(errors="replace").strip().splitlines()
    plain = [line.removeprefix("error: ") for line in said[-20:] if not line.startswith("{")]
    return (plain or said[-1:])[-lines:]


def free_address() -> str:
    """A loopback address that nobody listens on now, kept by a service over its restarts.

    Its port is below the range from which the kernel takes ports for outgoing connections: one of those
    would take it while the service is away.
    """
    while True:
        port = FIRST_PORT + secrets.randbelow(PORTS)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((_LOOPBACK, port))
            except OSError:
                continue
        return f"{_LOOPBACK}:{port}"

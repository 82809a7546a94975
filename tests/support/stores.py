"""Real stores for tests: pli's embedded one, and any server program with an administrator beside."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from pli.errors import PliError
from pli.secret import Secret
from server.config import SpoolSettings
from server.main.embedded import server_binary
from server.store.acl import users_file
from server.store.spool import asked, connect
from tests.support.processes import Child
from tests.support.toml_files import write_toml
from tests.support.waiting import until

USERS = ("ingest", "relay")


class Store:
    """One store. Its files live in `directory`, its socket in a short directory of its own."""

    def __init__(self, directory: Path, max_memory_mb: int = 256) -> None:
        self.directory = directory
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A test's own directory is often too long a path for a Unix socket.
        self.socket_directory = Path(tempfile.mkdtemp(prefix="pli-"))
        self.max_memory_mb = max_memory_mb
        self.process: Child | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket_directory}/spool.sock"

    def settings(self, user: str) -> dict[str, Any]:
        """A `[spool]` table."""
        return {"url": self.url, "username": user, "password_file": self.directory / f"{user}.password"}

    def connect(self, user: str, connections: int = 16) -> Redis:
        """A client as the platform's processes make it."""
        return connect(SpoolSettings(**self.settings(user)), connections=connections)

    async def start(self) -> None:
        """Starts it, on the data it has, and waits until it answers."""
        assert self.process is None, "the store runs already"
        self.process = self.spawn()
        socket = self.socket_directory / "spool.sock"

        async def listens() -> bool:
            assert self.process is not None
            assert self.process.status is None, self.process.tail()
            return socket.exists()

        # Users and passwords are written before the socket is there.
        await until(listens, "the store to listen")
        redis = self.connect("relay")

        async def answers() -> bool:
            await listens()
            try:
                return bool(await asked(redis.execute_command("PING")))  # type: ignore[no-untyped-call]
            except PliError:
                return False

        try:
            await until(answers, "the store to answer")
        finally:
            await redis.aclose()

    def spawn(self) -> Child:
        """Starts the process."""
        raise AssertionError("a kind of store says how it is started")

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it with a signal; its data stays."""
        if self.process is not None:
            process, self.process = self.process, None
            await process.stop(number)

    async def kill(self) -> None:
        """SIGKILL."""
        await self.stop(signal.SIGKILL)

    def empty(self) -> None:
        """Throws its data away; call it while it is stopped."""
        assert self.process is None
        shutil.rmtree(self.directory / "data")

    async def aclose(self) -> None:
        """Ends it and forgets its socket."""
        await self.stop()
        shutil.rmtree(self.socket_directory, ignore_errors=True)


class EmbeddedStore(Store):
    """`python -m server.main.embedded`: as `pli up` runs it. Nobody may change its settings."""

    def spawn(self) -> Child:
        """Starts the process."""
        config = write_toml(
            self.directory / "embedded.toml",
            {
                "directory": self.directory,
                "socket_directory": self.socket_directory,
                "max_memory_mb": self.max_memory_mb,
            },
        )
        log = self.directory / "store.log"
        return Child.module("server.main.embedded", "--config", str(config), log=log, says_ready=False)


class ProgramStore(Store):
    """Any `valkey-server` or `redis-server`, with a third user `admin` who may do everything."""

    def __init__(self, directory: Path, binary: Path | None = None, max_memory_mb: int = 256) -> None:
        super().__init__(directory, max_memory_mb)
        self.binary = binary or server_binary()
        self.more: tuple[str, ...] = ()
        """Further lines of its configuration."""
        passwords = {user: Secret(os.urandom(16).hex().encode()) for user in (*USERS, "admin")}
        for user, password in passwords.items():
            path = self.directory / f"{user}.password"
            path.write_bytes(password.reveal())
            path.chmod(0o600)
        admin = f"user admin on >{passwords['admin'].reveal().decode()} ~* &* +@all\n"
        (self.directory / "users.acl").write_text(users_file(passwords["ingest"], passwords["relay"]) + admin)

    def spawn(self) -> Child:
        """Starts the process."""
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        lines = (
            "port 0",
            f"unixsocket {self.socket_directory}/spool.sock",
            f"dir {data}",
            "appendonly yes",
            "appendfsync always",
            "no-appendfsync-on-rewrite no",
            f"maxmemory {self.max_memory_mb}mb",
            "maxmemory-policy noeviction",
            'save ""',
            f"aclfile {self.directory}/users.acl",
            "daemonize no",
            *self.more,
        )
        config = self.directory / "server.conf"
        config.write_text("\n".join(lines) + "\n")
        return Child.program(self.binary, str(config), log=self.directory / "store.log")

    async def administer(self, *command: Any) -> Any:
        """One command of the administrator."""
        redis = self.connect("admin")
        try:
            return await redis.execute_command(*command)  # type: ignore[no-untyped-call]
        finally:
            await redis.aclose()


def programs() -> dict[str, Path]:
    """Every server program on this machine that a spool may run on, by a name for reports."""
    found = {"valkey": server_binary()}
    redis = shutil.which("redis-server")
    if redis is not None:
        found["redis"] = Path(redis)
    return found

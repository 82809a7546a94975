"""A whole platform for tests: embedded store, ingest nodes, and the vault's part played here.

    async with Platform(tmp_path, pupils=20, classes=(3,)) as platform:
        await platform.open_window()
        async with platform.session(platform.codes[0]) as session:    # a raw stream, see RawSession
            await session.open()
            await session.choose("B")
            await session.acked()
        await platform.close_window()
        records = await platform.records()                            # opened as the vault would

For a client of another kind: `platform.address` (host:port, TLS), `platform.authority_file` (what it
trusts), `platform.campaign_id`, `platform.codes` (pupil codes), `platform.class_codes`.
`platform.add_node()` starts further nodes, `platform.store.kill()` and `.start()` break and mend the
spool, `platform.nodes[0].process` is the supervisor of node 0, `platform.workers()` its processes.

Everything runs in child processes on 127.0.0.1 and a Unix socket, and is stopped by process id when
the block ends, also after a failure. A platform belongs to the event loop that entered it: a module
that shares one uses `pytest.mark.asyncio(loop_scope="session")` and the fixture `platform_of_module`.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis

from pli.codes import Code
from pli.development_ca import DevelopmentAuthority
from pli.errors import PliError
from pli.pseudonym import PSEUDONYM_BYTES, shard_of
from pli.rpc.client import channel
from pli.rpc.roles import INGEST, OBSERVER, OPERATOR, RELAY
from pli.tls import TlsFiles, client_credentials
from pli.vault.v1.bundle_pb2 import PublicInstrument, SignedEnrolment
from server.store.keys import ShardKeys
from server.store.relay_spool import Entry, RelaySpool
from server.store.spool import asked
from tests.support.played_vault import (
    CLASS,
    INSTRUMENT,
    PUPIL,
    REVOKED,
    PlayedVault,
    Registered,
    StoredRecord,
    make_codes,
)
from tests.support.processes import Child, alive
from tests.support.raw_session import OWN_CONNECTION, RawSession, tls_channel
from tests.support.stores import EmbeddedStore, Store
from tests.support.toml_files import write_toml
from tests.support.waiting import until

READY_PHASE, OPEN_PHASE, CLOSING_PHASE = 1, 2, 3
ENROL_EVERY_SECONDS = 0.05


@dataclass(slots=True)
class RunningNode:
    """One ingest node: a supervisor and its workers."""

    name: str
    config: Path
    process: Child
    address: str
    """host:port for holders of codes, TLS."""
    operations_address: str
    """host:port for processes and people, mTLS."""
    workers: int

    def faults(self) -> list[str]:
        """What its log says that no client and no store may ever cause: errors of our own."""
        ours = ("Traceback", "call_failed", "worker_failed", "worker_died", "worker_killed", "epoch_dropped")
        return [line for line in self.process.output().splitlines() if any(word in line for word in ours)]


class Platform:
    """See the module's docstring. All arguments but `directory` have defaults.

    `node_settings` go into each node's configuration: top-level keys, or tables by name. `store_of`
    makes the store (an EmbeddedStore by default). `start_nodes` false leaves starting to `add_node`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        pupils: int = 8,
        classes: Sequence[int] = (),
        revoked: int = 0,
        instrument: PublicInstrument = INSTRUMENT,
        workers: int = 1,
        shards: int = 1,
        node_settings: dict[str, Any] | None = None,
        store_of: Callable[[Path], Store] = EmbeddedStore,
        start_nodes: bool = True,
    ) -> None:
        self.directory = directory
        self.instrument = PublicInstrument.FromString(instrument.SerializeToString())
        self.vault = PlayedVault(shards=shards)
        self.campaign_id = self.vault.campaign_id
        drawn = make_codes(pupils + len(classes) + revoked)
        self.codes: list[Code] = drawn[:pupils]
        self.class_codes: list[Code] = drawn[pupils : pupils + len(classes)]
        self.revoked_codes: list[Code] = drawn[pupils + len(classes) :]
        self.registered = [
            *(Registered(code) for code in self.codes),
            *(Registered(code, CLASS, seats) for code, seats in zip(self.class_codes, classes, strict=True)),
            *(Registered(code, PUPIL, 0, REVOKED) for code in self.revoked_codes),
        ]
        directory.mkdir(parents=True, exist_ok=True)
        self.authority = DevelopmentAuthority(directory / "certificates")
        self.authority_file = self.authority.authority_file
        self.operator: TlsFiles = self.authority.issue(OPERATOR, "operator-1")
        self.observer: TlsFiles = self.authority.issue(OBSERVER, "observer-1")
        self.relay: TlsFiles = self.authority.issue(RELAY, "relay-1")
        self.vault_key_file = self.vault.write_public_key(directory / "vault.pem")
        self.store = store_of(directory / "store")
        self.nodes: list[RunningNode] = []
        self.shards: list[RelaySpool] = []
        self._node_settings = node_settings or {}
        self._workers = workers
        self._start_nodes = start_nodes
        self._window_version = 0
        self._redis: Redis | None = None
        self._enrolling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Platform:
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

    async def start(self) -> None:
        """Starts everything and waits until the nodes serve."""
        await self.store.start()
        self._redis = self.store.connect("relay")
        self.shards = [
            RelaySpool(self._redis, ShardKeys(self.campaign_id, shard), "played") for shard in range(self.vault.shards)
        ]
        await self.load()
        self._enrolling = asyncio.create_task(self._enrol())
        if self._start_nodes:
            await self.add_node()

    async def aclose(self) -> None:
        """Stops everything that was started. Harmless when repeated."""
        if self._enrolling is not None:
            # Python 3.11's wait_for, which redis-py uses, may swallow a cancellation: it is repeated.
            while not self._enrolling.done():
                self._enrolling.cancel()
                await asyncio.wait({self._enrolling}, timeout=0.5)
            self._enrolling = None
        await asyncio.gather(*(node.process.stop() for node in self.nodes))
        if self._redis is not None:
            await self._redis.aclose()
            self._redis = None
        await self.store.aclose()

    # The vault's and the relay's part

    async def load(self, version: int = 1) -> None:
        """Adopts the store and loads Functions, registry, bundle, and a window that is READY."""
        registry = self.vault.registry(self.registered)
        signed = self.vault.bundle(self.instrument, registry, self.authority.certificate, version)
        for shard in self.shards:
            await shard.load_functions()
            await shard.adopt(marker_of(shard.keys.shard))
            rows = [row for row in registry if shard_of(row[:PSEUDONYM_BYTES], len(self.shards)) == shard.keys.shard]
            if rows:
                await shard.put_registry(rows)
            await shard.put_bundle(signed.SerializeToString(), version)
        await self.set_window(READY_PHASE)

    async def set_window(self, phase: int, *, opens_ms: int = 0, closes_ms: int = 0, grace_ms: int = 0) -> None:
        """Gives the next order about the window; times by the store's clock, in ms."""
        self._window_version += 1
        for shard in self.shards:
            await shard.set_window(self._window_version, phase, opens_ms, closes_ms, grace_ms)

    async def open_window(self, *, closes_ms: int = 0, grace_ms: int = 0) -> None:
        """Lets everybody in."""
        await self.set_window(OPEN_PHASE, closes_ms=closes_ms, grace_ms=grace_ms)

    async def closing_window(self) -> None:
        """Lets nobody in who was not there before."""
        await self.set_window(CLOSING_PHASE)

    async def close_window(self) -> None:
        """Closes for ever."""
        self._window_version += 1
        for shard in self.shards:
            await shard.close_window(self._window_version)

    async def _enrol(self) -> None:
        """Answers what nodes ask for; a store that is down is asked again."""
        while True:
            try:
                for key_id, raw in (await self.shards[0].enrolments()).items():
                    answered, signed = self.vault.enrol(SignedEnrolment.FromString(raw))
                    assert answered == key_id
                    await self.shards[0].put_enrolled(key_id, signed.SerializeToString())
            except PliError:
                pass
            await asyncio.sleep(ENROL_EVERY_SECONDS)

    # Nodes

    def node_config(self, name: str, **settings: Any) -> Path:
        """Writes a node's configuration, with its certificate, and returns its path."""
        files = self.authority.issue(INGEST, name, ("127.0.0.1", "localhost"))
        content: dict[str, Any] = {
            "campaign_id": self.campaign_id,
            "state_dir": self.directory / name,
            "listen": "127.0.0.1:0",
            "listen_operations": "127.0.0.1:0",
            "workers": self._workers,
            "tls": files.model_dump(),
            "vault_signing_key_file": self.vault_key_file,
            "spool": self.store.settings("ingest"),
        }
        for key, value in {**self._node_settings, **settings}.items():
            content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
        return write_toml(self.directory / f"{name}.toml", content)

    async def add_node(self, *, wait: bool = True, **settings: Any) -> RunningNode:
        """Starts one more node and, with `wait`, returns once all its workers take sessions."""
        name = f"node-{len(self.nodes) + 1}"
        config = self.node_config(name, **settings)
        process = Child.module("server.main.node", "--config", str(config), log=self.directory / f"{name}.log")
        workers = int(settings.get("workers", self._workers))
        node = RunningNode(name, config, process, "", "", workers)
        self.nodes.append(node)
        facts = await process.ready()
        node.address, node.operations_address = facts["listen"], facts["listen_operations"]
        if wait:
            await self.serving()
        return node

    async def serving(self, seconds: float = 40.0) -> None:
        """Waits until every worker of every running node says, from now on, that it takes sessions."""
        wanted = sum(node.workers for node in self.nodes if node.process.status is None)
        asked_ms = await self.shards[0].time_ms()

        async def all_ready() -> bool:
            for node in self.nodes:
                assert node.process.status is None or node.process.status == 0, node.process.tail()
            rows = (await self.workers()).values()
            fresh = [row for row in rows if row["ready"] and row["published_at_ms"] >= asked_ms]
            return len(fresh) >= wanted

        await until(all_ready, f"{wanted} workers to be ready", seconds)

    async def workers(self) -> dict[int, dict[str, Any]]:
        """What each living worker last published, by process id. The spool must answer."""
        rows = await asked(self._call("HGETALL", self.shards[0].keys.status))
        published = [json.loads(row) for name, row in rows.items() if bytes(name).startswith(b"node:")]
        return {row["pid"]: row for row in published if alive(row["pid"])}

    async def stop_node(self, node: RunningNode, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends a node; its exit status."""
        return await node.process.stop(number)

    @property
    def address(self) -> str:
        """host:port of the first node, for holders of codes."""
        return self.nodes[0].address

    @property
    def authority_pem(self) -> bytes:
        """What a client trusts."""
        return self.authority_file.read_bytes()

    # Clients

    @asynccontextmanager
    async def session(
        self, code: Code | str, *, writer: bytes | None = None, address: str | None = None, campaign_id: str = ""
    ) -> AsyncIterator[RawSession]:
        """A raw stream on a connection of its own; nothing is sent yet."""
        async with tls_channel(address or self.address, self.authority_pem) as connection:
            session = RawSession(connection, campaign_id or self.campaign_id, code, writer)
            try:
                yield session
            finally:
                await session.broken_off()

    @asynccontextmanager
    async def operations(self, files: TlsFiles, node: RunningNode | None = None) -> AsyncIterator[grpc.aio.Channel]:
        """A channel to a node's mTLS listener, with a certificate."""
        target = (node or self.nodes[0]).operations_address
        async with channel(target, client_credentials(self.authority_pem, files), OWN_CONNECTION) as connection:
            yield connection

    async def health(self, address: str | None = None, seconds: float = 5.0) -> int:
        """The health of whichever worker answers, as in `HealthCheckResponse`."""
        async with tls_channel(address or self.address, self.authority_pem) as connection:
            stub: Any = health_pb2_grpc.HealthStub(connection)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
            return int(answer.status)

    async def healthy(self, *, serving: bool, seconds: float = 30.0) -> None:
        """Waits until the first node says that it serves, or that it does not."""
        wanted = int(health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING)

        async def is_so() -> bool:
            return await self.health() == wanted

        await until(is_so, f"health {wanted}", seconds)

    # What lies in the spool

    async def blocks(self, shard: int = 0) -> list[Entry]:
        """Every entry of a shard's Redis stream, raw: blocks, and the closing at its end."""
        keys = ShardKeys(self.campaign_id, shard)
        rows = await asked(self._call("XRANGE", keys.spool, "-", "+"))
        return [_entry(*row) for row in rows]

    async def records(self) -> list[StoredRecord]:
        """Every record in the spool, opened and checked as the vault would, in the order of commits."""
        records: list[StoredRecord] = []
        for shard in range(self.vault.shards):
            entries = await self.blocks(shard)
            records += self.vault.open([(entry.block, entry.header) for entry in entries if entry.block])
        return records

    async def records_of(self, code: Code) -> list[StoredRecord]:
        """The records of one code."""
        pseudonym = self.vault.pseudonym(code)
        return [record for record in await self.records() if record.pseudonym == pseudonym]

    def _call(self, *command: Any) -> Any:
        assert self._redis is not None, "the platform is not started"
        return self._redis.execute_command(*command)  # type: ignore[no-untyped-call]


def marker_of(shard: int) -> bytes:
    """The identity that a shard's store is given: fixed, so that a wiped store can be told apart."""
    return bytes(15) + bytes((shard + 1,))


def _entry(entry_id: bytes, fields: Any) -> Entry:
    pairs = list(fields.items()) if isinstance(fields, dict) else list(zip(fields[::2], fields[1::2], strict=True))
    row = {bytes(name): bytes(value) for name, value in pairs}
    return Entry(
        bytes(entry_id),
        row.get(b"e", b""),
        int(row.get(b"n", b"0")),
        row.get(b"d", b""),
        row.get(b"b", b""),
        row.get(b"h", b""),
        row.get(b"c", b""),
    )

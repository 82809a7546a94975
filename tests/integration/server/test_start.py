"""Wrong conditions at the start: exit code 2 and one message that says what, where and what to do."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pli.development_ca import DevelopmentAuthority
from pli.process import exclusive
from pli.rpc.roles import INGEST, RELAY
from tests.support.played_vault import PlayedVault
from tests.support.processes import run
from tests.support.stores import EmbeddedStore
from tests.support.toml_files import write_toml

pytestmark = pytest.mark.asyncio(loop_scope="session")
AT_ONCE = 2
"""Processes started at a time: as many as a small machine has cores."""


class Scene:
    """Right files for every process, and a place to spoil them."""

    def __init__(self, directory: Path, store: EmbeddedStore, taken: str) -> None:
        self.directory = directory
        self.store = store
        self.taken = taken
        directory.mkdir()
        self.authority = DevelopmentAuthority(directory / "certificates")
        self.ingest = self.authority.issue(INGEST, "node-1", ("127.0.0.1",))
        self.relay = self.authority.issue(RELAY, "relay-1")
        self.vault_key = PlayedVault().write_public_key(directory / "vault.pem")
        self.environ: dict[str, str] = {}

    def node(self, **changes: Any) -> dict[str, Any]:
        """A right configuration of a node, changed."""
        return {
            "campaign_id": "tests",
            "state_dir": self.directory / "state",
            "listen": "127.0.0.1:0",
            "listen_operations": "127.0.0.1:0",
            "tls": self.ingest.model_dump(),
            "vault_signing_key_file": self.vault_key,
            "spool": self.store.settings("ingest"),
            **changes,
        }

    def carrier(self, **changes: Any) -> dict[str, Any]:
        """A right configuration of a relay, changed."""
        return {
            "campaign_id": "tests",
            "name": "relay-1",
            "state_dir": self.directory / "relay",
            "vault": "127.0.0.1:1",
            "tls": self.relay.model_dump(),
            "vault_signing_key_file": self.vault_key,
            "spool": self.store.settings("relay"),
            **changes,
        }

    def opened_to_others(self, path: Path) -> Path:
        path.chmod(0o644)
        return path

    def spoilt(self, content: bytes) -> Path:
        path = self.directory / "spoilt"
        path.write_bytes(content)
        path.chmod(0o600)
        return path


Case = tuple[str, Callable[[Scene], Mapping[str, Any]], tuple[str, ...]]
NODE, CARRIER, STORE = "server.main.node", "server.main.relay", "server.main.embedded"


def with_variable(scene: Scene, name: str, value: str) -> dict[str, Any]:
    scene.environ[name] = value
    return scene.node()


CASES: dict[str, Case] = {
    "port in use": (NODE, lambda s: s.node(listen=s.taken), ("cannot listen on", "another address")),
    "operations port in use": (NODE, lambda s: s.node(listen_operations=s.taken), ("cannot listen on",)),
    "not an address": (NODE, lambda s: s.node(listen="everywhere"), ("is not an address", "host:port")),
    "unknown key": (NODE, lambda s: s.node(listne="127.0.0.1:1"), ("listne", "unknown key")),
    "unknown key in a table": (
        NODE,
        lambda s: s.node(spool={**s.store.settings("ingest"), "pasword_file": "x"}),
        ("spool.pasword_file", "unknown key"),
    ),
    "value out of range": (NODE, lambda s: s.node(workers=0), ("workers", "greater than or equal to 1")),
    "unknown variable": (
        NODE,
        lambda s: with_variable(s, "PLI_SPOOL__URI", "unix:///x"),
        ("PLI_SPOOL__URI", "unset it"),
    ),
    "variable out of range": (NODE, lambda s: with_variable(s, "PLI_WORKERS", "many"), ("workers",)),
    "key open to others": (
        NODE,
        lambda s: s.node(tls={**s.ingest.model_dump(), "key_file": s.opened_to_others(s.ingest.key_file)}),
        ("open to others", "chmod 0400"),
    ),
    "certificate of another role": (
        NODE,
        lambda s: s.node(tls=s.relay.model_dump()),
        ("role relay", "needs role ingest"),
    ),
    "key of another certificate": (
        NODE,
        lambda s: s.node(tls={**s.ingest.model_dump(), "key_file": s.relay.key_file}),
        ("is not the key of",),
    ),
    "certificate not readable": (
        NODE,
        lambda s: s.node(tls={**s.ingest.model_dump(), "certificate_file": s.spoilt(b"no PEM")}),
        ("not a readable PEM certificate",),
    ),
    "no vault key": (
        NODE,
        lambda s: s.node(vault_signing_key_file=s.directory / "missing.pem"),
        ("missing.pem", "cannot be read"),
    ),
    "vault key not a key": (
        NODE,
        lambda s: s.node(vault_signing_key_file=s.spoilt(b"no PEM")),
        ("not a PEM public key", "copy the vault's signing key there"),
    ),
    "password open to others": (
        NODE,
        lambda s: s.node(
            spool={**s.store.settings("ingest"), "password_file": s.opened_to_others(s.spoilt(b"secret"))}
        ),
        ("open to others",),
    ),
    "spool address not one": (NODE, lambda s: s.node(spool={"url": "spool.sock"}), ("spool", "url must be unix:///")),
    "spool port not one": (NODE, lambda s: s.node(spool={"url": "redis://127.0.0.1:x"}), ("spool url", "not valid")),
    "spool without TLS elsewhere": (
        NODE,
        lambda s: s.node(spool={"url": "redis://10.0.0.1:6379"}),
        ("rediss://host:port, or redis:// to 127.0.0.1",),
    ),
    "password in the spool's address": (
        NODE,
        lambda s: s.node(spool={"url": "rediss://user:secret@host:1"}),
        ("set username and password_file",),
    ),
    "plaintext beyond this machine": (
        NODE,
        lambda s: s.node(plaintext_for_bench=True, listen="0.0.0.0:0"),
        ("plaintext_for_bench is for loopback alone",),
    ),
    "relay with a node's certificate": (CARRIER, lambda s: s.carrier(tls=s.ingest.model_dump()), ("role ingest",)),
    "relay under another name": (CARRIER, lambda s: s.carrier(name="relay-2"), ("relay-1", "relay-2")),
    "relay without vault key": (
        CARRIER,
        lambda s: s.carrier(vault_signing_key_file=s.directory / "missing.pem"),
        ("missing.pem", "cannot be read"),
    ),
    "store's directory in use": (
        STORE,
        lambda s: {"directory": s.store.directory, "socket_directory": s.store.socket_directory},
        ("already runs on", "stop it"),
    ),
    "store's socket path too long": (
        STORE,
        lambda s: {"directory": s.directory / ("x" * 90)},
        ("too long for a Unix socket", "socket_directory"),
    ),
    "store of no size": (STORE, lambda s: {"directory": s.directory / "d", "max_memory_mb": 1}, ("max_memory_mb",)),
    "state directory in use": (NODE, lambda s: s.node(state_dir=s.directory / "held"), ("already runs on", "stop it")),
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, tuple[int, str]]]:
    """Exit status and stderr of every case."""
    root = tmp_path_factory.mktemp("start")
    store = EmbeddedStore(root / "store")
    places = asyncio.Semaphore(AT_ONCE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        async def outcome(number: int, case: Case) -> tuple[int, str]:
            module, configure, _ = case
            async with places:
                scene = Scene(root / str(number), store, address)
                config = write_toml(scene.directory / "config.toml", configure(scene))
                with exclusive(scene.directory / "held", "a test"):
                    log = scene.directory / "stderr"
                    return await run([module, "--config", str(config)], log, {**os.environ, **scene.environ})

        try:
            await store.start()
            found = await asyncio.gather(*(outcome(number, case) for number, case in enumerate(CASES.values())))
            yield dict(zip(CASES, found, strict=True))
        finally:
            await store.aclose()


@pytest.mark.parametrize("name", CASES)
async def test_a_wrong_start_ends_with_2_and_one_clear_message(outcomes: dict[str, tuple[int, str]], name: str) -> None:
    status, stderr = outcomes[name]
    assert status == 2, stderr
    assert "Traceback" not in stderr
    said = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert said[0].startswith("error: ")
    assert sum(line.startswith("error: ") for line in said) == 1
    for fragment in CASES[name][2]:
        assert fragment in stderr
    assert "secret@" not in stderr


@pytest.mark.parametrize("module", [NODE, CARRIER, STORE])
async def test_a_missing_configuration_is_named(tmp_path: Path, module: str) -> None:
    status, stderr = await run([module, "--config", str(tmp_path / "none.toml")], tmp_path / "stderr")
    assert status == 2
    assert "none.toml does not exist" in stderr
    assert "Traceback" not in stderr

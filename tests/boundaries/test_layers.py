"""Inside a service imports go one way, main → services → domain → store, also of modules no contract names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = {"main": 4, "services": 3, "store": 1, "config": 0, "merkle": 0}
"""What is not here is domain. Configuration and the arithmetic of Merkle trees know no other module."""

DOMAIN = 2


def layer(module: str) -> int:
    return LAYERS.get(module.split(".")[1], DOMAIN) if "." in module else DOMAIN


def imports_of(text: str, zone: str) -> Iterator[str]:
    """Modules of the zone that a module imports, at its top or anywhere within."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(f"{zone}."))
        elif isinstance(node, ast.ImportFrom) and node.module == zone:
            yield from (f"{zone}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{zone}."):
            yield node.module


def upward(zone: str, module: str, text: str) -> list[str]:
    """Imports that go from a lower layer to a higher one."""
    return [f"{module} imports {name}" for name in imports_of(text, zone) if layer(name) > layer(module)]


@pytest.mark.parametrize("zone", ["server", "vault"])
def test_no_module_imports_from_a_layer_above_its_own(zone: str) -> None:
    found = []
    for path in (ROOT / zone).rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found += upward(zone, module, path.read_text())
    assert found == []


@pytest.mark.parametrize(
    ("module", "line", "goes_up"),
    [
        ("server.store.keys", "import server.committer", True),
        ("server.store.keys", "def late():\n    from server import committer", True),
        ("server.session", "from server.services.ingest import IngestService", True),
        ("server.services.ingest", "from server.main import worker", True),
        ("server.config", "from server.store.keys import ShardKeys", True),
        ("server.committer", "from server.store.spool import Spool", False),
        ("server.committer", "from server.session import Session", False),
        ("server.main.worker", "import server.services.ingest", False),
        ("server.store.spool", "from server.config import SpoolSettings", False),
    ],
)
def test_the_look_at_an_import_tells_up_from_down(module: str, line: str, goes_up: bool) -> None:
    assert bool(upward("server", module, line)) == goes_up

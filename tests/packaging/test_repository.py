"""The repository as a whole: nothing in it knows a registry, a machine, or work left undone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def joined(*pieces: str) -> str:
    """A text that this file itself must not hold."""
    return "".join(pieces)


REGISTRIES = [
    joined(name, ".", end)
    for name, end in (
        ("py" + "pi", "org"), ("python" + "hosted", "org"), ("npm" + "js", "org"), ("npm" + "js", "com"),
        ("yarn" + "pkg", "com"), ("proxy.go" + "lang", "org"), ("crat" + "es", "io"), ("dock" + "er", "io"),
        ("ghc" + "r", "io"), ("qua" + "y", "io"), ("gc" + "r", "io"),
    )
]  # fmt: skip
MACHINES = [joined("/wo", "rk/"), joined("/ro", "ot/"), joined("/home", "/")]
UNDONE = [joined("TO", "DO"), joined("FIX", "ME"), joined("X", "XX")]
PRIVATE_KEY = joined("PRIVATE ", "KEY-----")


def texts() -> dict[str, str]:
    """Every tracked file that is text, by its path."""
    done = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = {}
    for name in done.stdout.split("\0"):
        path = ROOT / name
        if name and path.is_file():
            content = path.read_bytes()
            if b"\0" not in content:
                found[name] = content.decode("utf-8", "replace")
    return found


@pytest.fixture(scope="module")
def repository() -> dict[str, str]:
    found = texts()
    assert {"pyproject.toml", "pli/codes.py", "locks/runtime.txt", "Makefile"} <= found.keys()
    return found


def holding(repository: dict[str, str], *words: str) -> list[str]:
    return sorted(
        f"{name}:{number}: {word}"
        for name, text in repository.items()
        for number, line in enumerate(text.splitlines(), start=1)
        for word in words
        if word in line
    )


def test_no_file_names_a_registry(repository: dict[str, str]) -> None:
    assert holding(repository, *REGISTRIES) == []


def test_no_file_holds_a_path_of_the_machine_it_was_written_on(repository: dict[str, str]) -> None:
    assert holding(repository, *MACHINES) == []


def test_no_work_is_left_for_later(repository: dict[str, str]) -> None:
    undone = re.compile(rf"\b({'|'.join(UNDONE)})\b")
    assert [name for name, text in repository.items() if undone.search(text)] == []
    assert all(undone.search(f"# {word}: later") for word in UNDONE)


def test_no_private_key_is_in_the_repository(repository: dict[str, str]) -> None:
    assert holding(repository, PRIVATE_KEY) == []


@pytest.mark.parametrize("word", [*REGISTRIES, *MACHINES, PRIVATE_KEY])
def test_the_search_finds_what_it_looks_for(word: str) -> None:
    assert holding({"a.txt": f"first\n… {word} …\n"}, word) == [f"a.txt:2: {word}"]

"""The contract: commented, linted, and generated as it is committed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
BUF = Path(sys.executable).with_name("buf")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Protos, stubs and generator apart from this tree, with this interpreter's environment."""
    for folder in ("protos", "pli"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def run(directory: Path, *command: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        list(map(str, command)), cwd=directory, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


# Stubs


def test_stubs_are_what_the_protos_generate(copy: Path) -> None:
    assert run(copy, "protos/generate.sh", "--check") == (0, "")


def test_an_altered_or_missing_stub_is_named(copy: Path) -> None:
    altered, missing = copy / "pli/ingest/v1/ingest_pb2.pyi", copy / "pli/ops/v1/ops_pb2_grpc.py"
    altered.write_text(altered.read_text() + "\n")
    missing.unlink()
    status, said = run(copy, "protos/generate.sh", "--check")
    assert status == 1
    assert [line.split()[0] for line in said.splitlines() if "make protos" in line] == [
        str(path.relative_to(copy)) for path in (altered, missing)
    ]
    assert run(copy, "protos/generate.sh")[0] == 0
    assert run(copy, "protos/generate.sh", "--check") == (0, "")


def test_a_proto_that_does_not_compile_is_no_success(copy: Path) -> None:
    proto = copy / "protos/pli/ops/v1/ops.proto"
    proto.write_text(proto.read_text() + "\nmessage {")
    assert run(copy, "protos/generate.sh", "--check")[0] != 0


def test_there_is_no_stub_without_its_proto_and_every_folder_is_a_package() -> None:
    stubs = sorted((ROOT / "pli").rglob("*_pb2*"))
    stems = {str(path.relative_to(ROOT / "protos")).removesuffix(".proto") for path in PROTOS}
    generated = [path for path in stubs if "__pycache__" not in path.parts]
    assert {str(path.relative_to(ROOT)).partition("_pb2")[0] for path in generated} == stems
    assert len(generated) == 4 * len(stems)
    for folder in {path.parent for path in generated}:
        assert (folder / "__init__.py").is_file()
        assert (folder.parent / "__init__.py").is_file()


# Style


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.name)
def test_half_of_a_proto_is_comment(proto: Path) -> None:
    lines = proto.read_text().splitlines()
    comments = [line for line in lines if line.lstrip().startswith("//")]
    assert 2 * len(comments) >= len(lines)
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.name)
def test_a_proto_imports_nothing_from_outside(proto: Path) -> None:
    imports = [line.split('"')[1] for line in proto.read_text().splitlines() if line.startswith("import")]
    assert all(name.startswith(("pli/", "google/protobuf/")) for name in imports)


def test_buf_finds_nothing() -> None:
    assert run(ROOT, BUF, "lint") == (0, "")
    assert run(ROOT, BUF, "format", "--diff", "--exit-code") == (0, "")


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("  PRESENCE_ABSENT = 1;", "  ABSENT = 1;", "PRESENCE_"),
        ("  uint32 opening = 1;\n  // Highest seq", "  uint32 Opening = 1;\n  // Highest seq", "lower_snake_case"),
        ("  // No item of this id in the instrument.\n", "", "non-empty comment"),
        (
            "  // Exactly one is set. None, or one that does not fit the place, ends the stream with PROTOCOL.\n",
            "",
            "Oneof",
        ),
    ],
)
def test_buf_sees_a_name_or_comment_that_is_not_as_agreed(copy: Path, before: str, after: str, found: str) -> None:
    proto = copy / "protos/pli/ingest/v1/ingest.proto"
    content = proto.read_text()
    assert content.count(before) == 1
    proto.write_text(content.replace(before, after))
    status, said = run(copy, BUF, "lint")
    assert status != 0
    assert found in said

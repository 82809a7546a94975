"""Configuration: what is unknown, out of range or open to others stops the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from pli.config import NO_SETTINGS, Section, Settings, load, read_secret_file, write_secret_file
from pli.errors import ConfigError


class Inner(Section):
    url: str = "unix:///none"
    timeout_ms: int = Field(default=5_000, ge=50)


class Example(Settings):
    listen: str = "127.0.0.1:1"
    workers: int = Field(default=1, ge=1, le=64)
    spool: Inner = Inner()
    backup: Inner | None = None
    secret_dirs: tuple[Path, ...] = ()


def configured(tmp_path: Path, text: str, **variables: str) -> Example:
    path = tmp_path / "pli.toml"
    path.write_text(text)
    return load(Example, path, variables)


def refusal(tmp_path: Path, text: str = "", **variables: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, text, **variables)
    return caught.value.message


# Files and variables


def test_a_file_is_read_over_the_defaults_and_variables_over_the_file(tmp_path: Path) -> None:
    settings = configured(
        tmp_path,
        'workers = 3\n[spool]\nurl = "redis://a:1"\ntimeout_ms = 70\n',
        PLI_SPOOL__URL="redis://b:2",
        PLI_LISTEN="0.0.0.0:9",
        PLI_BACKUP__TIMEOUT_MS="90",
        PLI_SECRET_DIRS='["/a", "/b"]',
        HOME="/root",
    )
    assert settings.spool == Inner(url="redis://b:2", timeout_ms=70)
    assert (settings.workers, settings.listen) == (3, "0.0.0.0:9")
    assert settings.backup == Inner(timeout_ms=90)
    assert settings.secret_dirs == (Path("/a"), Path("/b"))


def test_without_a_file_defaults_and_variables_count() -> None:
    settings = load(Example, None, {})
    assert (settings.listen, settings.workers, settings.spool, settings.backup) == ("127.0.0.1:1", 1, Inner(), None)
    assert load(Example, None, {"PLI_WORKERS": "2"}).workers == 2


def test_given_variables_are_read_instead_of_the_process_own(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\nfrom pli.config import Settings, load\n"
        "class Example(Settings):\n    workers: int = 1\n"
        "print(load(Example, None, {}).workers, load(Example, None).workers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PLI_WORKERS": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1", "7"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("worker = 1", "worker: unknown key"),
        ("[spol]\n", "spol: unknown key"),
        ("[spool]\nurll = 'x'", "spool.urll: unknown key"),
        ("[backup]\nx = 1", "backup.x: unknown key"),
    ],
)
def test_an_unknown_key_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    message = refusal(tmp_path, text)
    assert named in message
    assert str(tmp_path / "pli.toml") in message


@pytest.mark.parametrize(
    "name",
    ["PLI_WORKER", "PLI_", "PLI_SPOOL__URLL", "PLI_SPOOL__URL__X", "PLI_WORKERS__X", "PLI_SPOOL_URL", "PLI_BACKUP__X"],
)
def test_an_unknown_variable_is_refused_by_name(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, "", **{name: "1"})
    assert f"unknown environment variable {name};" in message
    assert "PLI_SPOOL" in message, "the known ones are named"


def test_the_variables_of_the_tests_are_no_settings_and_stop_no_process(tmp_path: Path) -> None:
    assert configured(tmp_path, "", **dict.fromkeys(NO_SETTINGS, "/data")).workers == 1
    assert sorted(NO_SETTINGS) == ["PLI_REAL_DATA"], "each one more is a hole in the check for unknown ones"


def test_all_unknown_variables_are_named_and_no_value_is_shown(tmp_path: Path) -> None:
    message = refusal(tmp_path, "", PLI_B="hush", PLI_A="hush", OTHER="x")
    assert "PLI_A, PLI_B" in message
    assert "hush" not in message
    assert "OTHER" not in message


@pytest.mark.parametrize(
    ("text", "key"),
    [("workers = 0", "workers"), ("workers = 'many'", "workers"), ("[spool]\ntimeout_ms = 1", "spool.timeout_ms"),
     ("spool = 3", "spool"), ("listen = 5", "listen")],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_with_its_key(tmp_path: Path, text: str, key: str) -> None:
    assert f"  {key}: " in refusal(tmp_path, text)


def test_every_fault_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "workers = 0\nnew = 1\n[spool]\ntimeout_ms = 1\n")
    assert [line.strip().partition(":")[0] for line in message.splitlines()[1:]] == [
        "workers",
        "spool.timeout_ms",
        "new",
    ]


def test_what_is_no_toml_is_refused_with_its_place(tmp_path: Path) -> None:
    message = refusal(tmp_path, "workers = 1\nlisten = \n")
    assert "line 2" in message
    assert str(tmp_path / "pli.toml") in message


def test_a_table_given_as_a_variable_must_be_json(tmp_path: Path) -> None:
    assert configured(tmp_path, "", PLI_SPOOL='{"timeout_ms": 60}').spool.timeout_ms == 60
    assert "PLI_… variable" in refusal(tmp_path, "", PLI_SPOOL="timeout")


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(Example, tmp_path / name, {})


def test_settings_do_not_change_after_the_start(tmp_path: Path) -> None:
    settings = configured(tmp_path, "")
    with pytest.raises(ValueError, match="frozen"):
        setattr(settings, "workers", 2)  # noqa: B010  # the type checker refuses the plain form already
    with pytest.raises(ValueError, match="frozen"):
        setattr(settings.spool, "timeout_ms", 60)  # noqa: B010


# Secret files


@pytest.mark.parametrize("mode", [0o400, 0o600])
def test_a_secret_that_its_owner_alone_may_read_is_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    write_secret_file(path, b"content", mode)
    assert path.stat().st_mode & 0o777 == mode
    assert read_secret_file(path).reveal() == b"content"


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o644, 0o660, 0o620, 0o410, 0o401])
def test_a_secret_open_to_others_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"content")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 0400 {path}") as caught:
        read_secret_file(path)
    assert "content" not in str(caught.value)


def test_an_empty_or_missing_secret_and_a_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch(0o400)
    with pytest.raises(ConfigError, match="is empty"):
        read_secret_file(tmp_path / "empty")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_secret_file(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_secret_file(tmp_path)


def test_a_secret_is_never_written_over_another(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_secret_file(path, b"first")
    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        write_secret_file(path, b"second")
    assert read_secret_file(path).reveal() == b"first"


def test_a_secret_that_cannot_be_written_whole_leaves_no_file(tmp_path: Path) -> None:
    # The limit on file size makes write() fail half-way, as a full disk does.
    path = tmp_path / "secret"
    script = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom pli.config import write_secret_file\n"
        "from pli.errors import ConfigError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try:\n    write_secret_file(Path(sys.argv[1]), bytes(100))\n"
        "except ConfigError as error:\n    print(error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "cannot be written: File too large" in done.stdout
    assert not path.exists()

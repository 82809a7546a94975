"""`pli demo` as a person runs it: what it prints, leaves behind, and refuses."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import until

DATA = Path(__file__).parents[2] / "data"
REAL = os.environ.get("PLI_REAL_DATA")
PLI = [sys.executable, "-m", "cli.main"]
KEYS = (
    "pupils", "sessions", "answers_sent", "acknowledged", "in_vault", "lost", "duplicated", "unexpected", "quarantined",
    "spool_left", "seconds", "results", "reports",
)  # fmt: skip


def demo(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PLI, "demo", *arguments], cwd=cwd, capture_output=True, text=True, timeout=110, check=False)


def files(folder: Path) -> list[str]:
    return [
        *("--roster", str(folder / "roster.csv")),
        *("--instrument", str(folder / "instrument.toml")),
        *("--responses", str(folder / "responses.csv")),
    ]


def processes_of(directory: Path) -> list[str]:
    """Command lines of living processes that name this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(directory) in line:
                found.append(line)
    return found


async def until_nothing_runs(directory: Path) -> None:
    async def nothing_runs() -> bool:
        return not processes_of(directory)

    await until(nothing_runs, "the end of every process")


@pytest.mark.parametrize("folder", [DATA / "small", *([Path(REAL)] if REAL else [])], ids=lambda path: path.name)
def test_real_answers_get_exactly_the_scores_they_must_get(folder: Path, tmp_path: Path) -> None:
    done = demo(*files(folder), "--out", str(tmp_path / "out"), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    outcome = json.loads(done.stdout)
    assert list(outcome)[: len(KEYS)] == list(KEYS)
    with (folder / "responses.csv").open(encoding="utf-8-sig", newline="") as responses:
        rows = list(csv.reader(responses))[1:]
    answers = sum(bool(cell) for row in rows for cell in row[1:])
    assert outcome["pupils"] >= outcome["sessions"] == outcome["concurrent"] == len(rows)
    assert outcome["answers_sent"] == outcome["acknowledged"] == outcome["in_vault"] == answers
    assert [outcome[key] for key in KEYS[5:10]] == [0, 0, 0, 0, 0]
    with Path(outcome["results"]).open(encoding="utf-8", newline="") as results:
        table = list(csv.reader(results))
    column = table[0].index("max_score")
    without = [row[:column] + row[column + 1 :] for row in table]
    with (folder / "expected_scores.csv").open(encoding="utf-8-sig", newline="") as expected:
        assert without == list(csv.reader(expected))
    assert processes_of(tmp_path) == []


def test_the_simulated_demo_tells_what_happened_and_what_it_left(tmp_path: Path) -> None:
    done = demo("--pupils", "30", cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    for word in ("pupils", "acknowledged", "in the vault", "lost", "duplicated", "state DRAINED", "results", "ledger"):
        assert word in done.stdout
    (out,) = (tmp_path / "pli-demo").iterdir()
    assert (out / "results.csv").stat().st_mode & 0o777 == 0o600
    assert processes_of(tmp_path) == []


async def test_two_demos_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    runs = [
        await asyncio.create_subprocess_exec(
            *PLI, "demo", "--pupils", "20", "--json", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    for run in runs:
        said, _ = await run.communicate()
        assert json.loads(said)["lost"] == 0
        assert run.returncode == 0
    assert len(list((tmp_path / "pli-demo").iterdir())) == 2
    await until_nothing_runs(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_demo_that_is_ended_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    run = await asyncio.create_subprocess_exec(
        *PLI, "demo", "--pupils", "20", "--pace-ms", "500", "--out", str(tmp_path / "out"), cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    ledger = tmp_path / "out" / "ledger.txt"
    async with asyncio.timeout(40):
        while not ledger.exists() or b"\na " not in ledger.read_bytes():
            assert run.returncode is None, await run.communicate()
            await asyncio.sleep(0.05)
    if number == signal.SIGINT:
        # As a terminal sends it: to the whole foreground group.
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    _, told = await run.communicate()
    if number != signal.SIGKILL:
        assert run.returncode == 130
        assert b"interrupted" in told
        assert b"Traceback" not in told
    await until_nothing_runs(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--roster", "nowhere.csv"], "give all three"),
        (["--roster", "no.csv", "--instrument", "no.toml", "--responses", "no.csv"], "no.csv cannot be read"),
        (["--mishaps", "many"], "none, some or all"),
    ],
)
def test_wrong_arguments_are_told_in_one_message(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = demo(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_directory_that_holds_something_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    done = demo("--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("roster.csv", b"pupil_id,family_name\nE01,X\n", "roster.csv"),
        ("roster.csv", "pupil_id\nE01\n".encode("utf-16"), "UTF-16"),
        ("instrument.toml", b"id = 'x'\n[[item]]\nid = 'a'\ntype = 'magic'\n", "line 2"),
        ("responses.csv", b"pupil_id,fra-01\nE01,Z\n", "responses.csv"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place_and_no_process_stays(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    for source in (DATA / "small").iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / name).write_bytes(content)
    done = demo(*files(tmp_path), "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert processes_of(tmp_path) == []


def test_a_file_that_the_vault_refuses_leaves_nothing_and_can_be_corrected(tmp_path: Path) -> None:
    for source in (DATA / "small").iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    roster = tmp_path / "roster.csv"
    right = roster.read_text(encoding="utf-8")
    roster.write_text(right.replace("2015-02-28", "2015-02-31"), encoding="utf-8")
    arguments = [*files(tmp_path), "--out", str(tmp_path / 'my "own" out')]
    done = demo(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "roster.csv, line 2, column birth_date" in done.stderr
    assert processes_of(tmp_path) == []
    roster.write_text(right, encoding="utf-8")
    again = demo(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_a_campaign_in_which_nobody_answers_is_not_called_good(tmp_path: Path) -> None:
    for source in (DATA / "small").iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    header = (tmp_path / "responses.csv").read_bytes().splitlines()[0]
    (tmp_path / "responses.csv").write_bytes(header + b"\n")
    done = demo(*files(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert "no pupil in the file" in done.stderr


@pytest.mark.parametrize(
    ("out", "environ", "told"),
    [("/dev/null", {}, "is not a directory"), ("out", {"PLI_DIRECTORY": "elsewhere"}, "PLI_DIRECTORY")],
)
def test_where_nothing_can_be_written_nothing_starts(
    tmp_path: Path, out: str, environ: dict[str, str], told: str
) -> None:
    done = subprocess.run(
        [*PLI, "demo", "--out", out], cwd=tmp_path, env={**os.environ, **environ}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []

"""`pli up`: kept running, used by an application and by people, and drained by SIGTERM."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cli.deployment import Addresses, Deployment
from cli.services import free_address
from pli.client import ClientProfile, PupilSession
from pli.config import write_secret_file
from pli.ledger import LedgerWriter
from pli.responses import parse_codes
from pli.secret import Secret
from tests.integration.demo.test_demo_command import PLI, until_nothing_runs
from tests.support.waiting import until

README = Path(__file__).parents[3] / "README.md"


def pid_of(module: str, directory: Path) -> int:
    """The process id of the service that runs this module on this directory."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if module.encode() in line and str(directory).encode() in line:
                return int(entry.name)
    raise AssertionError(f"no process of {module} on {directory}")


class Up:
    """A running `pli up` and its directory."""

    def __init__(self, directory: Path, process: asyncio.subprocess.Process, told: str) -> None:
        self.directory = directory
        self.process = process
        self.told = told
        self.addresses = re.findall(r"127\.0\.0\.1:\d+", told)

    def profile(self, name: str) -> Path:
        return self.directory / "profiles" / f"{name}.toml"

    def codes(self) -> list[str]:
        return list(parse_codes((self.directory / "codes.csv").read_bytes(), "codes.csv").values())


async def start(directory: Path, *arguments: str) -> Up:
    listens = [f"--{name}={free_address()}" for name in ("listen", "listen-operations", "listen-vault")]
    process = await asyncio.create_subprocess_exec(
        *PLI, "up", "--dir", str(directory), "--pupils", "20", *listens, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    told = ""
    async with asyncio.timeout(60):
        while "drains and stops" not in told:
            line = await process.stdout.readline()
            assert line, await process.communicate()
            told += line.decode()
    return Up(directory, process, told)


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    running = await start(tmp_path / "state")
    try:
        yield running
    finally:
        if running.process.returncode is None:
            running.process.send_signal(signal.SIGTERM)
            await running.process.wait()
        await until_nothing_runs(tmp_path)


def pli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PLI, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


async def test_it_serves_applications_and_people_and_drains_when_told(up: Up, tmp_path: Path) -> None:
    assert "THE VAULT UNLOCKED ITSELF" in up.told
    assert len(set(up.addresses)) == 3
    first, second, *_ = up.codes()

    key = Secret(b"k" * 32)
    write_secret_file(tmp_path / "ledger.key", key.reveal())
    ledger = LedgerWriter(tmp_path / "ledger.txt", "rehearsal", key)
    options = ClientProfile.load(up.profile("client")).options()
    async with PupilSession(options, first, observer=ledger) as session:
        await session.answer("fra-01", choice="C")
        await session.answer("mat-01", number="12,5")
        receipt = await session.finish()
    ledger.close()
    assert receipt.count == 2

    status = await asyncio.to_thread(pli, "status", "--profile", str(up.profile("observer")), "--json", cwd=tmp_path)
    facts = json.loads(status.stdout)
    assert status.returncode == 0, status
    assert facts["campaign_id"] == "rehearsal"
    assert facts["window"]["state"] == "WINDOW_STATE_OPEN"
    assert facts["shards"][0]["registered"] == "20"
    words = await asyncio.to_thread(pli, "status", "--profile", str(up.profile("operator")), cwd=tmp_path)
    assert "window open" in words.stdout
    assert "no alarms" in words.stdout
    denied = await asyncio.to_thread(pli, "status", "--profile", str(up.profile("reporter")), cwd=tmp_path)
    assert denied.returncode != 0
    assert "Traceback" not in denied.stderr

    # Without settlement the vault refuses to compare; it says what to do.
    verify = ["verify", "ledger.txt", "--profile", str(up.profile("campaign-admin"))]
    early = await asyncio.to_thread(pli, *verify, cwd=tmp_path)
    assert "settle" in early.stderr + early.stdout or early.returncode == 0

    readme = await asyncio.to_thread(run_readme_snippet, up, second)
    assert "stored: 2 answers, receipt " in readme

    up.process.send_signal(signal.SIGTERM)
    assert await up.process.wait() == 0


async def test_a_second_start_goes_on_with_the_same_campaign(up: Up, tmp_path: Path) -> None:
    codes = up.codes()
    options = ClientProfile.load(up.profile("client")).options()
    async with PupilSession(options, codes[0]) as session:
        await session.answer("fra-01", choice="C")
    up.process.send_signal(signal.SIGTERM)
    assert await up.process.wait() == 0
    again = await start(tmp_path / "state")
    try:
        assert again.codes() == codes
        options = ClientProfile.load(again.profile("client")).options()
        async with PupilSession(options, codes[0]) as session:
            assert session.opening == 2
    finally:
        again.process.send_signal(signal.SIGTERM)
        assert await again.process.wait() == 0


async def test_the_status_says_that_the_vault_does_not_answer_and_how_long_blocks_wait(up: Up, tmp_path: Path) -> None:
    vault = pid_of("vault.main.vault", up.directory)
    os.kill(vault, signal.SIGSTOP)
    try:
        options = ClientProfile.load(up.profile("client")).options()
        async with PupilSession(options, up.codes()[0]) as session:
            await session.answer("fra-01", choice="C")

        async def told() -> str:
            done = await asyncio.to_thread(pli, "status", "--profile", str(up.profile("operator")), cwd=tmp_path)
            return done.stdout if done.returncode == 1 and "oldest for 0" not in done.stdout else ""

        words = await until(told, "an alarm", 45.0)
        assert "ALARM" in words
        assert "vault not reachable: VAULT_UNAVAILABLE" in words
        assert re.search(r"1 blocks waiting, the oldest for [1-9]", words), words
    finally:
        os.kill(vault, signal.SIGCONT)


async def test_a_profile_of_another_service_is_told_as_such(up: Up, tmp_path: Path) -> None:
    done = await asyncio.to_thread(pli, "status", "--profile", str(up.profile("campaign-admin")), cwd=tmp_path)
    assert done.returncode == 2
    assert "of another service" in done.stderr


def test_a_ledger_that_is_not_there_is_told(tmp_path: Path) -> None:
    write_secret_file(tmp_path / "ledger.key", b"k" * 32)
    deployment = Deployment(
        tmp_path / "state", "demo", Addresses("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"), tmp_path
    )
    deployment.prepare(workers=1, max_memory_mb=16)
    done = pli("verify", "ledger.txt", "--profile", str(deployment.profile("campaign-admin")), cwd=tmp_path)
    assert done.returncode == 2
    assert "ledger.txt cannot be read" in done.stderr


async def test_a_directory_in_use_and_a_port_in_use_are_refused(up: Up, tmp_path: Path) -> None:
    twice = await asyncio.to_thread(pli, "up", "--dir", str(up.directory), cwd=tmp_path)
    assert twice.returncode == 2
    assert "already runs" in twice.stderr
    taken = up.addresses[0]
    other = await asyncio.to_thread(
        pli, "up", "--dir", str(tmp_path / "other"), f"--listen={taken}", f"--listen-operations={free_address()}",
        f"--listen-vault={free_address()}", cwd=tmp_path,
    )  # fmt: skip
    assert other.returncode == 2
    assert f"cannot listen on {taken}" in other.stderr
    assert "Traceback" not in other.stderr


def run_readme_snippet(up: Up, code: str) -> str:
    """The README's ten lines, as a reader would run them beside `pli-state`."""
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (up.directory.parent / "pli-state").symlink_to(up.directory)
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=up.directory.parent, input=code + "\n", capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_listens_where_a_profile_points(tmp_path: Path) -> None:
    deployment = Deployment(
        tmp_path / "state", "demo", Addresses(free_address(), free_address(), free_address()), tmp_path
    )
    deployment.prepare(workers=1, max_memory_mb=16)
    done = pli("status", "--profile", str(deployment.profile("operator")), cwd=tmp_path)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr

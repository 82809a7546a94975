"""Processes at their edges: what a log line may hold, locks, ports, and the end with the parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pli.errors import ConfigError
from pli.process import LOG_FIELDS, bound_address, cancelled, claim_port, exclusive, split_address
from tests.support.processes import alive
from tests.support.waiting import until


def logged(statements: str) -> tuple[list[dict[str, Any]], str]:
    """The log lines of a fresh process that runs these statements, and all it wrote."""
    script = "import structlog\nfrom pli.process import configure_logging\n" + (
        "early = structlog.get_logger()\nconfigure_logging('test')\nlog = structlog.get_logger()\n" + statements
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "", "the log goes to stderr; stdout is for what the process says when it is ready"
    return [json.loads(line) for line in done.stderr.splitlines()], done.stderr


# The log


def test_a_line_is_json_with_its_level_and_moment() -> None:
    first, line = logged("log.warning('commit_repeated', reason='SPOOL_UNAVAILABLE', number=3)")[0]
    assert (first["event"], first["process"]) == ("starting", "test")
    assert isinstance(first["pid"], int)
    assert (line["event"], line["level"], line["reason"], line["number"]) == (
        "commit_repeated", "warning", "SPOOL_UNAVAILABLE", 3,
    )  # fmt: skip
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    "field",
    ["code", "answer", "name", "given_name", "value", "text", "pseudonym", "peer", "address", "key", "token", "x"],
)
def test_a_field_that_is_not_allowed_is_named_and_never_printed(field: str) -> None:
    lines, text = logged(f"log.info('said', {field}='marker-7f3a', count=2)")
    assert "marker-7f3a" not in text
    assert lines[1]["count"] == 2
    assert lines[1]["reason"] == f"fields not allowed in logs: {field}"
    assert field not in lines[1]


@pytest.mark.parametrize(
    "statement",
    [
        "log.bind(code='marker-7f3a').info('said')",
        "early.info('said', code='marker-7f3a')",
        "structlog.contextvars.bind_contextvars(code='marker-7f3a'); log.info('said')",
        "log.info('said', exc_info=ValueError('marker-7f3a'))",
        "log.info('said', stack_info='marker-7f3a')",
        "try:\n    int('marker-7f3a')\nexcept ValueError:\n    log.exception('said')",
    ],
)
def test_no_other_way_leads_a_value_or_an_exception_into_the_log(statement: str) -> None:
    lines, text = logged(statement)
    assert lines[1]["event"] == "said"
    assert "marker-7f3a" not in text


def test_secrets_in_allowed_fields_print_nothing_of_themselves() -> None:
    statement = (
        "from pli.secret import Secret\nfrom pli.codes import new_code\n"
        "log.info('said', error=Secret(b'marker-7f3a'), why=new_code(lambda bits: 0))"
    )
    lines, text = logged(statement)
    assert lines[1]["error"] == "Secret(11 bytes)"
    assert lines[1]["why"] == "Code(…)"
    assert "marker" not in text


def test_no_allowed_field_is_named_after_what_may_never_be_logged() -> None:
    never = {"code", "answer", "name", "value", "text", "key", "pseudonym", "address", "ip", "peer", "content", "token"}
    assert not LOG_FIELDS & never


# Locks


def test_one_process_holds_a_directory_and_frees_it_at_its_end(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    with (
        exclusive(state, "an ingest node"),
        pytest.raises(ConfigError, match=f"an ingest node already runs on {state}"),
        exclusive(state, "an ingest node"),
    ):
        raise AssertionError("two held the lock")
    with exclusive(state, "an ingest node"):
        assert state.stat().st_mode & 0o077 == 0


def test_a_killed_process_frees_its_directory(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom pli.process import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 'one'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="already runs"), exclusive(tmp_path, "one"):
            raise AssertionError("two held the lock")
        holder.kill()
        holder.wait(10)
    with exclusive(tmp_path, "one"):
        pass


def test_a_directory_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"), exclusive(tmp_path / "file", "one"):
        raise AssertionError("a file was taken for a directory")


# Ports


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:7443", ("127.0.0.1", 7443)), ("localhost:0", ("localhost", 0)), ("[::1]:65535", ("::1", 65_535))],
)
def test_an_address_is_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":", "7443", "host", "host:", ":7443", "host:x", "host:-1", "host:65536", "host:٣", "h:" + "9" * 5_000]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        split_address(text)


def test_a_claimed_port_is_refused_to_another_process_and_shared_with_workers() -> None:
    with claim_port("127.0.0.1:0") as held:
        address = bound_address(held)
        with pytest.raises(ConfigError, match=f"cannot listen on {address}: .*in use"):
            claim_port(address)
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(split_address(address))
            worker.listen()
            with pytest.raises(ConfigError, match="in use"):
                claim_port(address)
    with claim_port(address) as again:
        assert bound_address(again) == address


@pytest.mark.parametrize("option", [None, socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_on_which_another_program_listens_is_refused(option: int | None) -> None:
    with socket.socket() as other:
        if option is not None:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="in use"):
            claim_port(f"127.0.0.1:{other.getsockname()[1]}")


def test_a_port_whose_connections_have_just_ended_is_free() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = bound_address(listener)
        with socket.create_connection(listener.getsockname()) as client:
            accepted, _ = listener.accept()
            accepted.close()
            assert client.recv(1) == b"", "the server closed first, so its side waits in TIME_WAIT"
    with claim_port(address) as held:
        assert bound_address(held) == address


@pytest.mark.parametrize("address", ["192.0.2.1:0", "host.invalid:7443"])
def test_an_address_of_another_machine_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {address}"):
        claim_port(address)


def test_the_second_address_family_works_where_it_exists() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("not run: this machine has no IPv6 loopback")
    with claim_port("[::1]:0") as held:
        assert bound_address(held).startswith("[::1]:")


# Signals


async def test_sigterm_and_sigint_stop_a_process_in_order() -> None:
    script = (
        "import asyncio\nfrom pli.process import say_ready, stop_event\n"
        "async def main():\n    stop = stop_event()\n    say_ready('test', listen='here')\n    await stop.wait()\n"
        "asyncio.run(main())\nprint('drained', flush=True)\n"
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert json.loads(await process.stdout.readline()) == {
                "ready": "test",
                "pid": process.pid,
                "listen": "here",
            }
            process.send_signal(number)
            assert await process.stdout.read() == b"drained\n"
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="not run: the kernel has no signal for a parent's death")
async def test_a_process_dies_with_its_parent_however_that_dies() -> None:
    loose = "import signal; print(1, flush=True); signal.pause()"
    tied = f"from pli.process import die_with_parent; die_with_parent(); {loose}"
    parent = (
        "import subprocess, sys\n"
        f"for script in ({tied!r}, {loose!r}):\n"
        "    child = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE)\n"
        "    child.stdout.readline()\n    print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", parent, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    tied_pid, loose_pid = int(await process.stdout.readline()), int(await process.stdout.readline())
    try:
        assert alive(tied_pid)
        process.kill()
        await process.wait()
        await until(lambda: _gone(tied_pid), "the child's end")
        assert alive(loose_pid), "one that is not tied outlives its parent, or this test is blind"
    finally:
        os.kill(loose_pid, signal.SIGKILL)


async def _gone(pid: int) -> bool:
    return not alive(pid)


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    swallowed = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.Event().wait()

    async def ends() -> str:
        return "done"

    task, quick = asyncio.create_task(stubborn()), asyncio.create_task(ends())
    await asyncio.wait({quick})
    outcome = await cancelled(task, quick)
    assert swallowed.is_set()
    assert isinstance(outcome[0], asyncio.CancelledError)
    assert outcome[1] == "done"

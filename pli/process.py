"""What every pli process does at its edges: log, lock, listen, say that it is ready, and stop."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from pli.errors import ConfigError, PliError

LOG_FIELDS = frozenset(
    {
        "event", "level", "timestamp", "process", "pid", "reason", "error", "place", "method", "state",
        "campaign", "shard", "node", "relay", "epoch", "block", "count", "records", "blocks", "version",
        "number", "seconds", "listen", "path", "signal", "worker", "status", "scope", "port", "role",
        "pseudonym_prefix", "bytes", "action", "why", "attempt",
    }
)  # fmt: skip
"""The only fields a log line may have; anything else is dropped and named, never printed."""

CANCEL_AGAIN_SECONDS = 1.0
"""Long enough for a task that cleans up after its cancellation to do so undisturbed."""


def configure_logging(process: str) -> None:
    """JSON lines on stderr; fields outside LOG_FIELDS do not pass."""

    def allow_list(_logger: Any, _name: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        dropped = [field for field in entry if field not in LOG_FIELDS]
        for field in dropped:
            del entry[field]
        if dropped:
            entry["reason"] = f"fields not allowed in logs: {', '.join(sorted(dropped))}"
        return entry

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            allow_list,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.get_logger().info("starting", process=process, pid=os.getpid())


def say_ready(process: str, **facts: object) -> None:
    """One JSON line on stdout, for whoever started the process: what it is and where it listens."""
    print(json.dumps({"ready": process, "pid": os.getpid(), **facts}), flush=True)


def clock_ms() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


def exit_with_reason(run: Callable[[], None]) -> None:
    """Runs a process; an error of ours becomes one message and its exit code.

    No core of it is ever written: codes, answers in flight and keys would be in it (I11).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        run()
    except PliError as error:
        print(f"error: {error.message}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error


def stop_event() -> asyncio.Event:
    """Set by SIGTERM or SIGINT. Call it inside the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def cancelled(*tasks: asyncio.Task[Any]) -> list[Any]:
    """Cancels tasks, waits until all have ended, and returns their outcomes, exceptions among them.

    A cancellation is repeated: `asyncio.wait_for` of Python 3.11, which redis-py waits with, swallows
    one that comes while its result is already there (CPython issue 86296).
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_SECONDS)
    return await asyncio.gather(*tasks, return_exceptions=True)


def die_with_parent() -> None:
    """SIGTERM for this process when its parent dies, however it dies (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(parent_death_signal, signal.SIGTERM, 0, 0, 0)


@contextmanager
def exclusive(directory: Path, what: str) -> Iterator[None]:
    """Holds the lock of a state directory.

    Raises:
        ConfigError: another process holds it, or the directory cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (directory / "lock").open("w")  # closed in the finally below
    except OSError as error:
        raise ConfigError(f"directory {directory} cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{what} already runs on {directory}; stop it, or give this one its own directory"
            ) from error
        yield
    finally:
        file.close()


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`.

    Raises:
        ConfigError: not of that form.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not _is_port(port):
        raise ConfigError(f"{address!r} is not an address; write host:port, for example 127.0.0.1:7443")
    return host.strip("[]"), int(port)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65_535


def claim_port(address: str) -> socket.socket:
    """Takes a port for this process and its workers alone.

    SO_REUSEPORT would let a second server share the port without an error: so the port is bound once
    without it, and then held with it for as long as the returned socket lives (it never listens).

    Raises:
        ConfigError: the port is in use or the address is not this machine's.
    """
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            port = probe.getsockname()[1]
        held = socket.socket(family, socket.SOCK_STREAM)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((host, port))
        except OSError:
            held.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address}: {error.strerror}; another process may use the port: "
            "stop it, or configure another address"
        ) from error
    return held


def bound_address(held: socket.socket) -> str:
    """`host:port` of a claimed port, with the number that port 0 became."""
    host, port = held.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

"""The machine: cores to pin to, CPU clocks and memory of other processes, what one fsync costs."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pli.errors import ConfigError

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PROBE_BYTES = 4_096
PROBES = 200


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for the server that is measured, the others for everything else."""

    server: frozenset[int]
    others: frozenset[int]

    @classmethod
    def of(cls, available: Set[int]) -> Cores:
        """The first for the server.

        Raises:
            ConfigError: there is only one, and clients would take the server's time.
        """
        if len(available) < 2:
            raise ConfigError("this benchmark needs two cores: one for the server, one for everything else")
        first, *rest = sorted(available)
        return cls(frozenset((first,)), frozenset(rest))


@contextmanager
def pinned(cores: frozenset[int]) -> Iterator[None]:
    """Processes started inside run on these cores only, with all their threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads, also of those that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def children(pid: int) -> list[int]:
    """Process ids of the living children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def fsync_ms(directory: Path) -> list[float]:
    """Ascending times of 4 kB written and synced, in ms, on the volume of `directory`."""
    path = directory / "fsync-probe"
    times = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for _ in range(PROBES):
            began = time.perf_counter()
            os.write(descriptor, bytes(PROBE_BYTES))
            os.fdatasync(descriptor)
            times.append((time.perf_counter() - began) * 1_000)
    finally:
        os.close(descriptor)
        path.unlink()
    return sorted(times)


def described(directory: Path) -> dict[str, Any]:
    """What the figures depend on, for whoever compares two runs."""
    times = fsync_ms(directory)
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "redis_py": version("redis"),
        "load_average": round(os.getloadavg()[0], 2),
        "fsync_p50_ms": round(times[len(times) // 2], 3),
        "fsync_p99_ms": round(times[len(times) * 99 // 100], 3),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"

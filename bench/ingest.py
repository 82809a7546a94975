"""Server CPU and memory per answer: `python -m bench.ingest [--json]`. docs/benchmarks.md says how and why.

Alternating runs of the ingest node, of a bare grpc.aio echo that parses the same messages and serialises
the same acks, and of a naive server with one awaited Redis write per answer. The server has one core to
itself; its clients, the store and this process have the others.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.figures import ECHO, NAIVE, OURS, Cost, Figure, Round, order_of, summary
from bench.machine import Cores, described
from bench.platform import Platform, Target, platform_in, until_serving
from bench.processes import generate
from cli.interruption import Interrupted, run_until_told
from pli.errors import PliError, StateError

WARM_UP_SECONDS = 1.0
"""Handshakes, first imports and first key epoch lie in it."""

HEADLINE = ("ratio_to_echo", "ratio_to_naive", "ours_us", "echo_us", "naive_us", "redis_us")


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    rounds: int = 5
    seconds: float = 5.0
    streams: int = 200
    window: int = 8
    """Answers of one stream that are not acknowledged yet. All servers are busy all the time with 8. One ack
    of ours may then cover several answers, which is printed; with 1 each answer has its own everywhere."""
    connections: int = 0
    """Shared by the streams; 0: one for each, as pupils have."""
    sessions: int = 1_000
    """TLS sessions for the memory of one."""
    directory: Path | None = None
    """Where the store writes; the usual place for temporary files otherwise."""
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """All that was measured."""

    figures: dict[str, Figure]
    memory_kb: dict[str, float]
    """Per TLS session: just opened, and after one answer."""
    acknowledged: int
    landed: int
    machine: dict[str, Any]
    options: Options

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints: medians first, then everything with its spread."""
        return {
            **{name: self.figures[name].median for name in HEADLINE},
            "rss_per_session_kb": max(self.memory_kb.values()),
            "acknowledged": self.acknowledged,
            "in_vault": self.landed,
            "spread": {name: asdict(figure) for name, figure in self.figures.items()},
            "memory_kb": self.memory_kb,
            "settings": {
                "rounds": self.options.rounds,
                "seconds": self.options.seconds,
                "streams": self.options.streams,
                "window": self.options.window,
                "connections": self.options.connections or self.options.streams,
                "sessions": self.options.sessions,
            },
            "machine": self.machine,
        }


def parse(arguments: Sequence[str]) -> Options:
    """The command line. Exits with a message when it is wrong."""
    usual = Options()
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description="Server CPU and memory per answer.")
    parser.add_argument("--rounds", type=_at_least(1), default=usual.rounds, help="runs of each server")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="measured time of each run")
    parser.add_argument("--streams", type=_at_least(1), default=usual.streams, help="concurrent streams")
    parser.add_argument("--window", type=_at_least(1), default=usual.window, help="answers of a stream on their way")
    parser.add_argument("--connections", type=_at_least(0), default=usual.connections, help="0: one for each stream")
    parser.add_argument("--sessions", type=_at_least(1), default=usual.sessions, help="TLS sessions held for memory")
    parser.add_argument("--dir", dest="directory", type=Path, help="where the store writes")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")
    options = Options(**vars(parser.parse_args(arguments)))
    if options.seconds <= 0:
        parser.error("--seconds must be above 0")
    return options


def _at_least(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is below {least}")
        return number

    return whole


async def measure(options: Options, tell: Callable[[str], None]) -> Result:
    """Everything, from an empty directory to the last process stopped.

    Raises:
        ConfigError: a service did not start, or the machine has one core only.
        StateError: a server failed, or the vault does not hold what was acknowledged.
    """
    cores = Cores.of(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores.others)
    with tempfile.TemporaryDirectory(prefix="pli-bench-", dir=options.directory, ignore_cleanup_errors=True) as name:
        directory = Path(name)
        machine = described(directory)
        async with platform_in(directory / "state", cores) as platform, AsyncExitStack() as servers:
            tell("starting a campaign")
            async with platform.vault():
                async with platform.node(tls=True) as node:
                    await platform.open(max(options.streams, options.sessions))
                    tell(f"memory of {options.sessions} TLS sessions")
                    memory = await _memory(platform, node, options)
                targets = {OURS: await servers.enter_async_context(platform.node(tls=False))}
                await until_serving(targets[OURS])
            targets[ECHO] = await servers.enter_async_context(platform.echo())
            targets[NAIVE] = await servers.enter_async_context(platform.naive())
            rounds, acknowledged = await _rounds(platform, targets, options, tell)
            await servers.aclose()
            tell("counting in the vault")
            async with platform.vault():
                counts = await platform.drained()
    acknowledged += options.sessions
    if counts.landed != acknowledged:
        raise StateError(f"{acknowledged} answers were acknowledged and {counts.landed} are in the vault")
    return Result(summary(rounds), memory, acknowledged, counts.landed, machine, options)


async def _memory(platform: Platform, node: Target, options: Options) -> dict[str, float]:
    seen = await generate(platform.job(node, options.sessions, authority_pem=platform.authority_pem))
    return {
        state: round((seen[state] - seen["before"]) / seen["sessions"] / 1_000, 1) for state in ("opened", "answered")
    }


async def _rounds(
    platform: Platform, targets: Mapping[str, Target], options: Options, tell: Callable[[str], None]
) -> tuple[list[Round], int]:
    """The rounds, and how many answers the ingest node acknowledged in them."""
    rounds: list[Round] = []
    acknowledged = 0
    for number in range(options.rounds):
        costs: dict[str, Cost] = {}
        for name in order_of(number):
            job = platform.job(
                targets[name],
                options.streams,
                connections=options.connections,
                window=options.window,
                seconds=options.seconds,
                warm_up_seconds=WARM_UP_SECONDS,
            )
            run = await generate(job)
            cpu = run["cpu_seconds"]
            costs[name] = Cost.of(run["acknowledged"], run["acks"], run["seconds"], cpu["server"], cpu["store"])
            if name == OURS:
                acknowledged += run["sent"]
        rounds.append(costs)
        told = ", ".join(f"{name} {cost.server_us:.1f} µs" for name, cost in sorted(costs.items()))
        tell(f"round {number + 1} of {options.rounds}: {told}")
    return rounds, acknowledged


def printed(result: Result) -> str:
    """The result for people."""
    machine, options = result.machine, result.options
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, grpcio {machine['grpcio']}; "
        f"fsync p50 {machine['fsync_p50_ms']} ms, p99 {machine['fsync_p99_ms']} ms; "
        f"load {machine['load_average']} at the start",
        f"{options.streams} streams on {options.connections or options.streams} connections, no TLS, one answer per "
        f"message, {options.window} on its way in each stream; {options.rounds} rounds of {options.seconds:g} s",
        "",
        f"{'':26}{'min':>10}{'median':>10}{'max':>10}",
        *(f"{name:26}{f.min:>10g}{f.median:>10g}{f.max:>10g}" for name, f in result.figures.items()),
        "",
        f"memory of the node per TLS session, {options.sessions} held: "
        f"{result.memory_kb['opened']} kB opened, {result.memory_kb['answered']} kB after an answer",
        f"{result.acknowledged} answers were acknowledged by ingest nodes, {result.landed} are in the vault",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    options = parse(sys.argv[1:])

    def tell(what: str) -> None:
        print(f"… {what}", file=sys.stderr, flush=True)

    try:
        result = run_until_told(lambda: measure(options, tell))
    except Interrupted as told:
        raise SystemExit(told.exit_code) from None
    except PliError as error:
        print(f"error: {error.message}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    print(json.dumps(result.as_json()) if options.as_json else printed(result))


if __name__ == "__main__":
    main()

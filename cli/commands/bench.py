"""`pli bench`: the benchmark suite, each part as a process of its own."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Annotated, NoReturn

import typer

from pli.errors import ConfigError

app = typer.Typer(
    help="Measure: ratios from one run, never absolute times. Nothing else should run meanwhile.",
    no_args_is_help=True,
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command("ingest")
def ingest(
    json: Json = False,
    rounds: Annotated[int, typer.Option(help="Pairs of alternating runs; the figure is the median ratio.")] = 5,
    seconds: Annotated[float, typer.Option(help="Measured time of each run, after a warm-up.")] = 5.0,
    streams: Annotated[int, typer.Option(help="Concurrent streams, one answer per message.")] = 200,
) -> None:
    """Server CPU per acknowledged answer: ours, a bare grpc.aio echo, and one awaited Redis write per answer."""
    _run("bench.ingest", "--rounds", str(rounds), "--seconds", str(seconds), "--streams", str(streams), json=json)


@app.command("vault")
def vault(
    json: Json = False,
    answers: Annotated[int, typer.Option(help="Answers to land and settle.")] = 400_000,
) -> None:
    """Deposits and settlement: answers per second of one core."""
    _run("bench.vault", "--answers", str(answers), json=json)


def _run(module: str, *arguments: str, json: bool) -> NoReturn:
    if find_spec("bench") is None:
        raise ConfigError("this installation has no benchmarks; run `make bench` in a checkout")
    command = [sys.executable, "-m", module, *arguments, *(["--json"] if json else [])]
    # This process goes on as the benchmark, so that Ctrl-C reaches what has services to stop.
    os.execv(sys.executable, command)  # noqa: S606  # no shell is wanted

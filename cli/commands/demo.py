"""`pli demo`: a whole campaign on this machine."""

from __future__ import annotations

import json as json_module
import os
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from cli.deployment import refuse_overrides
from cli.interruption import run_until_told
from cli.progress import Display
from cli.pupils import ALL_MISHAPS, NO_MISHAPS, SOME_MISHAPS
from cli.rehearsal import Outcome, Rehearsal, RehearsalOptions
from cli.simulation import MAX_PUPILS, CampaignFiles, simulate
from pli.csv_input import MAX_FILE_BYTES
from pli.errors import ConfigError, InputError

CAMPAIGN_ID = "demo"
MISHAPS = {"none": NO_MISHAPS, "some": SOME_MISHAPS, "all": ALL_MISHAPS}


def demo(
    roster: Annotated[Path | None, typer.Option(help="roster.csv; with --instrument and --responses.")] = None,
    instrument: Annotated[Path | None, typer.Option(help="instrument.toml of the answers.")] = None,
    responses: Annotated[Path | None, typer.Option(help="responses.csv: the answers to replay.")] = None,
    pupils: Annotated[int, typer.Option(min=1, max=MAX_PUPILS, help="Simulated pupils when no files are given.")] = 200,
    out: Annotated[Path | None, typer.Option(help="New directory for everything the run leaves.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Ingest processes.")] = 1,
    mishaps: Annotated[
        str | None,
        typer.Option(help="none, some (changed answers, second devices), all (and rejected answers)."),
    ] = None,
    pace_ms: Annotated[float, typer.Option(min=0, help="Mean time a pupil thinks before an answer; 0: none.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed simulates the same pupils.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Run a whole campaign here: enrol, issue codes, open, answer, close, drain, settle, score, compare.

    Real files are replayed as they are, by as many concurrent client sessions as there are pupils;
    without files pupils are simulated. Exit 1 unless nothing is lost, duplicated, unexpected,
    quarantined or left in the spool.
    """
    refuse_overrides(os.environ)
    files, names = _files(roster, instrument, responses, pupils, seed)
    simulated = roster is None
    chosen = mishaps or ("some" if simulated else "none")
    if chosen not in MISHAPS:
        raise InputError(f"--mishaps is none, some or all, not {chosen!r}")
    options = RehearsalOptions(
        out=out or _new_directory(),
        campaign_id=CAMPAIGN_ID,
        files=files,
        names=names,
        mishaps=MISHAPS[chosen],
        seed=seed,
        pace_ms=pace_ms,
        workers=workers,
    )
    with Display(quiet=json) as display:
        rehearsal = Rehearsal(options, display.phase, display.progress, display.trouble)
        outcome = run_until_told(rehearsal.run)
    if json:
        print(json_module.dumps(outcome.as_json()))
    else:
        print("\n".join(in_words(outcome, options.out)))
    if not outcome.is_good:
        raise typer.Exit(1)


def in_words(outcome: Outcome, out: Path) -> list[str]:
    """What happened, in words and numbers."""
    lines = [
        f"pupils          {outcome.pupils:>8}",
        f"sessions        {outcome.sessions:>8}   codes that opened; {outcome.concurrent} live at the same moment, "
        f"{outcome.second_devices} went on at a second device",
        f"answers sent    {outcome.answers_sent:>8}",
        f"acknowledged    {outcome.acknowledged:>8}   each on disk before its client was told"
        + (f"; {outcome.rejected} rejected" if outcome.rejected else ""),
        f"in the vault    {outcome.in_vault:>8}   distinct records, read from the settled scripts",
        f"lost            {outcome.lost:>8}",
        f"duplicated      {outcome.duplicated:>8}",
        f"unexpected      {outcome.unexpected:>8}",
        f"quarantined     {outcome.quarantined:>8}",
        f"left in spool   {outcome.spool_left:>8}   blocks",
        f"digests         {outcome.digests_agree:>8}   sessions whose own digest agrees with the vault; "
        f"{outcome.digests_differ} differ",
        "",
        f"state {outcome.state} after {outcome.seconds:.1f} s: "
        + ", ".join(f"{name} {seconds:.1f}" for name, seconds in outcome.phases.items()),
    ]
    lines += [f"missing: {why}" for why in outcome.waiting_for]
    lines += [f"session failed: {why}" for why in outcome.failures]
    if outcome.results:
        lines.append(f"results  {outcome.results}")
    lines += [
        f"ledger   {out / 'ledger.txt'}   what every client was told, as digests",
        f"state    {out}   spool, vault, certificates, configuration and logs of the run; remove it as you like",
        "",
        "The vault unlocked itself with key files in that directory: a rehearsal, never with data of real pupils.",
        "nothing was lost, duplicated or unexpected" if outcome.is_good else "THE RUN IS NOT GOOD: see above",
    ]
    return lines


def _files(
    roster: Path | None, instrument: Path | None, responses: Path | None, pupils: int, seed: int
) -> tuple[CampaignFiles, dict[str, str]]:
    given = [path for path in (roster, instrument, responses) if path is not None]
    if not given:
        names = {"roster": "simulated roster", "instrument": "simulated instrument", "responses": "simulated responses"}
        return simulate(pupils, Random(seed)), names  # simulated pupils are no secret
    if roster is None or instrument is None or responses is None:
        raise InputError("give all three of --roster, --instrument and --responses, or none")
    contents = [_read(path) for path in (roster, instrument, responses)]
    return CampaignFiles(*contents), {"roster": roster.name, "instrument": instrument.name, "responses": responses.name}


def _read(path: Path) -> bytes:
    try:
        if not path.is_file() and path.exists():
            raise ConfigError(f"{path} is not a file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} has more than {MAX_FILE_BYTES} bytes; split the campaign")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _new_directory() -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("pli-demo") / f"{stamp}-{os.getpid()}"

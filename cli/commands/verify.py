"""`pli verify`: what clients were told, against what the vault holds."""

from __future__ import annotations

import asyncio
import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from cli.office import Office
from pli.config import read_secret_file
from pli.secret import Secret
from pli.vault.v1.rehearsal_pb2 import LedgerVerdict, VerifyLedgerResponse

COUNTS = (
    "sessions", "sent", "acknowledged", "rejected", "in_vault", "lost", "duplicated", "unexpected", "recovered",
)  # fmt: skip


def verify(
    ledger: Annotated[Path, typer.Argument(help="The ledger that the clients wrote.")],
    profile: Annotated[Path, typer.Option(help="Profile of a campaign-admin, as `pli up` writes one.")],
    key: Annotated[
        Path | None, typer.Option(help="The ledger's key file; default: beside the ledger, with suffix .key.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare a ledger with the vault: only verdicts come back, and only for rehearsal campaigns.

    Exit 1 when an acknowledged answer is lost, or one is duplicated or unexpected.
    """
    secret = read_secret_file(key or ledger.with_suffix(".key"))
    verdict = asyncio.run(_ask(ledger, secret, profile))
    facts: dict[str, object] = {name: getattr(verdict, name) for name in COUNTS}
    lines = [
        {"writer": line.writer.hex(), "seq": line.seq, "verdict": verdict_word(line.verdict)} for line in verdict.lines
    ]
    if json:
        print(json_module.dumps({**facts, "codes_compared": verdict.codes_compared, "lines": lines}))
    else:
        for name, count in facts.items():
            print(f"{name.replace('_', ' '):14} {count:>10}")
        for line in lines:
            print(f"writer {line['writer']} seq {line['seq']}: {line['verdict']}")
        if not verdict.codes_compared:
            print("codes were not compared: the identities are locked")
    if verdict.lost or verdict.duplicated or verdict.unexpected:
        raise typer.Exit(1)


def verdict_word(verdict: LedgerVerdict.ValueType) -> str:
    """`lost`, `altered` …"""
    return LedgerVerdict.Name(verdict).removeprefix("LEDGER_VERDICT_").lower().replace("_", " ")


async def _ask(ledger: Path, key: Secret, profile: Path) -> VerifyLedgerResponse:
    async with Office(profile) as office:
        return await office.verify(ledger, key)

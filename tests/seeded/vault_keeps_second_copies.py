"""Fault: settlement puts a record into its script twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import typer

import vault.main.vault
import vault.settlement
from vault.scripts import Script, merge


def _keeping(old: Script, new: Sequence[bytes]) -> Script:
    script = merge(old, new)
    return replace(script, kept=[*script.kept[:1], *script.kept])


vault.settlement.merge = _keeping  # type: ignore[attr-defined]  # the fault

if __name__ == "__main__":
    typer.run(vault.main.vault.main)

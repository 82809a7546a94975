"""Fault: settlement writes a record into its script twice."""

from __future__ import annotations

from collections.abc import Sequence

import typer

import vault.main.vault
import vault.partition
from vault.scripts import join


def _twice(entries: Sequence[bytes]) -> bytes:
    return join([*entries[:1], *entries])


vault.partition.join = _twice  # type: ignore[attr-defined]  # the fault

if __name__ == "__main__":
    typer.run(vault.main.vault.main)

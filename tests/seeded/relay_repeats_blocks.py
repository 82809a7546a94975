"""Fault: every block is deposited twice. The vault must count each of its records once."""

from __future__ import annotations

import typer

import server.main.relay
from server.carrying import Carrier
from server.store.relay_spool import Entry

_deposit = Carrier._deposit_portion


async def _repeating(self: Carrier, entries: list[Entry]) -> int:
    return await _deposit(self, [*entries, *(entry for entry in entries if entry.block)])


Carrier._deposit_portion = _repeating  # type: ignore[method-assign]  # the fault

if __name__ == "__main__":
    typer.run(server.main.relay.main)

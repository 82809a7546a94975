"""Fault: every block is deposited twice. The vault must count each of its records once."""

from __future__ import annotations

import typer

import server.main.relay
from server.relay import Relay
from server.store.relay_spool import Entry

_deposit = Relay._deposit_portion


async def _repeating(self: Relay, shard: int, entries: list[Entry]) -> int:
    return await _deposit(self, shard, [*entries, *(entry for entry in entries if entry.block)])


Relay._deposit_portion = _repeating  # type: ignore[method-assign]  # the fault

if __name__ == "__main__":
    typer.run(server.main.relay.main)

"""Fault: a block is removed from the spool before any receipt named it."""

from __future__ import annotations

import typer

import server.main.relay
from server.carrying import Carrier
from server.store.relay_spool import Entry

_deposit = Carrier._deposit_portion
_dropped: list[Entry] = []


async def _dropping(self: Carrier, entries: list[Entry]) -> int:
    blocks = [entry for entry in entries if entry.block]
    if blocks and not _dropped:
        _dropped.append(blocks[0])
        await self._spool.remove(blocks[:1])
        entries = [entry for entry in entries if entry is not blocks[0]]
        if not entries:
            return 0
    return await _deposit(self, entries)


Carrier._deposit_portion = _dropping  # type: ignore[method-assign]  # the fault

if __name__ == "__main__":
    typer.run(server.main.relay.main)

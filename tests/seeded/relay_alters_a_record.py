"""Fault: one bit of one block changes on the way to the vault."""

from __future__ import annotations

from dataclasses import replace

import typer

import server.main.relay
from server.carrying import Carrier
from server.store.relay_spool import Entry

_deposit = Carrier._deposit_portion
_altered: list[Entry] = []


async def _altering(self: Carrier, entries: list[Entry]) -> int:
    for index, entry in enumerate(entries):
        if entry.block and not _altered:
            _altered.append(entry)
            middle = len(entry.block) // 2
            flipped = entry.block[:middle] + bytes((entry.block[middle] ^ 1,)) + entry.block[middle + 1 :]
            entries[index] = replace(entry, block=flipped)
    return await _deposit(self, entries)


Carrier._deposit_portion = _altering  # type: ignore[method-assign]  # the fault

if __name__ == "__main__":
    typer.run(server.main.relay.main)

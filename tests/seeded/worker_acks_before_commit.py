"""Fault: the first commits are acknowledged and never reach the store."""

from __future__ import annotations

import typer

import server.main.worker
from server.store.spool import Commit, Committed, IngestSpool

_commit = IngestSpool.commit
_skipped: list[int] = []


async def _acking(self: IngestSpool, block: Commit) -> Committed:
    if len(_skipped) < 2 and block.number == 1 + len(_skipped):
        _skipped.append(block.number)
        return Committed(closed=False, superseded={})
    return await _commit(self, block)


IngestSpool.commit = _acking  # type: ignore[method-assign]  # the fault

if __name__ == "__main__":
    typer.run(server.main.worker.main)

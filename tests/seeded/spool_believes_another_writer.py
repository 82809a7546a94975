"""Fault: an opening answers with the durable seq of whoever used the code before."""

from __future__ import annotations

import typer

import server.main.relay
import server.store.relay_spool
from server.store.spool import library_source

_RIGHT = "local head, cursor = found[1], found[2]\n"
_WRONG = (
    _RIGHT
    + "  if head and not cursor then\n"
    + "    cursor = redis.call('HGET', names.cursors, pseudonym .. string.sub(head, 5, 20))\n"
    + "  end\n"
)


def _faulty_source() -> str:
    source = library_source()
    if source.count(_RIGHT) != 1:
        raise AssertionError("the Function reads otherwise now; seed the fault anew")
    return source.replace(_RIGHT, _WRONG)


server.store.relay_spool.library_source = _faulty_source  # type: ignore[attr-defined]  # the fault

if __name__ == "__main__":
    typer.run(server.main.relay.main)

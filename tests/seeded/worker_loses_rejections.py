"""Fault: a rejection is settled and the client is not told."""

from __future__ import annotations

import typer

import server.main.worker
from pli.ingest.v1.ingest_pb2 import RejectReason
from server.session import Session

_settled = Session.settled


def _silent(self: Session, last_seq: int, rejections: list[tuple[int, int]]) -> None:
    told = [(seq, reason) for seq, reason in rejections if reason == RejectReason.REJECT_REASON_BAD_FINISH]
    _settled(self, last_seq, told)


Session.settled = _silent  # type: ignore[method-assign]  # the fault

if __name__ == "__main__":
    typer.run(server.main.worker.main)

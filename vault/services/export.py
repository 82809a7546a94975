"""ExportService: how named data leaves the vault, to reporters alone."""

from __future__ import annotations

from contextlib import aclosing

from pli.errors import InputError
from pli.rpc.peer import peer_of
from pli.rpc.server import Context
from pli.vault.v1.export_pb2 import ExportKind, ExportRequest, ExportResponse
from pli.vault.v1.export_pb2_grpc import ExportServiceServicer
from vault.audit import Audit
from vault.exports import ExportFile, Exports
from vault.keyring import KeyRing
from vault.store.database import Database

_FILES = {ExportKind.EXPORT_KIND_RESULTS: ExportFile.RESULTS, ExportKind.EXPORT_KIND_CODES: ExportFile.CODES}


class ExportService(ExportServiceServicer):
    """Streams files; the audit entry of each is on disk before its first byte."""

    def __init__(self, database: Database, keyring: KeyRing, audit: Audit) -> None:
        self._exports = Exports(database, keyring, audit)

    async def Export(self, request: ExportRequest, context: Context) -> None:  # type: ignore[override]  # coroutine style: the stream ends with the call, also when the reader goes away
        """Streams one file."""
        file = _FILES.get(request.kind)
        if file is None:
            raise InputError("name the file to export: EXPORT_KIND_RESULTS or EXPORT_KIND_CODES")
        pieces = self._exports.stream(peer_of(context), request.campaign_id, file, request.purpose)
        async with aclosing(pieces):
            async for piece in pieces:
                await context.write(ExportResponse(chunk=piece))

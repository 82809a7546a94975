"""RehearsalService: the comparison of what clients were told with what the vault holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pli.errors import StreamViolation
from pli.ledger import LEDGER_KEY_BYTES, LedgerReader
from pli.rpc.server import Context
from pli.secret import Secret
from pli.vault.v1.rehearsal_pb2 import VerifyLedgerRequest, VerifyLedgerResponse
from pli.vault.v1.rehearsal_pb2_grpc import RehearsalServiceServicer
from vault.keyring import KeyRing
from vault.services.uploads import MAX_CHUNK_BYTES, confirm_whole
from vault.store.database import Database
from vault.verification import check_rehearsal, verify_ledger


class RehearsalService(RehearsalServiceServicer):
    """No content leaves by it, and of a campaign of real pupils not even a verdict."""

    def __init__(self, database: Database, keyring: KeyRing) -> None:
        self._database = database
        self._keyring = keyring

    async def VerifyLedger(
        self, request_iterator: AsyncIterator[VerifyLedgerRequest], context: Context
    ) -> VerifyLedgerResponse:
        """Reads the ledger as it comes, then compares it."""
        first = await anext(request_iterator, None)
        if first is None or not first.campaign_id or len(first.ledger_key) != LEDGER_KEY_BYTES:
            raise StreamViolation(
                f"the first message of a comparison names the campaign and gives a key of {LEDGER_KEY_BYTES} bytes"
            )
        campaign_id, ledger_key = first.campaign_id, Secret(first.ledger_key)
        # Before the ledger is read: a campaign of real pupils takes nothing of it.
        await self._database.read(lambda connection: check_rehearsal(connection, campaign_id))
        self._keyring.answers(campaign_id)
        reader = LedgerReader("ledger")
        await _feed(reader, first.chunk)
        async for request in request_iterator:
            if request.campaign_id or request.ledger_key:
                raise StreamViolation("only the first message of a comparison names campaign and key")
            await _feed(reader, request.chunk)
        await confirm_whole(context)
        return await verify_ledger(self._database, self._keyring, campaign_id, reader.end(), ledger_key)


async def _feed(reader: LedgerReader, chunk: bytes) -> None:
    if len(chunk) > MAX_CHUNK_BYTES:
        raise StreamViolation(f"a chunk has at most {MAX_CHUNK_BYTES} bytes; send the ledger in smaller ones")
    await asyncio.to_thread(reader.feed, chunk)

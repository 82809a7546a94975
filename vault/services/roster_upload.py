"""The request stream of ImportRoster: the first message names campaign and file, the others carry bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pli.errors import StreamViolation, Unavailable
from pli.vault.v1.campaign_pb2 import ImportRosterRequest
from vault.services.uploads import MAX_CHUNK_BYTES, checked_file_name

STALLED_SECONDS = 60.0
"""An upload that brings nothing for so long is given up; it would hold one of few places."""


class RosterUpload:
    """Reads the requests of one import. All of it is awaited on one loop, one request at a time."""

    def __init__(self, requests: AsyncIterator[ImportRosterRequest], stalled_seconds: float) -> None:
        self._requests = requests
        self._stalled_seconds = stalled_seconds
        self._first = b""

    async def begin(self) -> tuple[str, str]:
        """Campaign and file name.

        Raises:
            StreamViolation: the stream is empty, or its first message names no campaign.
            InputError: the file name cannot stand in one line.
        """
        request = await self._receive()
        if request is None or not request.campaign_id:
            raise StreamViolation("the first message of an import names the campaign")
        self._first = request.chunk
        return request.campaign_id, checked_file_name(request.file_name, "roster.csv")

    async def next_chunk(self) -> bytes | None:
        """The next bytes of the file; None at its end.

        Raises:
            StreamViolation: a chunk is too large, or a campaign is named again.
            Unavailable: nothing came for too long.
        """
        if self._first:
            chunk, self._first = self._first, b""
            return chunk
        request = await self._receive()
        if request is None:
            return None
        if request.campaign_id or request.file_name:
            raise StreamViolation("only the first message of an import names campaign and file")
        return request.chunk

    async def _receive(self) -> ImportRosterRequest | None:
        try:
            async with asyncio.timeout(self._stalled_seconds):
                request = await anext(self._requests, None)
        except TimeoutError as error:
            raise Unavailable(f"nothing of the file came for {self._stalled_seconds:g} s; import it again") from error
        if request is not None and len(request.chunk) > MAX_CHUNK_BYTES:
            raise StreamViolation(f"a chunk has at most {MAX_CHUNK_BYTES} bytes; send the file in smaller ones")
        return request

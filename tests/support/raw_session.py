"""A raw client of `Submit`: one stream, every message by hand, nothing resumed or corrected."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from pli.canonical import FinishDigest, canonical
from pli.codes import Code
from pli.errors import PliError, Unavailable
from pli.ingest.v1.ingest_pb2 import (
    Answer,
    Answers,
    Choices,
    Finish,
    Mark,
    Open,
    Opened,
    Receipt,
    Rejected,
    SubmitRequest,
    SubmitResponse,
)
from pli.ingest.v1.ingest_pb2_grpc import IngestServiceStub
from pli.rpc.client import typed

OWN_CONNECTION: list[tuple[str, int]] = [("grpc.use_local_subchannel_pool", 1)]
"""Channels of one process share connections otherwise, and would all meet the same worker."""

STREAM_SECONDS = 60.0


class RawSession:
    """One stream. It counts and digests what it sends; `seq` is the last number used."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        campaign_id: str,
        code: Code | str,
        writer: bytes | None = None,
        seconds: float = STREAM_SECONDS,
    ) -> None:
        self.writer = os.urandom(16) if writer is None else writer
        self.code = code.printed() if isinstance(code, Code) else code
        self.campaign_id = campaign_id
        self.opened = Opened()
        self.seq = 0
        self.durable_seq = 0
        self.rejected: dict[int, int] = {}
        self.receipt: Receipt | None = None
        self.seen: list[SubmitResponse] = []
        self.given: dict[int, bytes] = {}
        """Canonical bytes of what was sent, by seq: what `finish` counts and digests."""
        stub: Any = IngestServiceStub(channel)
        self.call: Any = stub.Submit(timeout=seconds)

    async def send(self, request: SubmitRequest) -> None:
        """Writes one message as it is.

        Raises:
            PliError: the status that the stream has ended with.
        """
        try:
            await self.call.write(request)
        except grpc.aio.AioRpcError as error:
            # A write that meets the end of a stream is INTERNAL to gRPC's client, before it reads the status.
            raise Unavailable("the stream broke in a write") if _is_local(error) else typed(error) from error

    async def open(self, *, acked_seq: int = 0, token: bytes | None = None, protocol_version: int = 1) -> Opened:
        """Sends Open and waits for Opened.

        Raises:
            PliError: the status that came instead.
        """
        await self.send(
            SubmitRequest(
                open=Open(
                    protocol_version=protocol_version,
                    campaign_id=self.campaign_id,
                    code=self.code,
                    writer=self.writer,
                    acked_seq=acked_seq,
                    token=os.urandom(16) if token is None else token,
                )
            )
        )
        response = await self.read()
        assert response is not None, "the stream ended before Opened"
        assert response.HasField("opened"), f"not Opened but {response.WhichOneof('message')}"
        self.opened = response.opened
        self.seq = self.durable_seq = response.opened.durable_seq
        self.rejected = {each.seq: each.reason for each in response.opened.rejected}
        if response.opened.HasField("receipt"):
            self.receipt = response.opened.receipt
        return response.opened

    async def answers(self, *answers: Answer, first_seq: int | None = None) -> None:
        """Sends answers under the next numbers, or from `first_seq` on; fills in `opening` where it is 0."""
        first = self.seq + 1 if first_seq is None else first_seq
        for answer in answers:
            answer.opening = answer.opening or self.opened.opening
        for offset, answer in enumerate(answers):
            self.given[first + offset] = canonical(answer)
        self.seq = max(self.seq, first + len(answers) - 1)
        await self.send(SubmitRequest(answers=Answers(first_seq=first, answers=answers)))

    async def choose(self, option: str, item_id: str = "one", **fields: Any) -> None:
        """Sends one answer to a choice."""
        await self.answers(Answer(item_id=item_id, choices=Choices(options=[option]), **fields))

    async def mark(self, seat: int, presence: int) -> None:
        """Sends a mark under the next number."""
        self.seq += 1
        mark = Mark(seq=self.seq, seat=seat, presence=presence, opening=self.opened.opening)  # type: ignore[arg-type]  # also numbers out of range
        self.given[self.seq] = canonical(mark)
        await self.send(SubmitRequest(mark=mark))

    def finishing(self) -> Finish:
        """The Finish that is due next, right in count and digest for what was not rejected."""
        digest = FinishDigest()
        for seq in sorted(self.given.keys() - self.rejected.keys()):
            digest.add(seq, self.given[seq])
        return Finish(seq=self.seq + 1, count=digest.count, digest=digest.digest(), opening=self.opened.opening)

    async def finish(self, finish: Finish | None = None) -> None:
        """Sends Finish under the next number."""
        message = finish or self.finishing()
        self.seq = max(self.seq, message.seq)
        await self.send(SubmitRequest(finish=message))

    async def read(self) -> SubmitResponse | None:
        """The next message; None at an end with OK.

        Raises:
            PliError: the stream ended with another status.
        """
        try:
            response = await self.call.read()
        except grpc.aio.AioRpcError as error:
            raise typed(error) from error
        if not isinstance(response, SubmitResponse):
            try:
                code = await self.call.code()
            except grpc.aio.AioRpcError as error:
                raise typed(error) from error
            if code is not grpc.StatusCode.OK:
                raise await self._status(code)
            return None
        self.seen.append(response)
        match response.WhichOneof("message"):
            case "ack":
                self.durable_seq = response.ack.durable_seq
            case "rejected":
                self.rejected[response.rejected.seq] = response.rejected.reason
            case "finished":
                self.receipt = response.finished.receipt
        return response

    async def next(self, kind: str) -> SubmitResponse:
        """Reads until a message of this kind (a member of `SubmitResponse`)."""
        while True:
            response = await self.read()
            assert response is not None, f"the stream ended before {kind}"
            if response.WhichOneof("message") == kind:
                return response

    async def acked(self, seq: int | None = None) -> None:
        """Reads until everything up to `seq` (all that was sent) is acknowledged."""
        wanted = self.seq if seq is None else seq
        while self.durable_seq < wanted:
            await self.next("ack")

    async def finished(self) -> Receipt:
        """Reads until Finished."""
        return (await self.next("finished")).finished.receipt

    async def end(self) -> PliError | None:
        """Reads to the end; the status as an error, None for OK."""
        try:
            while await self.read() is not None:
                pass
        except PliError as error:
            return error
        return None

    async def half_close(self) -> None:
        """Says that nothing more will be sent."""
        await self.call.done_writing()

    async def _status(self, code: grpc.StatusCode) -> PliError:
        return typed(
            grpc.aio.AioRpcError(
                code,
                initial_metadata=await self.call.initial_metadata(),
                trailing_metadata=await self.call.trailing_metadata(),
                details=await self.call.details(),
            )
        )

    def cancel(self) -> None:
        """Breaks the stream off."""
        self.call.cancel()

    async def broken_off(self) -> None:
        """Breaks the stream off and waits until gRPC has let go of it: its events would outlive the test's loop."""
        self.call.cancel()
        await asyncio.gather(self.call.code(), return_exceptions=True)

    def rejections(self) -> list[Rejected]:
        """The rejections read, in order."""
        return [response.rejected for response in self.seen if response.HasField("rejected")]


def _is_local(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"


@asynccontextmanager
async def tls_channel(address: str, authority: bytes) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own, as one device has."""
    credentials = grpc.ssl_channel_credentials(root_certificates=authority)
    async with grpc.aio.secure_channel(address, credentials, OWN_CONNECTION) as channel:
        yield channel

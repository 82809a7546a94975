"""What one writes first: `python -m bench.naive_server --url URL --user USER --password-file FILE`.

`async for` over the stream, one awaited HSET per answer, then its ack. Nothing is checked or sealed, and
no cursor is kept. Its store is the one that the ingest node uses, with `appendfsync always`.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import uvloop
from redis.asyncio import Redis

from bench.echo_server import OPENED, serve
from pli.config import read_secret_file
from pli.ingest.v1.ingest_pb2 import Ack, SubmitRequest, SubmitResponse
from pli.ingest.v1.ingest_pb2_grpc import IngestServiceServicer
from pli.process import die_with_parent

MAX_CONNECTIONS = 4_096
"""Every stream waits on a connection of its own; redis-py's usual pool fails at 200 streams."""


class NaiveService(IngestServiceServicer):
    """Writes each answer by itself."""

    def __init__(self, redis: Redis) -> None:
        self._hset = cast(Callable[..., Awaitable[int]], redis.hset)

    async def Submit(  # noqa: N802  # an async generator, which the stubs do not model
        self,
        request_iterator: AsyncIterator[SubmitRequest],
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[SubmitResponse]:
        """Serves one stream."""
        first = await anext(request_iterator)
        # The shape of name that the store's rights leave to an ingest process.
        key = f"{{naive.{first.open.writer.hex()}}}:cursors"
        yield OPENED
        async for request in request_iterator:
            answers = request.answers
            for offset, answer in enumerate(answers.answers):
                await self._hset(key, answer.item_id, answer.SerializeToString())
                yield SubmitResponse(ack=Ack(durable_seq=answers.first_seq + offset))


async def _serve(arguments: argparse.Namespace) -> None:
    redis = Redis.from_url(
        arguments.url,
        username=arguments.user,
        password=read_secret_file(arguments.password_file).reveal().decode().strip(),
        max_connections=MAX_CONNECTIONS,
    )
    try:
        await serve(NaiveService(redis), "naive")
    finally:
        await redis.aclose()


if __name__ == "__main__":
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--password-file", type=Path, required=True)
    uvloop.run(_serve(parser.parse_args()))

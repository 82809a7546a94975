"""The floor of this transport: `python -m bench.echo_server`.

A bare grpc.aio server on the generated code of `IngestService`: it parses every message and answers
every message with an `Ack`, and does nothing else. No check, no seal, no store, no interceptor.
"""

from __future__ import annotations

from typing import Any

import grpc
import uvloop

from pli.ingest.v1.ingest_pb2 import Ack, Opened, SubmitRequest, SubmitResponse
from pli.ingest.v1.ingest_pb2_grpc import IngestServiceServicer, add_IngestServiceServicer_to_server
from pli.process import die_with_parent, say_ready, stop_event

OPENED = SubmitResponse(opened=Opened(opening=1, max_in_flight=256))


class EchoService(IngestServiceServicer):
    """Acknowledges what it has parsed."""

    async def Submit(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802, ARG002  # coroutine style: context.read and context.write, which the stubs do not model
        """Serves one stream."""
        read, write = context.read, context.write
        await read()
        await write(OPENED)
        while isinstance(request := await read(), SubmitRequest):
            answers = request.answers
            await write(SubmitResponse(ack=Ack(durable_seq=answers.first_seq + len(answers.answers) - 1)))


async def serve(service: IngestServiceServicer, name: str) -> None:
    """Serves on a free loopback port, without TLS, until SIGTERM."""
    stop = stop_event()
    server = grpc.aio.server()
    add_IngestServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say_ready(name, listen=f"127.0.0.1:{port}")
    await stop.wait()
    await server.stop(grace=0)


if __name__ == "__main__":
    die_with_parent()
    uvloop.run(serve(EchoService(), "echo"))

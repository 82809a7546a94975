"""A process with a guarded gRPC server that reads every request of every session, in plaintext on loopback."""

from __future__ import annotations

import asyncio

import grpc

from pli.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from pli.ingest.v1.ingest_pb2 import Ack, SubmitResponse
from pli.process import die_with_parent, say_ready, stop_event
from pli.rpc.server import Context, Health, Limits, make_server


class Reading(ingest_pb2_grpc.IngestServiceServicer):
    """Answers each request with an Ack of its size."""

    # Coroutine style: it reads and writes by itself, where the stubs expect an iterator.
    async def Submit(self, _requests: object, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(SubmitResponse(ack=Ack(durable_seq=request.ByteSize())))


async def serve() -> None:
    stop = stop_event()
    health = Health()
    await health.start()
    server = make_server(Limits(), [ingest_pb2.DESCRIPTOR.services_by_name["IngestService"]], health)
    ingest_pb2_grpc.add_IngestServiceServicer_to_server(Reading(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say_ready("guarded", port=port)
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(serve())

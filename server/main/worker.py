"""One ingest worker process. Started by server.main.node, which hands it its key and ports on stdin."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import structlog
import typer
import uvloop
from google.protobuf.internal import api_implementation

from pli.config import load
from pli.errors import ConfigError
from pli.hpke import PrivateKey
from pli.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from pli.ops.v1 import ops_pb2, ops_pb2_grpc
from pli.process import configure_logging, die_with_parent, say_ready, split_address, stop_event
from pli.rpc.server import Health, make_server
from pli.secret import Secret
from pli.tls import server_credentials
from server.config import ServerSettings
from server.identity import NodeIdentity
from server.main.common import clock_ms, exit_with_reason, pinned_vault_key
from server.node import Node, Ports
from server.services.ingest import IngestService
from server.services.operations import OperationsService
from server.store.spool import connect

log = structlog.get_logger()
LOOPBACK = ("127.", "localhost", "::1")


@dataclass(frozen=True, slots=True, repr=False)
class Handover:
    """What the supervisor gives a worker over the pipe: never a file, never an argument."""

    receiving_key: PrivateKey
    listen: str
    listen_operations: str

    @classmethod
    def read(cls, line: str) -> Handover:
        """Takes the one JSON line apart."""
        given = json.loads(line)
        key = PrivateKey(Secret(bytes.fromhex(given["receiving_key"])))
        return cls(key, given["listen"], given["listen_operations"])


async def serve(settings: ServerSettings, handover: Handover) -> None:
    """Runs until SIGTERM."""
    stop = stop_event()
    identity = NodeIdentity.load(settings.tls, handover.receiving_key)
    vault_key = pinned_vault_key(settings.vault_signing_key_file)
    health = Health()
    await health.start()
    redis = connect(settings.spool)
    # A subscription waits for hours: its socket must not time out.
    subscriber = connect(settings.spool, timeout_ms=0)
    ports = Ports(redis, subscriber, clock_ms, time.monotonic, os.urandom)
    node = Node(settings, identity, vault_key, ports, health)
    ingest = IngestService(lambda: node.intake, identity, settings.sessions, clock_ms, os.urandom)
    operations = OperationsService(
        redis, settings.campaign_id, lambda: len(node.intake.committers) if node.intake else 1
    )
    services = [
        ingest_pb2.DESCRIPTOR.services_by_name["IngestService"],
        ops_pb2.DESCRIPTOR.services_by_name["OperationsService"],
    ]
    server = make_server(settings.limits, services, health, reuse_port=True)
    ingest_pb2_grpc.add_IngestServiceServicer_to_server(ingest, server)
    ops_pb2_grpc.add_OperationsServiceServicer_to_server(operations, server)
    if settings.plaintext_for_bench:
        _refuse_plaintext_beyond_loopback(handover.listen)
        server.add_insecure_port(handover.listen)
    else:
        server.add_secure_port(handover.listen, server_credentials(settings.tls, ask_for_certificate=False))
    server.add_secure_port(handover.listen_operations, server_credentials(settings.tls, ask_for_certificate=True))
    await server.start()
    say_ready("worker", listen=handover.listen, listen_operations=handover.listen_operations)
    watching = asyncio.create_task(node.run())
    try:
        await stop.wait()
        log.info("draining", node=node.node_id.hex()[:8])
        ingest.draining = True
        await node.drain(settings.drain_seconds / 2)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await server.stop(settings.drain_seconds / 4)
        await node.stop()
        await redis.aclose()
        await subscriber.aclose()


def _refuse_plaintext_beyond_loopback(address: str) -> None:
    if not split_address(address)[0].startswith(LOOPBACK):
        raise ConfigError("plaintext_for_bench is for loopback alone; remove it, or listen on 127.0.0.1")


def main(config: Path) -> None:
    """Entry point."""

    def run() -> None:
        configure_logging("worker")
        die_with_parent()
        if api_implementation.Type() != "upb":
            raise ConfigError("protobuf runs without its C implementation (upb); reinstall protobuf")
        settings = load(ServerSettings, config)
        uvloop.run(serve(settings, Handover.read(sys.stdin.readline())))

    exit_with_reason(run)


if __name__ == "__main__":
    typer.run(main)

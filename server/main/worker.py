"""One ingest worker process. Started by server.main.node, which hands it its key and ports on stdin."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass

import grpc
import structlog
import uvloop
from google.protobuf.internal import api_implementation

from pli.config import load
from pli.errors import ConfigError
from pli.hpke import PrivateKey
from pli.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from pli.ops.v1 import ops_pb2, ops_pb2_grpc
from pli.process import (
    cancelled,
    clock_ms,
    configure_logging,
    die_with_parent,
    exit_with_reason,
    say_ready,
    stop_event,
)
from pli.rpc.server import Health, make_server
from pli.secret import Secret
from pli.tls import server_credentials
from server.config import MAX_SHARDS, ServerSettings
from server.identity import NodeIdentity
from server.main.common import ConfigFile, pinned_vault_key, place_of, run_command
from server.main.tuning import calm_garbage_collection, run_hand_overs_in_turn
from server.node import Node, Ports
from server.services.ingest import IngestService
from server.services.operations import OperationsService
from server.store.spool import connect

log = structlog.get_logger()

CONNECTIONS = 2 * MAX_SHARDS + 4
"""A commit and an opening at a time per shard, and the worker's own look."""

WATCH_CONNECTIONS = 8


@dataclass(frozen=True, slots=True, repr=False)
class Handover:
    """What the supervisor gives a worker over the pipe: never a file, never an argument."""

    supervisor: int
    receiving_key: PrivateKey
    listen: str
    listen_operations: str

    @classmethod
    def read(cls, line: str) -> Handover:
        """Takes the one JSON line apart.

        Raises:
            ConfigError: nothing was handed over, or by a supervisor that is gone.
        """
        if not line:
            raise ConfigError("a worker is started by `pli server`, which hands it its key; start that")
        given = json.loads(line)
        # It may have died before this process was bound to it.
        if os.getppid() != given["supervisor"]:
            raise ConfigError("the supervisor of this worker is gone")
        key = PrivateKey(Secret(bytes.fromhex(given["receiving_key"])))
        return cls(given["supervisor"], key, given["listen"], given["listen_operations"])


async def serve(settings: ServerSettings, handover: Handover) -> None:
    """Runs until SIGTERM, or until something failed that only a new process can mend."""
    stop = stop_event()
    identity = NodeIdentity.load(settings.tls, handover.receiving_key)
    vault_key = pinned_vault_key(settings.vault_signing_key_file)
    health = Health()
    await health.start()
    redis = connect(settings.spool, connections=CONNECTIONS)
    subscriber = connect(settings.spool, connections=1, waits=True)
    # People who watch have connections of their own: however many ask, commits are not held up.
    watched = connect(settings.spool, connections=WATCH_CONNECTIONS)
    ports = Ports(redis, subscriber, clock_ms, time.monotonic, os.urandom)
    node = Node(settings, identity, vault_key, ports, health)
    ingest = IngestService(node.taking, identity, settings.sessions, clock_ms, os.urandom)
    operations = OperationsService(
        watched, settings.campaign_id, lambda: len(node.intake.committers) if node.intake else 1
    )
    server = _listening(settings, handover, health)
    ingest_pb2_grpc.add_IngestServiceServicer_to_server(ingest, server)
    ops_pb2_grpc.add_OperationsServiceServicer_to_server(operations, server)
    await server.start()
    calm_garbage_collection()
    say_ready("worker", listen=handover.listen, listen_operations=handover.listen_operations)
    watching = asyncio.create_task(node.run())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        log.info("draining", node=node.node_id.hex()[:8])
        ingest.draining = True
        await node.drain(settings.drain_seconds / 2)
    finally:
        (outcome, _) = await cancelled(watching, stopping)
        await server.stop(settings.drain_seconds / 4)
        await node.stop()
        for client in (redis, subscriber, watched):
            await client.aclose()
    if isinstance(outcome, Exception):
        # Its words may quote content: type and place are enough to find it.
        log.error("worker_failed", error=type(outcome).__name__, place=place_of(outcome))
        raise SystemExit(1)


def _listening(settings: ServerSettings, handover: Handover, health: Health) -> grpc.aio.Server:
    """A server with both listeners, not started yet."""
    services = [
        ingest_pb2.DESCRIPTOR.services_by_name["IngestService"],
        ops_pb2.DESCRIPTOR.services_by_name["OperationsService"],
    ]
    server = make_server(settings.limits, services, health, reuse_port=True)
    if settings.plaintext_for_bench:
        server.add_insecure_port(handover.listen)
    else:
        server.add_secure_port(handover.listen, server_credentials(settings.tls, ask_for_certificate=False))
    server.add_secure_port(handover.listen_operations, server_credentials(settings.tls, ask_for_certificate=True))
    return server


def main(config: ConfigFile) -> None:
    """Entry point."""

    def run() -> None:
        configure_logging("worker")
        die_with_parent()
        run_hand_overs_in_turn()
        if api_implementation.Type() != "upb":
            raise ConfigError("protobuf runs without its C implementation (upb); reinstall protobuf")
        settings = load(ServerSettings, config)
        uvloop.run(serve(settings, Handover.read(sys.stdin.readline())))

    exit_with_reason(run)


if __name__ == "__main__":
    run_command(main)

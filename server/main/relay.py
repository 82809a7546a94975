"""The relay process: `pli relay --config FILE`."""

from __future__ import annotations

import asyncio
import os
import time

import structlog
import uvloop

from pli.config import load
from pli.errors import ConfigError
from pli.process import (
    cancelled,
    configure_logging,
    exclusive,
    exit_with_reason,
    say_ready,
    stop_event,
)
from pli.rpc.client import channel
from pli.rpc.roles import RELAY
from pli.tls import client_credentials, read_file
from pli.vault.v1.deposit_pb2_grpc import DepositServiceStub
from server.config import RelaySettings
from server.identity import certificate_of
from server.main.common import ConfigFile, pinned_vault_key, place_of, run_command
from server.relay import Relay
from server.store.keys import ShardKeys
from server.store.relay_spool import RelaySpool
from server.store.spool import connect
from server.vault_client import VaultClient

log = structlog.get_logger()


async def serve(settings: RelaySettings) -> None:
    """Runs until SIGTERM."""
    stop = stop_event()
    vault_key = pinned_vault_key(settings.vault_signing_key_file)
    _, peer = certificate_of(settings.tls, RELAY)
    if peer.name != settings.name:
        raise ConfigError(f"{settings.tls.certificate_file} is for relay {peer.name}, `name` says {settings.name}")
    credentials = client_credentials(read_file(settings.tls.authority_file), settings.tls)
    # A read that waits for blocks holds its connection: one per shard, and one for the exchange with the vault.
    redis = connect(settings.spool, connections=settings.shards + 2)
    async with channel(settings.vault, credentials) as vault:
        shards = [
            RelaySpool(redis, ShardKeys(settings.campaign_id, shard), settings.name) for shard in range(settings.shards)
        ]
        client = VaultClient(DepositServiceStub(vault), vault_key, settings.call_timeout_ms)
        relay = Relay(settings, shards, client, time.monotonic, os.urandom)
        carrying = asyncio.create_task(relay.run())
        say_ready("relay")
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({carrying, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            (outcome, _) = await cancelled(carrying, stopping)
            await redis.aclose()
    if isinstance(outcome, Exception):
        cause = outcome.exceptions[0] if isinstance(outcome, ExceptionGroup) else outcome
        # Its words may quote content: type and place are enough to find it.
        log.error("relay_failed", error=type(cause).__name__, place=place_of(cause))
        raise SystemExit(1)
    log.info("stopped", relay=settings.name)


def main(config: ConfigFile) -> None:
    """Entry point."""

    def run() -> None:
        configure_logging("relay")
        settings = load(RelaySettings, config)
        with exclusive(settings.state_dir, "a relay"):
            uvloop.run(serve(settings))

    exit_with_reason(run)


if __name__ == "__main__":
    run_command(main)

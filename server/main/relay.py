"""The relay process: `pli relay --config FILE`."""

from __future__ import annotations

import asyncio
import os
import time

import grpc
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
from server.certificates import CertificateWatch, certificate_of
from server.config import RelaySettings
from server.main.common import ConfigFile, pinned_vault_key, place_of, run_command
from server.relay import Relay
from server.store.keys import ShardKeys
from server.store.relay_spool import RelaySpool
from server.store.spool import connect
from server.vault_client import VaultClient

log = structlog.get_logger()

CERTIFICATE_LOOK_SECONDS = 5.0


class VaultLine:
    """The channel to the vault, made anew when the relay's certificate is renewed: gRPC's never look again."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._watch = CertificateWatch(settings.tls)
        self._channel = self._connected()

    def stub(self) -> DepositServiceStub:
        """Calls on the channel of now."""
        return DepositServiceStub(self._channel)

    async def follow_certificate(self, client: VaultClient) -> None:
        """Until cancelled; calls under way end on the old channel."""
        while True:
            await asyncio.sleep(CERTIFICATE_LOOK_SECONDS)
            stamps = self._watch.changed()
            if stamps is None:
                continue
            try:
                old, self._channel = self._channel, self._connected()
            except ConfigError as error:
                log.warning("certificate_not_taken", reason=error.reason, why=error.message)
                continue
            client.use(self.stub())
            self._watch.take(stamps)
            log.info("certificate_renewed", relay=self._settings.name)
            await old.close(self._settings.call_timeout_ms / 1000)

    async def close(self) -> None:
        """Ends the channel."""
        await self._channel.close()

    def _connected(self) -> grpc.aio.Channel:
        settings = self._settings
        _, peer = certificate_of(settings.tls, RELAY)
        if peer.name != settings.name:
            raise ConfigError(f"{settings.tls.certificate_file} is for relay {peer.name}, `name` says {settings.name}")
        return channel(settings.vault, client_credentials(read_file(settings.tls.authority_file), settings.tls))


async def serve(settings: RelaySettings) -> None:
    """Runs until SIGTERM."""
    stop = stop_event()
    vault_key = pinned_vault_key(settings.vault_signing_key_file)
    # A read that waits for blocks holds its connection: one per shard, and one for the exchange with the vault.
    redis = connect(settings.spool, connections=settings.shards + 2)
    shards = [
        RelaySpool(redis, ShardKeys(settings.campaign_id, shard), settings.name) for shard in range(settings.shards)
    ]
    line = VaultLine(settings)
    client = VaultClient(line.stub(), vault_key, settings.call_timeout_ms)
    relay = Relay(settings, shards, client, time.monotonic, os.urandom)
    carrying = asyncio.create_task(relay.run())
    renewing = asyncio.create_task(line.follow_certificate(client))
    stopping = asyncio.create_task(stop.wait())
    say_ready("relay")
    try:
        await asyncio.wait({carrying, renewing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        outcomes = await cancelled(carrying, renewing, stopping)
        await line.close()
        await redis.aclose()
    for outcome in outcomes:
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

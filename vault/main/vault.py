"""The vault process: `pli vault --config FILE`."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grpc
import structlog
import typer
import uvloop
from cryptography import x509
from google.protobuf.internal import api_implementation
from sqlalchemy import Engine

from pli.config import load
from pli.errors import ConfigError, Forbidden
from pli.identity import identity_of
from pli.process import (
    bound_address,
    claim_port,
    clock_ms,
    configure_logging,
    exclusive,
    exit_with_reason,
    say_ready,
    stop_event,
)
from pli.rpc.roles import VAULT
from pli.rpc.server import Health, make_server
from pli.tls import TlsFiles, read_file, server_credentials
from pli.vault.v1 import (
    campaign_pb2,
    campaign_pb2_grpc,
    deposit_pb2,
    deposit_pb2_grpc,
    export_pb2,
    export_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    rehearsal_pb2,
    rehearsal_pb2_grpc,
)
from vault.audit import VAULT_ITSELF, WHOLE_VAULT, Audit
from vault.campaign_secret import SecretCopies
from vault.campaigns import list_campaigns
from vault.config import VaultSettings
from vault.epochs import OpenEpochs
from vault.keyring import KeyRing
from vault.keystore import Keystore, Scope
from vault.landing import Landing
from vault.life_cycle import LifeCycle
from vault.main.health import DatabaseWatch
from vault.main.unlocking import unlock_at_start
from vault.services.campaign import CampaignService
from vault.services.deposit import DepositService
from vault.services.export import ExportService
from vault.services.keys import KeyService
from vault.services.rehearsal import RehearsalService
from vault.settlement import Settlement
from vault.store.database import Database, own_errors, sqlite_engine
from vault.store.migrate import upgrade

CUT_OFF_MS = 1_500
"""On top of `drain_ms`: what a thread still does then is cut off. A transaction that was not committed
leaves nothing behind, and whoever asked for it asks again."""

SERVED = (
    campaign_pb2.DESCRIPTOR.services_by_name["CampaignService"],
    deposit_pb2.DESCRIPTOR.services_by_name["DepositService"],
    export_pb2.DESCRIPTOR.services_by_name["ExportService"],
    keys_pb2.DESCRIPTOR.services_by_name["KeyService"],
    rehearsal_pb2.DESCRIPTOR.services_by_name["RehearsalService"],
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, repr=False)
class Domain:
    """What the services work with."""

    database: Database
    keyring: KeyRing
    keystore: Keystore
    audit: Audit
    epochs: OpenEpochs
    landing: Landing
    settlement: Settlement
    life_cycle: LifeCycle

    @classmethod
    def build(cls, settings: VaultSettings) -> Domain:
        """Brings the database to this version's schema and reads the keystore. Blocks.

        Raises:
            ConfigError: database or keystore are damaged, newer than this version, or not ours to use.
            VaultUnavailable: the database is held by another process, or its disk is full.
        """
        database = Database(_open_database(settings.database_file))
        keyring, epochs = KeyRing(), OpenEpochs()
        key_files = {Scope.ANSWERS: settings.answers_key_file, Scope.IDENTITIES: settings.identities_key_file}
        keystore = Keystore(
            settings.keystore_dir,
            SecretCopies(settings.secret_dirs, os.urandom),
            keyring,
            public_dir=settings.public_dir,
            key_files={scope: path for scope, path in key_files.items() if path is not None},
            argon2=settings.argon2,
            random_bytes=os.urandom,
        )
        _check_same_day(database, keystore)
        audit = Audit(database, keyring, clock_ms)
        return cls(
            database,
            keyring,
            keystore,
            audit,
            epochs,
            Landing(database, keyring, clock_ms, epochs),
            Settlement(database, keyring, epochs),
            LifeCycle(database, keyring, audit, clock_ms, settings.late_grace_ms, settings.tick_ms),
        )

    def close(self) -> None:
        """Ends every thread, after the work it has. Blocks."""
        self.landing.close()
        self.database.close()

    def add_services(self, server: grpc.aio.Server, *, auto_unlock: bool) -> tuple[CampaignService, KeyService]:
        """Adds all five; returns those whose acts outlive their calls."""
        campaigns = CampaignService(
            self.database,
            self.keyring,
            self.keystore,
            self.audit,
            self.life_cycle,
            self.settlement,
            clock_ms=clock_ms,
            random_bits=secrets.randbits,
            auto_unlock=auto_unlock,
        )
        keys = KeyService(self.keystore, self.audit, self.epochs, auto_unlock=auto_unlock)
        deposits = DepositService(self.database, self.keyring, self.landing, clock_ms)
        campaign_pb2_grpc.add_CampaignServiceServicer_to_server(campaigns, server)
        keys_pb2_grpc.add_KeyServiceServicer_to_server(keys, server)
        deposit_pb2_grpc.add_DepositServiceServicer_to_server(deposits, server)
        export_pb2_grpc.add_ExportServiceServicer_to_server(
            ExportService(self.database, self.keyring, self.audit), server
        )
        rehearsal_pb2_grpc.add_RehearsalServiceServicer_to_server(RehearsalService(self.database, self.keyring), server)
        return campaigns, keys


async def serve(settings: VaultSettings) -> None:
    """Runs until SIGTERM."""
    stop = stop_event()
    _check_certificate(settings.tls)
    credentials = server_credentials(settings.tls, ask_for_certificate=True)
    with claim_port(settings.listen) as held:
        domain = await asyncio.to_thread(Domain.build, settings)
        try:
            await _unlock(domain, settings)
            await domain.audit.check()
            await _serve(domain, settings, bound_address(held), credentials, stop)
        finally:
            await asyncio.to_thread(domain.close)
    log.info("stopped", pid=os.getpid())


async def _serve(
    domain: Domain, settings: VaultSettings, address: str, credentials: grpc.ServerCredentials, stop: asyncio.Event
) -> None:
    health = Health()
    await health.start()
    server = make_server(settings.limits, SERVED, health, reuse_port=True)
    campaigns, keys = domain.add_services(server, auto_unlock=settings.auto_unlock)
    server.add_secure_port(address, credentials)
    await server.start()
    watch = DatabaseWatch(domain.database, health, settings.tick_ms)
    await watch.look()
    say_ready("vault", listen=address)
    tasks = [asyncio.create_task(work) for work in (stop.wait(), domain.life_cycle.run(), watch.run())]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            await task
    finally:
        _cut_off_later(settings.drain_ms + CUT_OFF_MS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        log.info("draining", listen=address)
        await health.set(serving=False)
        await server.stop(settings.drain_ms / 1000)
        await campaigns.finish()
        await keys.finish()


async def _unlock(domain: Domain, settings: VaultSettings) -> None:
    if settings.auto_unlock:
        await asyncio.to_thread(unlock_at_start, domain.keystore, settings, os.urandom)
        await domain.audit.note(VAULT_ITSELF, "auto-unlock", WHOLE_VAULT, "configured, for development")


def _open_database(path: Path) -> Engine:
    try:
        # What SQLite puts beside it (-wal, -shm) takes the mode of this file.
        path.touch(mode=0o600)
    except OSError as error:
        raise ConfigError(f"database {path} cannot be used: {error.strerror}") from error
    engine = sqlite_engine(path)
    with own_errors():
        upgrade(engine)
    return engine


def _check_same_day(database: Database, keystore: Keystore) -> None:
    """Keys are written before the row: a row without keys means that one of the two is of another day."""
    known = {campaign.campaign_id for campaign in database.read_now(list_campaigns)}
    if without_keys := sorted(known - keystore.campaigns()):
        raise ConfigError(
            f"the database holds campaign {', '.join(without_keys)}, the keystore has no keys for it; "
            "restore database and keystore of the same day"
        )


def _check_certificate(files: TlsFiles) -> None:
    try:
        role = identity_of(x509.load_pem_x509_certificate(read_file(files.certificate_file))).role
    except (ValueError, Forbidden) as error:
        raise ConfigError(f"{files.certificate_file} is no certificate of role {VAULT}: {error}") from error
    if role != VAULT:
        raise ConfigError(f"{files.certificate_file} has role {role}; the vault needs role {VAULT}")


def _cut_off_later(after_ms: int) -> None:
    """Ends the process by then, whatever a thread is still at (FAULTS 7: gone within 10 s)."""

    def cut_off() -> None:
        log.warning("cut_off", why="work was not finished in time; what was not committed will be done again")
        os._exit(0)

    timer = threading.Timer(after_ms / 1000, cut_off)
    timer.daemon = True
    timer.start()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
"""Without typer's own tracebacks, which may show what local variables hold."""


@app.command()
def main(
    config: Annotated[Path, typer.Option("--config", help="The process's TOML file.", metavar="FILE")],
) -> None:
    """Entry point."""

    def run() -> None:
        configure_logging("vault")
        if api_implementation.Type() != "upb":
            raise ConfigError("protobuf runs without its C implementation (upb); reinstall protobuf")
        settings = load(VaultSettings, config)
        with exclusive(settings.state_dir, "a vault"):
            uvloop.run(serve(settings))

    exit_with_reason(run)


if __name__ == "__main__":
    app()

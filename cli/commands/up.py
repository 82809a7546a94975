"""`pli up`: the services of one machine, kept running for developers and rehearsals."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from cli.deployment import Addresses, Deployment, make_socket_dir, refuse_overrides
from cli.interruption import Interrupted, run_until_told
from cli.office import Office
from cli.rehearsal import enrol, office_of, open_campaign, start_services, write_private
from cli.services import Services
from cli.simulation import MAX_PUPILS, simulate
from pli.errors import ConfigError, InputError
from pli.process import exclusive

CAMPAIGN_ID = "rehearsal"
SIMULATED = {"roster": "simulated roster", "instrument": "simulated instrument"}


def up(
    directory: Annotated[Path, typer.Option("--dir", help="State of the services; kept, and used again next time.")],
    workers: Annotated[int, typer.Option(min=1, max=64, help="Ingest processes.")] = 1,
    pupils: Annotated[
        int, typer.Option(min=0, max=MAX_PUPILS, help="Simulated pupils with codes; 0: an empty campaign.")
    ] = 200,
    listen: Annotated[str, typer.Option(help="For holders of codes (TLS).")] = "127.0.0.1:8443",
    listen_operations: Annotated[str, typer.Option(help="For operators (mTLS).")] = "127.0.0.1:8444",
    listen_vault: Annotated[str, typer.Option(help="For the office (mTLS).")] = "127.0.0.1:7443",
    max_memory_mb: Annotated[int, typer.Option(min=16, help="Budget of the embedded store.")] = 1_024,
) -> None:
    """Run spool, vault, relay and ingest node in the foreground until SIGTERM or Ctrl-C.

    Makes a rehearsal campaign with simulated pupils, open, their codes in DIR/codes.csv, and profiles
    for applications and people in DIR/profiles/. The vault unlocks itself: for development only.
    """
    refuse_overrides(os.environ)
    addresses = Addresses(pupils=listen, operations=listen_operations, vault=listen_vault)
    try:
        run_until_told(lambda: _serve(directory.resolve(), addresses, workers, pupils, max_memory_mb))
    except Interrupted as told:
        # To be told to stop is how this command ends well.
        raise typer.Exit(0) from told


async def _serve(directory: Path, addresses: Addresses, workers: int, pupils: int, max_memory_mb: int) -> None:
    with exclusive(directory, "pli up"):
        socket_dir = make_socket_dir(directory)
        deployment = Deployment(directory, CAMPAIGN_ID, addresses, socket_dir)
        services = Services(deployment.root / "logs", lambda what: print(f"! {what}", flush=True))
        try:
            deployment.prepare(workers=workers, max_memory_mb=max_memory_mb)
            async with office_of(deployment) as office:
                await start_services(services, deployment, office)
                if pupils:
                    await _open(office, deployment, pupils)
            print("\n".join(_in_words(deployment, pupils)), flush=True)
            raise ConfigError(await services.failed)
        finally:
            await asyncio.shield(services.stop())
            shutil.rmtree(socket_dir, ignore_errors=True)


async def _open(office: Office, deployment: Deployment, pupils: int) -> None:
    state = (await office.find()).state
    if state not in ("DRAFT", "READY", "OPEN"):
        raise ConfigError(f"the campaign in {deployment.root} is {state} and takes no answers; give another --dir")
    if state == "OPEN":
        return
    files = simulate(pupils, Random(1))  # simulated pupils are no secret
    try:
        codes = await enrol(office, files, SIMULATED)
    except InputError as error:
        raise ConfigError(
            f"{deployment.root} holds a campaign of other pupils; give the same --pupils, or another --dir"
        ) from error
    rows = "".join(f"{pupil_id},{code}\n" for pupil_id, code in codes.items())
    await asyncio.to_thread(write_private, deployment.root / "codes.csv", f"pupil_id,code\n{rows}".encode())
    await asyncio.to_thread((deployment.root / "instrument.toml").write_bytes, files.instrument)
    await open_campaign(office)


def _in_words(deployment: Deployment, pupils: int) -> list[str]:
    root, addresses = deployment.root, deployment.addresses
    lines = [
        f"campaign {deployment.campaign_id} (rehearsal) is served from {root}",
        f"  pupils      {addresses.pupils}   TLS        profile {deployment.profile('client')}",
        f"  operators   {addresses.operations}   mTLS       profile {deployment.profile('operator')}",
        f"  office      {addresses.vault}   mTLS       profile {deployment.profile('campaign-admin')}",
        "THE VAULT UNLOCKED ITSELF with key files in this directory: never with data of real pupils",
    ]
    if pupils:
        lines.append(f"{root / 'codes.csv'} holds the codes of {pupils} simulated pupils; the window is open")
    lines.append("Ctrl-C or SIGTERM drains and stops")
    return lines

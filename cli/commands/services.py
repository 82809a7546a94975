"""`pli server`, `pli relay`, `pli vault`: one process each, by configuration file, as in production."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli.services import MODULES
from pli.errors import ConfigError

Config = Annotated[
    Path, typer.Option("--config", "-c", help="TOML file; PLI_… variables override it, unknown keys stop the start.")
]


def server(config: Config) -> None:
    """Run an ingest node: takes pupils' sessions, seals their answers, commits them to the spool.

    Listens for holders of codes (TLS) and for operators (mTLS). SIGTERM drains within 10 s.
    """
    _become("server", config)


def relay(config: Config) -> None:
    """Run a relay: carries sealed blocks to the vault, and the campaign's bundle and window back."""
    _become("relay", config)


def vault(config: Config) -> None:
    """Run the vault: identities, keys, landed answers, settlement, scores. It starts locked."""
    _become("vault", config)


def _become(service: str, config: Path) -> NoReturn:
    """This process goes on as the service, so that whoever supervises it holds the service's own pid."""
    module = MODULES[service]
    if find_spec(module.split(".", 1)[0]) is None:
        raise ConfigError(f"this installation has no {service}; install the wheel pli-{module.split('.', 1)[0]}")
    os.execv(sys.executable, [sys.executable, "-m", module, "--config", str(config)])  # noqa: S606  # no shell is wanted

"""What the platform's processes wire alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from pli.errors import ConfigError
from pli.tls import read_file

ConfigFile = Annotated[Path, typer.Option("--config", help="The process's TOML file.", metavar="FILE")]


def run_command(main: Callable[..., None]) -> None:
    """Runs a process's entry point by its command line. Errors of ours have been told by then; typer's own
    display of others would print local variables.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()


def pinned_vault_key(path: Path) -> Ed25519PublicKey:
    """The vault's public signing key, PEM.

    Raises:
        ConfigError: unreadable, or not an Ed25519 key.
    """
    try:
        key = load_pem_public_key(read_file(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not a PEM public key; copy the vault's signing key there") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is not an Ed25519 key; copy the vault's signing key there")
    return key


def place_of(error: BaseException) -> str:
    """File and line where an error was raised. Its words may quote content and are never logged."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""

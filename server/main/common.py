"""What the platform's processes wire alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from pli.errors import ConfigError, PliError
from pli.tls import read_file


def clock_ms() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


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


def exit_with_reason(run: Callable[[], None]) -> None:
    """Runs a process; an error of ours becomes one message and its exit code."""
    try:
        run()
    except PliError as error:
        print(f"error: {error.message}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error

"""The campaign secret S: random, one file per copy, kept apart from database and keystore.

Every key of a campaign is derived with S as salt, so whoever has root keys and all backups but no
copy of S opens nothing (DESIGN 7), and destroying the copies destroys the campaign.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pli.config import read_secret_file, write_secret_file
from pli.errors import ConfigError
from pli.secret import Secret

SECRET_BYTES = 32
ID_LABEL = b"pli/campaign-secret-id/v1"


class SecretCopies:
    """The listed directories, each with one copy `<campaign>.secret` (0400)."""

    def __init__(self, directories: Sequence[Path], random_bytes: Callable[[int], bytes]) -> None:
        self._directories = tuple(directories)
        self._random_bytes = random_bytes

    def create(self, campaign_id: str) -> Secret:
        """Draws S and writes every copy, on disk before this returns.

        A call that was cut short is repeated: the copy that it left is completed by the others.

        Raises:
            ConfigError: a directory cannot be written, or holds another campaign's S of this name.
        """
        secret: Secret | None = None
        for path in self._paths(campaign_id):
            if path.exists():
                found = self._read(path)
                if secret is not None and found != secret:
                    raise ConfigError(
                        f"{path} holds another secret than the first of secret_dirs; move away what is "
                        "left of an earlier campaign of this name"
                    )
                secret = found
        if secret is None:
            secret = Secret(self._random_bytes(SECRET_BYTES))
        for path in self._paths(campaign_id):
            if not path.exists():
                _make_private(path.parent)
                write_secret_file(path, secret.reveal())
                sync_directory(path.parent)
        return secret

    def find(self, campaign_id: str, secret_id: str) -> Secret:
        """The first copy whose id is the one that the keystore remembers.

        Raises:
            ConfigError: no directory has it, or a copy is open to others.
        """
        for path in self._paths(campaign_id):
            if path.exists():
                secret = self._read(path)
                if identify(secret) == secret_id:
                    return secret
        raise ConfigError(
            f"the secret of campaign {campaign_id} is in none of secret_dirs "
            f"({', '.join(str(path) for path in self._paths(campaign_id))}); "
            "bring a copy back from its holder and unlock again"
        )

    def _paths(self, campaign_id: str) -> list[Path]:
        return [directory / f"{campaign_id}.secret" for directory in self._directories]

    @staticmethod
    def _read(path: Path) -> Secret:
        secret = read_secret_file(path)
        if len(secret) != SECRET_BYTES:
            raise ConfigError(f"{path} has {len(secret)} bytes instead of {SECRET_BYTES}; bring back a whole copy")
        return secret


def identify(secret: Secret) -> str:
    """What tells copies apart without telling anything of S (derived, 16 bytes, hex)."""
    return HKDF(SHA256(), 16, salt=None, info=ID_LABEL).derive(secret.reveal()).hex()


def sync_directory(directory: Path) -> None:
    """Makes names created or replaced in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"secret directory {directory} cannot be made: {error.strerror}") from error

"""Configuration of the vault: one TOML file, `PLI_…` variables over it (pli/config.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from pli.config import Section, Settings
from pli.rpc.server import Limits
from pli.tls import TlsFiles

MAX_DEPOSIT_BYTES = 8 * 1024 * 1024
"""What DepositRequest allows in all (protos/pli/vault/v1/deposit.proto)."""


class Argon2Parameters(Section):
    """Cost of trying one passphrase. The defaults are the second choice of RFC 9106, section 4."""

    time_cost: int = Field(default=3, ge=1)
    """Passes over the memory."""

    memory_kib: int = Field(default=65_536, ge=8)
    """64 MiB: an unlock takes about 0.1 s here, and a guesser needs as much memory per guess."""

    parallelism: int = Field(default=4, ge=1)
    """Lanes; more than the cores of a small vault machine brings nothing."""


class VaultSettings(Settings):
    """One vault process."""

    listen: str = "127.0.0.1:7443"
    """Address of the mTLS listener. Loopback until a person decides otherwise; port 0 takes a free one."""

    tls: TlsFiles
    """Certificate (role vault), key, and the authority of relays and people."""

    state_dir: Path
    """Database and keystore. One process at a time; back it up apart from `secret_dirs`."""

    secret_dirs: tuple[Path, ...] = Field(min_length=1)
    """Where each campaign's secret S is written. In production two or more, on other media than
    `state_dir`: without S, root key and backups open nothing. Never inside `state_dir`."""

    public_dir: Path
    """Where `vault-signing-<campaign>.pub` is written, which nodes and relays pin."""

    answers_key_file: Path | None = None
    """Root key file of the scope answers (32 random bytes, 0400). Without it: a passphrase."""

    identities_key_file: Path | None = None
    """Root key file of the scope identities. On another medium than the other, or a passphrase."""

    auto_unlock: bool = False
    """Unlock both scopes at start, with key files made on the spot. For development only: whoever
    starts the process then reads names. Every screen shows it."""

    argon2: Argon2Parameters = Argon2Parameters()
    """For passphrases set from now on; a keystore remembers the parameters of each of its slots."""

    late_grace_ms: int = Field(default=300_000, ge=0)
    """How long started sessions may finish after a scheduled close: five minutes, as in an exam room."""

    tick_ms: int = Field(default=1_000, ge=10)
    """How often the life cycle looks at the clock; orders about the window are at most that late."""

    drain_ms: int = Field(default=8_000, ge=0)
    """How long running calls may take after SIGTERM; the process must be gone within 10 s."""

    limits: Limits = Limits(max_receive_bytes=MAX_DEPOSIT_BYTES + 64 * 1024)
    """A deposit's 8 MB, and its field tags."""

    @property
    def database_file(self) -> Path:
        """The SQLite file."""
        return self.state_dir / "vault.sqlite3"

    @property
    def keystore_dir(self) -> Path:
        """The keystore's own directory."""
        return self.state_dir / "keystore"

    @model_validator(mode="after")
    def _keep_secrets_apart(self) -> Self:
        state = self.state_dir.absolute()
        for directory in self.secret_dirs:
            if directory.absolute().is_relative_to(state):
                raise ValueError(
                    f"secret_dirs: {directory} lies inside state_dir, whose backup would then open "
                    "everything; name a directory elsewhere, in production on other media"
                )
        if self.auto_unlock and not (self.answers_key_file and self.identities_key_file):
            raise ValueError("auto_unlock needs answers_key_file and identities_key_file; name both, or unlock by hand")
        return self

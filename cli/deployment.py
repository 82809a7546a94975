"""The state directory of a rehearsal on one machine: certificates, configuration, profiles.

certificates/    a development authority's, one per role
config/          one TOML file per service, as in production
profiles/        client.toml for applications, and one per role of people
spool/ vault/ vault-keys/ vault-secrets/ vault-public/ server/ relay/ logs/
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pli.config import NO_SETTINGS, PREFIX
from pli.development_ca import AUTHORITY_FILE, DevelopmentAuthority
from pli.errors import ConfigError

MAX_SOCKET_PATH_BYTES = 100
"""The kernel takes 108; the store needs a few for itself."""

LOOPBACK_HOSTS = ("127.0.0.1", "localhost")
NODE_NAME = "node-1"
RELAY_NAME = "relay-1"
PEOPLE: Mapping[str, str] = {
    "campaign-admin": "admin",
    "reporter": "reporter",
    "custodian": "custodian",
    "operator": "operator",
    "observer": "observer",
}
"""Role → name in the certificate of the person who plays it here."""

Value = str | int | float | bool | Path | list[Path]
Table = Mapping[str, "Value | Mapping[str, Value]"]


@dataclass(frozen=True, slots=True)
class Addresses:
    """host:port of what listens."""

    pupils: str
    operations: str
    vault: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where everything lies. `socket_dir` is short and private: a Unix socket's path has 108 bytes at most."""

    root: Path
    campaign_id: str
    addresses: Addresses
    socket_dir: Path

    @property
    def socket_file(self) -> Path:
        """The store's Unix socket."""
        return self.socket_dir / "spool.sock"

    @property
    def authority_file(self) -> Path:
        """PEM that all certificates here come from."""
        return self.root / "certificates" / AUTHORITY_FILE

    @property
    def vault_signing_key_file(self) -> Path:
        """The vault's public signing key of the campaign."""
        return self.root / "vault-public" / f"vault-signing-{self.campaign_id}.pub"

    def config(self, service: str) -> Path:
        """A service's configuration file."""
        return self.root / "config" / f"{service}.toml"

    def profile(self, name: str) -> Path:
        """A client's or person's profile."""
        return self.root / "profiles" / f"{name}.toml"

    def prepare(self, *, workers: int, max_memory_mb: int) -> None:
        """Makes certificates where there are none, and writes configuration and profiles.

        Raises:
            ConfigError: the directory cannot be written.
        """
        try:
            for name in ("certificates", "config", "profiles", "logs"):
                (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._issue_certificates()
            self._write_configuration(workers, max_memory_mb)
            self._write_profiles()
        except OSError as error:
            raise ConfigError(f"directory {self.root} cannot be used: {error.strerror}") from error

    def _issue_certificates(self) -> None:
        if self.authority_file.exists():
            return
        authority = DevelopmentAuthority(self.authority_file.parent)
        authority.issue("vault", "vault", LOOPBACK_HOSTS)
        authority.issue("ingest", NODE_NAME, LOOPBACK_HOSTS)
        authority.issue("relay", RELAY_NAME)
        for role, name in PEOPLE.items():
            authority.issue(role, name)

    def _certificate(self, role: str, name: str) -> dict[str, Value]:
        directory = self.authority_file.parent
        return {
            "certificate_file": directory / f"{role}-{name}.pem",
            "key_file": directory / f"{role}-{name}.key",
            "authority_file": self.authority_file,
        }

    def _spool(self, user: str) -> dict[str, Value]:
        return {
            "url": f"unix://{self.socket_file}",
            "username": user,
            "password_file": self.root / "spool" / f"{user}.password",
        }

    def _write_configuration(self, workers: int, max_memory_mb: int) -> None:
        root = self.root
        write_toml(
            self.config("spool"),
            {"directory": root / "spool", "socket_directory": self.socket_dir, "max_memory_mb": max_memory_mb},
        )
        write_toml(
            self.config("vault"),
            {
                "listen": self.addresses.vault,
                "state_dir": root / "vault",
                "secret_dirs": [root / "vault-secrets"],
                "public_dir": root / "vault-public",
                "answers_key_file": root / "vault-keys" / "answers.key",
                "identities_key_file": root / "vault-keys" / "identities.key",
                "auto_unlock": True,
                "tls": self._certificate("vault", "vault"),
            },
        )
        write_toml(
            self.config("relay"),
            {
                "campaign_id": self.campaign_id,
                "name": RELAY_NAME,
                "state_dir": root / "relay",
                "vault": self.addresses.vault,
                "vault_signing_key_file": self.vault_signing_key_file,
                "tls": self._certificate("relay", RELAY_NAME),
                "spool": self._spool("relay"),
            },
        )
        write_toml(
            self.config("server"),
            {
                "campaign_id": self.campaign_id,
                "state_dir": root / "server",
                "listen": self.addresses.pupils,
                "listen_operations": self.addresses.operations,
                "workers": workers,
                "vault_signing_key_file": self.vault_signing_key_file,
                "tls": self._certificate("ingest", NODE_NAME),
                "spool": self._spool("ingest"),
            },
        )

    def _write_profiles(self) -> None:
        common: dict[str, Value] = {"campaign_id": self.campaign_id, "authority_file": self.authority_file}
        write_toml(self.profile("client"), {**common, "address": self.addresses.pupils})
        for role, name in PEOPLE.items():
            watches = role in ("operator", "observer")
            address = self.addresses.operations if watches else self.addresses.vault
            write_toml(self.profile(role), {**common, "address": address, **self._certificate(role, name)})


def refuse_overrides(environ: Mapping[str, str]) -> None:
    """Raises ConfigError for a `PLI_…` variable: it would reach four services, each with keys of its own."""
    found = sorted(name for name in environ if name.startswith(PREFIX) and name not in NO_SETTINGS)
    if found:
        raise ConfigError(f"{', '.join(found)} would change the services of this command; unset it")


def make_socket_dir(root: Path) -> Path:
    """A private directory for the store's Unix socket: in `root` where that path is short enough for one."""
    inside = root / "run"
    if len(os.fsencode(inside / "spool.sock")) <= MAX_SOCKET_PATH_BYTES:
        inside.mkdir(parents=True, exist_ok=True, mode=0o700)
        return inside
    return Path(tempfile.mkdtemp(prefix="pli-"))


def write_toml(path: Path, table: Table) -> None:
    """Writes a flat table with tables of one level in it; readable by its owner alone."""
    lines = [f"{key} = {_written(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]", *(f"{inner} = {_written(entry)}" for inner, entry in value.items())]
    path.touch(mode=0o600)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _written(value: Value) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_written(entry) for entry in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    # A JSON string without its surrogate escapes is a TOML basic string.
    return json.dumps(str(value), ensure_ascii=False)

"""Profiles: how a person reaches a service, in a small TOML file that `pli up` writes and people copy."""

from __future__ import annotations

from pathlib import Path

import grpc

from pli.config import Section, read_section
from pli.rpc.client import channel
from pli.tls import TlsFiles, client_credentials, read_file


class Profile(Section):
    """Where a service listens, and with which certificate a person comes."""

    address: str
    """host:port of the service."""

    campaign_id: str
    """The campaign that the profile is for."""

    authority_file: Path
    """PEM of the authority that the service's certificate comes from."""

    certificate_file: Path
    """The person's certificate, PEM."""

    key_file: Path
    """Its key, readable by its owner alone."""

    def channel(self) -> grpc.aio.Channel:
        """A channel with the person's certificate.

        Raises:
            ConfigError: a file is missing or open to others.
        """
        files = TlsFiles(
            certificate_file=self.certificate_file, key_file=self.key_file, authority_file=self.authority_file
        )
        return channel(self.address, client_credentials(read_file(self.authority_file), files))


def read_profile(path: Path) -> Profile:
    """Reads a profile.

    Raises:
        ConfigError: missing, not TOML, a key missing or unknown.
    """
    return read_section(Profile, path, "profile")

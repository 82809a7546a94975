"""What a client application decides: where the platform is, whom it trusts, how patient it is."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import SystemRandom

from cryptography import x509
from pydantic import Field

from pli.config import Section, read_section
from pli.errors import ConfigError
from pli.tls import read_file

MAX_CAMPAIGN_BYTES = 64
"""`Open.campaign_id` in protos/pli/ingest/v1/ingest.proto."""

MAX_PORT = 65_535

MIN_KEEPALIVE_MS = 10_000
"""A node cuts off whoever pings more often (`min_ping_interval_ms` of pli/rpc/server.py)."""


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Everything a session is told. Raises ConfigError for a value that cannot be meant."""

    campaign_id: str
    """As printed beside the code."""

    address: str = ""
    """host:port of the platform. Not needed by a session that is handed its channel."""

    authority: bytes = field(default=b"", repr=False)
    """PEM of the authority that the platform's certificate must come from; a system's own list of
    authorities is never asked. Not needed by a session that is handed its channel."""

    node_authorities: tuple[x509.Certificate, ...] = ()
    """Whose node certificates may sign a receipt. Empty: its signature is kept, and left to be verified."""

    give_up_seconds: float = 300.0
    """So long a session tries by itself without getting anywhere; then it tells the application, which
    keeps everything and may open again. Longer than a router takes to restart, short enough that a
    pupil in front of a dead line is told."""

    open_timeout_seconds: float = 18.0
    """From connecting to `Opened`. A node repeats its own call to the spool for up to 15 s; and it takes
    a stream that says nothing for 20 s for one of a broken client, which a slow line must not become."""

    stall_timeout_seconds: float = 90.0
    """A stream that says nothing for so long after something was sent is given up. A node with a
    stalled spool ends the stream by itself after 60 s."""

    backoff_first_ms: int = 500
    """Bound of the first wait; each is drawn from 0 to a bound that doubles."""

    backoff_max_ms: int = 15_000
    """The largest bound: 10 000 clients of a platform that is gone are 1 300 attempts a second."""

    keepalive_time_ms: int = 20_000
    """A silent connection is asked whether it lives at this pace, so that a dead one is noticed."""

    keepalive_timeout_ms: int = 10_000
    """Slow school lines answer a ping within that."""

    def __post_init__(self) -> None:
        size = len(self.campaign_id.encode())
        if not 1 <= size <= MAX_CAMPAIGN_BYTES:
            raise ConfigError(f"campaign_id must have 1 to {MAX_CAMPAIGN_BYTES} bytes, has {size}")
        host, _, port = self.address.rpartition(":")
        if self.address and not (host and port.isdecimal() and 0 < int(port) <= MAX_PORT):
            raise ConfigError(f"{self.address!r} is not an address; write host:port, for example 127.0.0.1:8443")
        for name in (
            "give_up_seconds", "open_timeout_seconds", "stall_timeout_seconds", "backoff_first_ms",
            "backoff_max_ms", "keepalive_timeout_ms",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be greater than 0")
        if self.keepalive_time_ms < MIN_KEEPALIVE_MS:
            raise ConfigError(f"keepalive_time_ms must be at least {MIN_KEEPALIVE_MS}: nodes cut off faster pings")


class ClientProfile(Section):
    """The TOML file that `pli up` writes for client applications."""

    campaign_id: str = Field(pattern=r"^[a-z0-9-]{1,64}$")
    """The campaign."""

    address: str
    """host:port of the platform."""

    authority_file: Path
    """PEM of the platform's authority; a relative path starts at the profile's directory."""

    @classmethod
    def load(cls, path: Path) -> ClientProfile:
        """Reads a profile.

        Raises:
            ConfigError: missing, not TOML, a key missing or unknown, a value of the wrong form.
        """
        profile = read_section(cls, path, "client profile")
        return profile.model_copy(update={"authority_file": path.parent / profile.authority_file})

    def options(self, *, node_authorities: Sequence[x509.Certificate] = ()) -> ClientOptions:
        """Options with this address and authority; change single ones by `dataclasses.replace`.

        Raises:
            ConfigError: the authority's file cannot be read, or the address is not host:port.
        """
        return ClientOptions(
            campaign_id=self.campaign_id,
            address=self.address,
            authority=read_file(self.authority_file),
            node_authorities=tuple(node_authorities),
        )


@dataclass(frozen=True, slots=True)
class ClientPorts:
    """Randomness and time, handed in. The defaults are what an application wants."""

    random: Callable[[], float] = SystemRandom().random
    """From 0 to 1, for the jitter: clients that start from one image must not draw alike."""
    random_bytes: Callable[[int], bytes] = os.urandom
    """Writer and tokens."""
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    """Waits so many seconds before opening again."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds, for `give_up_seconds`."""

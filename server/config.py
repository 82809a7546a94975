"""Configuration of the platform's processes: ingest nodes, relay, embedded store."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from pli.config import Section, Settings
from pli.rpc.server import Limits
from pli.tls import TlsFiles

MAX_SHARDS = 64
"""As many as one server's cores, and more than any campaign needs."""

_LOOPBACK = ("127.", "localhost:", "[::1]:")


class NodeLimits(Limits):
    """What a node takes from its clients."""

    stream_window_bytes: int = Field(default=65_536, ge=1_024)
    """Sent and not yet read, per stream. gRPC's own choice grows to 4 MB, with which a stalled spool let
    forty clients fill 200 MB of a worker; no pupil's line is long and fast enough to need it."""

    def options(self, *, reuse_port: bool) -> list[tuple[str, int]]:
        """The gRPC channel arguments."""
        return [
            *super().options(reuse_port=reuse_port),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", self.stream_window_bytes),
        ]


class SpoolSettings(Section):
    """How to reach Redis/Valkey."""

    url: str
    """`unix:///path/spool.sock` or `rediss://host:port`; `redis://` on this machine alone. No user or
    password in it."""

    username: str = ""
    """The ACL user; empty for a server without users, which `allow_weak_durability` does not excuse."""

    password_file: Path | None = None
    """The user's password, readable by the owner alone."""

    authority_file: Path | None = None
    """PEM, for `rediss://`."""

    timeout_ms: int = Field(default=5_000, ge=50)
    """A store that takes longer for one call is stalled; the same bytes are sent again."""

    @model_validator(mode="after")
    def _closed_to_others(self) -> Self:
        address = self.url.removeprefix("redis://")
        local = self.url.startswith("unix:///") or (address != self.url and address.startswith(_LOOPBACK))
        if not local and not self.url.startswith("rediss://"):
            raise ValueError("url must be unix:///path, rediss://host:port, or redis:// to 127.0.0.1")
        if "@" in self.url:
            raise ValueError("url must hold no user and no password: set username and password_file")
        if self.authority_file is not None and not self.url.startswith("rediss://"):
            raise ValueError("authority_file is for a url with rediss:// alone")
        return self


class CommitSettings(Section):
    """How answers become blocks."""

    linger_max_ms: float = Field(default=5.0, ge=0)
    """While blocks are small, wait so long for company: at pupil-like load a commit per arrival costs
    more than all the rest, and a pupil does not feel 5 ms (FACTS)."""

    linger_below_sessions: int = Field(default=64, ge=0)
    """A commit of this many sessions pays for itself: no wait above."""

    max_block_bytes: int = Field(default=900_000, ge=1, le=1_000_000)
    """Room below the store's limit of 1 MiB for the header of an epoch."""

    max_block_sessions: int = Field(default=1_000, ge=1, le=1_000)
    """The store's limit."""

    epoch_seconds: float = Field(default=60.0, gt=0)
    """Nobody who seizes a node can read answers older than this (DESIGN 6)."""

    give_up_seconds: float = Field(default=30.0, gt=0)
    """A commit whose outcome is unknown for so long ends its epoch and its streams."""


class SessionLimits(Section):
    """What one worker takes from clients."""

    max_in_flight: int = Field(default=256, ge=1, le=4_096)
    """Un-acknowledged messages per session: enough for any pupil, small enough to bound memory."""

    max_backlog_bytes: int = Field(default=64 * 1024 * 1024, ge=1_000_000)
    """Sealed size of what all sessions of a worker have waiting. A slow disk stops the reading there."""

    max_sessions: int = 15_000
    """Per worker: below the 20 000 descriptors that a process commonly has."""

    max_opens_waiting: int = 5_000
    """More than the spool opens in a few seconds: later ones get an individual slot instead."""

    open_seconds: float = Field(default=20.0, gt=0)
    """A stream that says nothing for so long after its start is not a pupil's."""

    last_words_seconds: float = Field(default=5.0, ge=0)
    """So long a stream that ends waits for its client to read what is due; then it ends all the same."""

    stalled_seconds: float = Field(default=60.0, gt=0)
    """So long a stream waits for a stalled spool before it gives up with UNAVAILABLE."""

    retry_slot_ms: int = 10_000
    """Overloaded clients come back at a random moment within this."""

    max_rejections: int = Field(default=1_024, ge=1, le=4_096)
    """Per writer; a client beyond it is broken. The spool's Function takes 4 096 and writes them all again
    with each commit of the session."""


class GuardSettings(Section):
    """When a node stops trusting its spool."""

    interval_ms: int = Field(default=4_000, ge=100)
    """A setting that drifts must be found within 5 s; a look itself takes a moment."""

    memory_alarm_ratio: float = 0.60
    memory_no_new_codes_ratio: float = 0.80
    memory_stop_ratio: float = 0.95
    """Of the store's maxmemory: alarm; only codes with a cursor may open; stop reading (DESIGN 7)."""

    allow_weak_durability: bool = False
    """Never in production: accepts a store that may lose what it acknowledged. Every screen shows it."""


class ServerSettings(Settings):
    """An ingest node: `pli server --config FILE`."""

    campaign_id: str = Field(pattern=r"^[a-z0-9-]{1,64}$")
    """The campaign this node serves."""

    state_dir: Path
    """Holds the lock that keeps the same configuration from being started twice. No answer is written."""

    listen: str = "0.0.0.0:8443"
    """For holders of codes, TLS."""

    listen_operations: str = "127.0.0.1:8444"
    """For processes and people, mTLS."""

    workers: int = Field(default=1, ge=1, le=64)
    """Processes, one event loop each: one per core."""

    tls: TlsFiles
    """Certificate of role ingest; it also signs epochs and receipts."""

    vault_signing_key_file: Path
    """The vault's public signing key, pinned: bundles and orders are believed under it alone."""

    spool: SpoolSettings
    commit: CommitSettings = CommitSettings()
    sessions: SessionLimits = SessionLimits()
    guard: GuardSettings = GuardSettings()
    limits: NodeLimits = NodeLimits()

    drain_seconds: float = Field(default=8.0, gt=0)
    """SIGTERM to exit, at most: streams end, what was read is committed (a stop must take 10 s at most)."""

    plaintext_for_bench: bool = False
    """No TLS for codes; refused unless the listener is on loopback. For `pli bench` alone."""

    @model_validator(mode="after")
    def _plaintext_stays_on_this_machine(self) -> Self:
        if self.plaintext_for_bench and not self.listen.startswith(_LOOPBACK):
            raise ValueError("plaintext_for_bench is for loopback alone; remove it, or listen on 127.0.0.1")
        return self


class RelaySettings(Settings):
    """A relay: `pli relay --config FILE`."""

    campaign_id: str = Field(pattern=r"^[a-z0-9-]{1,64}$")
    """The campaign this relay serves."""

    name: str = Field(pattern=r"^[a-z0-9-]{1,64}$")
    """As in its certificate, spiffe://pli/relay/<name>."""

    state_dir: Path
    """Holds the lock that keeps the same configuration from being started twice."""

    vault: str
    """host:port of the vault."""

    tls: TlsFiles
    """Certificate of role relay."""

    vault_signing_key_file: Path
    """The vault's public signing key, pinned: receipts and bundles are believed under it alone."""

    spool: SpoolSettings

    shards: int = Field(default=1, ge=1, le=MAX_SHARDS)
    """As the campaign was created."""

    sync_ms: int = 500
    """How often state is exchanged with the vault."""

    read_max_blocks: int = 64
    read_max_bytes: int = 6_000_000
    """Of one deposit; the vault takes 8 MB."""

    claim_idle_ms: int = 30_000
    """A block that another relay took and did not deposit for so long is taken over."""

    call_timeout_ms: int = 20_000
    """A vault that does not answer in this time is tried again."""

    backoff_max_ms: int = 5_000
    """Full jitter between 0 and a bound that doubles up to this."""


class EmbeddedSettings(Settings):
    """The embedded store: `python -m server.main.embedded --config FILE`."""

    directory: Path
    """0700; holds append-only file, users and passwords."""

    socket_directory: Path | None = None
    """0700; holds the socket where `directory` is too long a path for one (108 bytes in the kernel)."""

    max_memory_mb: int = Field(default=1_024, ge=16)
    """The budget for the longest vault outage; the guard warns at 60 %."""

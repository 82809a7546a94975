"""The ingest node's client of the spool: opening sessions, committing blocks, reading what it must.

Automatic retries of the client library are off: a commit is repeated by the committer alone, with the
same bytes, which the Function recognises.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from struct import Struct
from typing import Any, TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from pli.config import read_secret_file
from pli.errors import ConfigError, IntegrityError, SpoolFull, SpoolUnavailable, SpoolUnsafe
from server.config import SpoolSettings
from server.store.keys import ShardKeys

T = TypeVar("T")

OPEN_ENTRY = Struct(">16s16s16s")
"""pseudonym | writer | token."""

COMMIT_ENTRY = Struct(">16s16sIQQBHH")
"""pseudonym | writer | opening | first seq | last seq | finish | rejections | receipt bytes; then each
rejection (seq u64, reason u8), then the receipt."""

REJECTION = Struct(">QB")
_OPENED = Struct(">BIQBHBH")
_SUPERSEDED = Struct(">16sI16s")
OPENED, READ_ONLY, REFUSED, CLOSED, NOT_OPEN, STALE, FULL = range(7)
"""Verdicts of an opening, as in pli.lua."""

LIVE, FINISHED, FENCED = 1, 2, 3


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """What the spool says about one code and writer."""

    verdict: int
    opening: int
    durable_seq: int
    state: int
    seats: int
    displaced: bool
    """A live session of another writer was superseded by this opening."""
    rejected: list[tuple[int, int]]
    receipt: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """One block as `commit` takes it; repeated byte for byte until its outcome is known."""

    epoch_id: bytes
    number: int
    digest: bytes
    block: bytes
    header: bytes
    session_count: int
    entries: bytes
    records: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The verdict; where it names sessions, or is closed, nothing was written.

    `superseded` maps positions of sessions that may not commit to the opening that won over theirs, 0
    where none did and the session is out of step with the spool.
    """

    closed: bool
    superseded: dict[int, int]


def connect(settings: SpoolSettings, *, connections: int, waits: bool = False) -> Redis:
    """A client with few long-lived connections and no retries of its own.

    At most `connections` calls at a time; one more fails at once. With `waits` a reply may take for
    ever, as on a connection that is subscribed.

    Raises:
        ConfigError: the URL is not one, or the password file is open to others.
    """
    password = None
    if settings.password_file is not None:
        password = read_secret_file(settings.password_file).reveal().decode().strip()
    seconds = settings.timeout_ms / 1000
    options: dict[str, Any] = {}
    if settings.authority_file is not None:
        options["ssl_ca_certs"] = str(settings.authority_file)
    try:
        return Redis.from_url(
            settings.url,
            username=settings.username or None,
            password=password,
            socket_timeout=None if waits else seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            max_connections=connections,
            # Redis 7.0 does not know CLIENT SETINFO, and no user of ours needs it.
            driver_info=None,
            **options,
        )
    except ValueError as error:
        raise ConfigError(f"spool url {settings.url!r} is not valid: {error}") from error


async def asked(call: Awaitable[T]) -> T:
    """The reply of one command, with the library's errors as ours.

    Raises:
        SpoolFull, SpoolUnavailable: no reply, or none now; the outcome of a write is unknown.
        SpoolUnsafe: the store refuses by right (wrong user, missing Function).
        IntegrityError: a Function found its input or its state impossible, and wrote nothing.
    """
    try:
        return await call
    except OutOfMemoryError as error:
        raise SpoolFull("the spool is at its memory limit") from error
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        if any(isinstance(each, AuthenticationError | ResponseError) for each in (error, error.__cause__)):
            raise SpoolUnsafe("the spool refuses this user: check username and password_file") from error
        raise SpoolUnavailable(f"the spool does not answer ({type(error).__name__})") from error
    except ResponseError as error:
        text = str(error)
        if text.startswith("PLI "):
            raise IntegrityError(f"the spool refused a call: {text[4:]}") from error
        if "NOPERM" in text or "NOAUTH" in text or "WRONGPASS" in text or "Function not found" in text:
            raise SpoolUnsafe(f"the spool refuses this user or has no Functions: {text.split(' ')[0]}") from error
        if text.startswith(("LOADING", "MASTERDOWN", "READONLY", "MISCONF", "BUSY ", "CLUSTERDOWN")):
            raise SpoolUnavailable(f"the spool cannot serve now: {text.split(' ')[0]}") from error
        raise SpoolUnsafe(f"the spool answered with an unexpected error: {text.split(' ')[0]}") from error
    except RedisError as error:
        raise SpoolUnavailable(f"the spool does not answer ({type(error).__name__})") from error


def library_source() -> str:
    """The Functions' source, as loaded by the relay."""
    return files("server.store").joinpath("pli.lua").read_text(encoding="utf-8")


class IngestSpool:
    """One shard, as an ingest worker may use it."""

    def __init__(self, redis: Redis, keys: ShardKeys) -> None:
        self._call = cast(Callable[..., Awaitable[Any]], redis.execute_command)
        self.keys = keys

    async def open_sessions(
        self, node_id: bytes, number: int, valid_until_ms: int, admit_new: bool, entries: Sequence[bytes]
    ) -> tuple[int, list[OpenedSession]]:
        """Opens many codes in one step; `entries` are OPEN_ENTRY each. Returns phase and verdicts.

        `number` must rise with every call of this node; a repeat after an unknown outcome keeps it.
        With `admit_new` false, codes that were never opened get the verdict FULL.
        """
        keys = self.keys
        reply = await asked(
            self._call(
                "FCALL", "pli_open_session", 1, keys.cursors,
                node_id, number, valid_until_ms, int(admit_new), b"".join(entries),
            )
        )  # fmt: skip
        return int(reply[0]), [_opened(entry) for entry in reply[1:]]

    async def commit(self, block: Commit) -> Committed:
        """Writes one block with the cursors it advances; the point of no return is its reply."""
        keys = self.keys
        name = "pli_commit" if block.records else "pli_commit_rejections"
        reply = await asked(
            self._call(
                "FCALL", name, 1, keys.cursors, block.epoch_id, block.number, block.digest, block.block, block.header,
                block.session_count, block.entries,
            )
        )  # fmt: skip
        verdict = bytes(reply[0])
        return Committed(verdict == b"CLOSED", dict(zip(reply[1::2], reply[2::2], strict=True)))


def _opened(entry: bytes) -> OpenedSession:
    verdict, opening, durable, state, seats, displaced, count = _OPENED.unpack_from(entry)
    end = _OPENED.size + count * REJECTION.size
    rejected = list(REJECTION.iter_unpack(entry[_OPENED.size : end]))
    return OpenedSession(verdict, opening, durable, state, seats, bool(displaced), rejected, entry[end:])


def superseded_message(raw: bytes) -> tuple[bytes, int, bytes]:
    """Pseudonym, winning opening and its writer in a message of the `superseded` channel.

    Raises:
        IntegrityError: another message than pli.lua publishes.
    """
    if len(raw) != _SUPERSEDED.size:
        raise IntegrityError("a message on the superseded channel is not one of ours")
    pseudonym, opening, writer = _SUPERSEDED.unpack(raw)
    return pseudonym, opening, writer

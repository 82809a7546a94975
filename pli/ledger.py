"""The ledger: what a client sent and was told, kept outside the system to be compared with the vault.

Text, one entry a line, words separated by one space, lines ended by LF:

    pli-ledger 1 <campaign id>
    o <writer> <digest of the code>            a session was opened under this code
    s <writer> <seq> <digest of the content>   written before the message is sent
    a <writer> <durable seq>                   an Ack, or the durable_seq of an Opened
    r <writer> <seq> <reason>                  a Rejected, also one that an Opened repeats

Writers and digests are hex. A digest is the first 16 bytes of HMAC-SHA256 under the ledger's own key,
so that the file tells no answer and no code to whoever has not the key; the key lies beside it in a
secret file and goes to the vault with the question. Ledgers of one campaign and key may be
concatenated. A last line without LF is one that the client did not finish writing: it is passed over.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack

from pli.codes import Code
from pli.errors import ConfigError
from pli.faults import FaultList
from pli.secret import Secret

HEADER = "pli-ledger 1"
LEDGER_KEY_BYTES = 32
DIGEST_BYTES = 16
WRITER_BYTES = 16
MAX_NUMBER_DIGITS = 16
"""A seq is below 2^53 (docs/protocol.md)."""

MAX_LINE_BYTES = 256
"""Longer than any line of this format."""

_CONTENT_LABEL = b"pli/ledger-content/v1\0"
_CODE_LABEL = b"pli/ledger-code/v1\0"


def content_digest(key: bytes, writer: bytes, seq: int, kind: int, payload: bytes) -> bytes:
    """The digest (16 bytes) of one answer, mark or finish: `kind` is its RecordKind, `payload` canonical."""
    message = b"".join((_CONTENT_LABEL, writer, pack(">QB", seq, kind), payload))
    return hmac.digest(key, message, "sha256")[:DIGEST_BYTES]


def code_digest(key: bytes, code: Code) -> bytes:
    """The digest (16 bytes) of the code that a session was opened with."""
    return hmac.digest(key, _CODE_LABEL + code.reveal().encode("ascii"), "sha256")[:DIGEST_BYTES]


class LedgerWriter:
    """Appends to a ledger; each line has left the process when its method returns.

    A client's host that loses power may lose lines of the last seconds: that is why a load run whose
    client dies is not evidence.
    """

    def __init__(self, path: Path, campaign_id: str, key: Secret) -> None:
        self._key = key.reveal()
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f"ledger {path} cannot be written: {error.strerror}") from error
        self._write(f"{HEADER} {campaign_id}")

    def opened(self, writer: bytes, code: Code) -> None:
        """A session of this writer is about to be opened under this code."""
        self._write(f"o {writer.hex()} {code_digest(self._key, code).hex()}")

    def sent(self, writer: bytes, seq: int, kind: int, payload: bytes) -> None:
        """The next thing is to send this message."""
        self._write(f"s {writer.hex()} {seq} {content_digest(self._key, writer, seq, kind, payload).hex()}")

    def acked(self, writer: bytes, durable_seq: int) -> None:
        """The platform said that everything up to here is settled on disk."""
        self._write(f"a {writer.hex()} {durable_seq}")

    def rejected(self, writer: bytes, seq: int, reason: int) -> None:
        """The platform said that this message will never be stored."""
        self._write(f"r {writer.hex()} {seq} {reason}")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, line: str) -> None:
        try:
            self._file.write(line.encode() + b"\n")
        except OSError as error:
            raise ConfigError(f"ledger {self._file.name} cannot be written: {error.strerror}; make room") from error

    def __repr__(self) -> str:
        return f"LedgerWriter({self._file.name!r})"


@dataclass(slots=True, repr=False)
class LedgerSession:
    """One writer: the digest of its code, what it sent (seq → digest), and what it was told."""

    code: bytes = b""
    sent: dict[int, bytes] = field(default_factory=dict)
    durable_seq: int = 0
    rejected: dict[int, int] = field(default_factory=dict)

    def is_acknowledged(self, seq: int) -> bool:
        """Whether the platform said that this message is stored: settled, and not rejected."""
        return seq <= self.durable_seq and seq not in self.rejected

    def __repr__(self) -> str:
        return f"LedgerSession({len(self.sent)} sent, {self.durable_seq} durable)"


@dataclass(frozen=True, slots=True)
class Ledger:
    """A whole ledger, by writer."""

    campaign_id: str
    sessions: dict[bytes, LedgerSession]


class LedgerReader:
    """Reads a ledger that arrives in pieces of any size; about 150 bytes of memory a message."""

    def __init__(self, file_name: str) -> None:
        self._faults = FaultList(file_name)
        self._campaign_id = ""
        self._sessions: dict[bytes, LedgerSession] = {}
        self._rest = b""
        self._line = 0

    def feed(self, chunk: bytes) -> None:
        """Takes the next piece.

        Raises:
            InputError: a line that this format does not have.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            self._refuse("a line of this length is not of a ledger")
        for line in lines:
            self._line += 1
            self._take(line)

    def end(self) -> Ledger:
        """What was read.

        Raises:
            InputError: there was no header.
        """
        if not self._campaign_id:
            self._refuse(f"a ledger begins with '{HEADER} <campaign id>'")
        return Ledger(self._campaign_id, self._sessions)

    def _take(self, line: bytes) -> None:
        try:
            kind, *words = line.decode("ascii").split(" ")
            if not self._campaign_id or kind == "pli-ledger":
                self._take_header(kind, words)
            else:
                _ENTRIES[kind](self._session(words[0]), *words[1:])
        except (KeyError, IndexError, TypeError, ValueError):
            # What a broken line holds is shown to nobody: it may be of any file.
            self._refuse("not a line of a ledger")

    def _take_header(self, kind: str, words: list[str]) -> None:
        if kind != "pli-ledger" or words[0] != "1" or len(words) != 2:
            self._refuse(f"a ledger begins with '{HEADER} <campaign id>'")
        if self._campaign_id not in ("", words[1]):
            self._refuse("ledgers of two campaigns in one file")
        self._campaign_id = words[1]

    def _session(self, writer: str) -> LedgerSession:
        name = _bytes(writer, WRITER_BYTES)
        found = self._sessions.get(name)
        if found is None:
            found = self._sessions[name] = LedgerSession()
        return found

    def _refuse(self, rule: str) -> None:
        self._faults.add(self._line, "", "", rule)
        self._faults.refuse()


def read_ledger(chunks: Iterable[bytes], file_name: str) -> Ledger:
    """A ledger that is at hand whole. Raises InputError as `LedgerReader` does."""
    reader = LedgerReader(file_name)
    for chunk in chunks:
        reader.feed(chunk)
    return reader.end()


def _opened(session: LedgerSession, digest: str) -> None:
    code = _bytes(digest, DIGEST_BYTES)
    if session.code not in (b"", code):
        raise ValueError("one writer, two codes")
    session.code = code


def _sent(session: LedgerSession, seq: str, digest: str) -> None:
    number, content = _number(seq), _bytes(digest, DIGEST_BYTES)
    if session.sent.setdefault(number, content) != content:
        raise ValueError("one number, two contents")


def _acked(session: LedgerSession, durable_seq: str) -> None:
    session.durable_seq = max(session.durable_seq, _number(durable_seq))


def _rejected(session: LedgerSession, seq: str, reason: str) -> None:
    session.rejected[_number(seq)] = _number(reason)


_ENTRIES: dict[str, Callable[..., None]] = {"o": _opened, "s": _sent, "a": _acked, "r": _rejected}


def _bytes(text: str, length: int) -> bytes:
    content = bytes.fromhex(text)
    if len(content) != length:
        raise ValueError("a name or digest of another length")
    return content


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > MAX_NUMBER_DIGITS:
        raise ValueError("not a number of a ledger")
    return int(text)

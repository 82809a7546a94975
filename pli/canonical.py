"""The canonical bytes of what a client gave, and the digest that `Finish` carries over them."""

from __future__ import annotations

from hashlib import sha256
from struct import pack

from google.protobuf.message import Message


def canonical(message: Message) -> bytes:
    """Fields in ascending order of number, defaults left out, unknown fields dropped.

    The protobuf library writes known fields in this order; unknown ones are discarded first so that
    a client cannot smuggle bytes past validation into what is sealed.
    """
    message.DiscardUnknownFields()
    return message.SerializeToString(deterministic=True)


class FinishDigest:
    """SHA-256 over the accepted answers and marks of one writer, in ascending order of seq.

    Each counts as seq (8 bytes, big-endian), length (4 bytes, big-endian), canonical bytes
    (`Finish.digest` in protos/pli/ingest/v1/ingest.proto).
    """

    __slots__ = ("_hash", "count")

    def __init__(self) -> None:
        self._hash = sha256()
        self.count = 0

    def add(self, seq: int, content: bytes) -> None:
        """Takes the next accepted message."""
        self._hash.update(pack(">QI", seq, len(content)))
        self._hash.update(content)
        self.count += 1

    def digest(self) -> bytes:
        """32 bytes."""
        return self._hash.digest()

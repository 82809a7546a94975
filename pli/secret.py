"""Secrets in memory: types that hold a key or a code and refuse to print it."""

from __future__ import annotations


class Secret:
    """Bytes that never reach a log: `repr`, `str` and formatting show the length only.

    The bytes live in a bytearray so that `wipe` can overwrite them; copies made by libraries
    (HPKE, AES contexts) are out of reach, which docs/protocol.md says.
    """

    __slots__ = ("_content",)

    def __init__(self, content: bytes | bytearray) -> None:
        self._content = bytearray(content)

    def reveal(self) -> bytes:
        """The bytes. Call it at the place of use; do not keep what it returns."""
        return bytes(self._content)

    def wipe(self) -> None:
        """Overwrites the bytes with zeros."""
        for index in range(len(self._content)):
            self._content[index] = 0

    def __len__(self) -> int:
        return len(self._content)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._content)} bytes)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a secret is not pickled")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._content == other._content

    __hash__ = None  # type: ignore[assignment]  # a secret must not become a dictionary key

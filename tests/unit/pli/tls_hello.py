"""TLS handshakes by hand: what a server answers to a hello, and what two peers agreed on (RFC 8446, RFC 5246)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from struct import pack, unpack_from

TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3 = 0x0301, 0x0302, 0x0303, 0x0304
X25519, X25519MLKEM768, SECP256R1 = 0x001D, 0x11EC, 0x0017

_HANDSHAKE = 22
_SUPPORTED_GROUPS, _SIGNATURES, _VERSIONS, _KEY_SHARE = 10, 13, 43, 51
_CIPHERS = (0x1301, 0x1302, 0x1303, 0xC02B, 0xC02C, 0xC009, 0xC00A)
"""TLS 1.3, then ECDHE-ECDSA with AES-GCM (1.2) and with AES-CBC (1.0 and 1.1)."""


def client_hello(version: int, groups: tuple[int, ...]) -> bytes:
    """A hello that goes up to `version` and, for 1.3, sends no key share: the server must name a group."""
    extensions = _extension(_SUPPORTED_GROUPS, _vector(2, b"".join(pack(">H", group) for group in groups)))
    extensions += _extension(_SIGNATURES, _vector(2, pack(">HHH", 0x0403, 0x0503, 0x0804)))
    extensions += _extension(11, b"\1\0")
    if version >= TLS_1_3:
        extensions += _extension(_VERSIONS, _vector(1, pack(">H", TLS_1_3)))
        extensions += _extension(_KEY_SHARE, _vector(2, b""))
    body = pack(">H", min(version, TLS_1_2)) + os.urandom(32) + _vector(1, os.urandom(32))
    body += _vector(2, b"".join(pack(">H", cipher) for cipher in _CIPHERS)) + _vector(1, b"\0") + _vector(2, extensions)
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return pack(">BHH", _HANDSHAKE, TLS_1_0, len(message)) + message


@dataclass
class ServerHello:
    """The server's first message: version and key-exchange group as agreed (or demanded by a retry)."""

    version: int
    group: int | None


def read_answer(answer: bytes) -> ServerHello | None:
    """The server hello at the start of an answer; None for an alert or no answer."""
    if not answer or answer[0] != _HANDSHAKE:
        return None
    content = answer[5 : 5 + unpack_from(">H", answer, 3)[0]]
    version, at = unpack_from(">H", content, 4)[0], 38
    at += 1 + content[at] + 3
    group = None
    end = at + 2 + unpack_from(">H", content, at)[0] if len(content) > at else at
    at += 2
    while at < end:
        kind, length = unpack_from(">HH", content, at)
        if kind == _VERSIONS:
            (version,) = unpack_from(">H", content, at + 4)
        elif kind == _KEY_SHARE:
            (group,) = unpack_from(">H", content, at + 4)
        at += 4 + length
    return ServerHello(version, group)


async def answer_to(port: int, hello: bytes) -> ServerHello | None:
    """What the server on this port of 127.0.0.1 answers; None when it refuses."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(hello)
        async with asyncio.timeout(10):
            try:
                head = await reader.readexactly(5)
                return read_answer(head + await reader.readexactly(unpack_from(">H", head, 3)[0]))
            except (asyncio.IncompleteReadError, ConnectionResetError):
                return None
    finally:
        writer.close()


@dataclass
class Tap:
    """A relay of bytes that keeps what the server said on each connection that has ended."""

    port: int = 0
    answers: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def tapped(port: int) -> AsyncIterator[Tap]:
    """Listens on a port of its own and relays to `port`, both on 127.0.0.1."""
    tap = Tap()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None) -> None:
        try:
            while piece := await reader.read(65_536):
                if kept is not None:
                    kept += piece
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server = bytearray()
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.TaskGroup() as group:
            group.create_task(pump(reader, server_writer, None))
            group.create_task(pump(server_reader, writer, from_server))
        tap.answers.append(bytes(from_server))

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(accept(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    tap.port = server.sockets[0].getsockname()[1]
    try:
        yield tap
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*tasks), 10)


def _vector(length_bytes: int, content: bytes) -> bytes:
    return len(content).to_bytes(length_bytes, "big") + content


def _extension(kind: int, content: bytes) -> bytes:
    return pack(">H", kind) + _vector(2, content)

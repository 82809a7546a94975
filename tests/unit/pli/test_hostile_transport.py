"""Hostile peers on the wire: each is refused, memory stays bounded, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from pli.development_ca import DevelopmentAuthority
from pli.ingest.v1 import ingest_pb2_grpc
from pli.ingest.v1.ingest_pb2 import Ack, Open, SubmitRequest, SubmitResponse
from pli.rpc.server import Health, Limits, make_server
from pli.tls import server_credentials
from tests.support.processes import Child
from tests.unit.pli.raw_http2 import framed, raw_call, says

LIMITS = Limits()
GIB = 1 << 30
MEMORY_MARGIN_KB = 24 * 1024
"""What a refusal may cost: windows and buffers of a few connections, far from what the peer claimed."""

INVALID, EXHAUSTED, INTERNAL, UNIMPLEMENTED = "3", "8", "13", "12"


@dataclass
class Target:
    """The attacked server's process."""

    pid: int
    port: int
    before_kb: int = 0

    def mark(self) -> None:
        """Growth counts from here: the peak of before is forgotten (proc(5), clear_refs)."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self.before_kb = self._peak_kb()

    def grown_kb(self) -> int:
        """The highest resident memory since `mark`, above what it was then."""
        return self._peak_kb() - self.before_kb

    def _peak_kb(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    child = Child.module("tests.unit.pli.guarded_server", log=tmp_path_factory.mktemp("attacked") / "log")
    try:
        yield Target(child.pid, asyncio.run(child.ready())["port"])
    finally:
        asyncio.run(child.stop())


@pytest.fixture
async def target(attacked: Target) -> AsyncIterator[Target]:
    await assert_serves(attacked)
    attacked.mark()
    yield attacked
    await assert_serves(attacked)


async def assert_serves(target: Target) -> None:
    request = SubmitRequest(open=Open(code="0" * 12))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{target.port}") as channel:
        responses = ingest_pb2_grpc.IngestServiceStub(channel).Submit(iter([request]), timeout=10)
        assert [response async for response in responses] == [SubmitResponse(ack=Ack(durable_seq=request.ByteSize()))]


# Sizes


async def test_a_message_of_the_limit_is_taken_and_one_byte_more_is_refused(target: Target) -> None:
    def request(size: int) -> SubmitRequest:
        filler = SubmitRequest(open=Open(code="x" * (size - 16)))
        filler.open.code += "x" * (size - filler.ByteSize())
        assert filler.ByteSize() == size
        return filler

    async with grpc.aio.insecure_channel(f"127.0.0.1:{target.port}") as channel:
        submit = ingest_pb2_grpc.IngestServiceStub(channel).Submit
        taken = [response async for response in submit(iter([request(LIMITS.max_receive_bytes)]), timeout=10)]
        assert taken == [SubmitResponse(ack=Ack(durable_seq=LIMITS.max_receive_bytes))]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(submit(iter([request(LIMITS.max_receive_bytes + 1)]), timeout=10)))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("declared", [LIMITS.max_receive_bytes + 1, GIB, 2 * GIB - 1, 2 * GIB, 2**32 - 1])
async def test_a_size_over_the_limit_is_refused_when_it_is_declared(target: Target, declared: int) -> None:
    async with raw_call(target.port) as call:
        await call.send(framed(b"x", declared=declared))
        assert (await call.finished())["grpc-status"] == EXHAUSTED
    assert target.grown_kb() < MEMORY_MARGIN_KB


async def test_a_declared_gibibyte_that_keeps_dripping_does_not_grow_memory(target: Target) -> None:
    async with raw_call(target.port) as call:
        await call.send(framed(b"", declared=GIB))
        while not call.over and call.sent_bytes < 256 * 1024 * 1024:
            await call.send(bytes(16 * 1024))
        assert (await call.finished())["grpc-status"] == EXHAUSTED
    assert target.grown_kb() < MEMORY_MARGIN_KB


async def test_peers_that_declare_the_limit_and_fall_silent_cost_what_they_sent(target: Target) -> None:
    async with AsyncExitStack() as silent:
        for _ in range(200):
            call = await silent.enter_async_context(raw_call(target.port))
            await call.send(framed(b"x", declared=LIMITS.max_receive_bytes))
        await assert_serves(target)
        assert target.grown_kb() < MEMORY_MARGIN_KB < 200 * LIMITS.max_receive_bytes // 1024


async def test_a_compressed_bomb_is_refused_before_it_unfolds(target: Target) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    assert len(bomb) < LIMITS.max_receive_bytes
    async with raw_call(target.port, ("grpc-encoding", "gzip")) as call:
        await call.send(framed(bomb, compressed=True))
        assert (await call.finished())["grpc-status"] == EXHAUSTED
    assert target.grown_kb() < MEMORY_MARGIN_KB


async def test_an_unknown_compression_and_an_undeclared_one_are_refused(target: Target) -> None:
    async with raw_call(target.port, ("grpc-encoding", "pkzip")) as call:
        await call.send(framed(b"x", compressed=True))
        assert (await call.finished())["grpc-status"] in (INTERNAL, UNIMPLEMENTED)
    async with raw_call(target.port) as call:
        await call.send(framed(gzip.compress(b"x"), compressed=True))
        assert (await call.finished()).get("grpc-status") != "0"


@pytest.mark.parametrize(
    "extra",
    [[("x-large", "x" * 16_500)], [(f"x-{n}", "x" * 50) for n in range(400)], [(f"x-{n}", "") for n in range(10_000)]],
    ids=["one of 16 kB", "400 of 50 bytes", "10 000 empty ones"],
)
async def test_metadata_over_the_limit_is_refused(target: Target, extra: list[tuple[str, str]]) -> None:
    async with raw_call(target.port, *extra) as call:
        assert (await call.finished())["grpc-status"] == EXHAUSTED
    assert target.grown_kb() < MEMORY_MARGIN_KB


async def test_metadata_below_the_limit_is_none_of_our_business(target: Target) -> None:
    async with raw_call(target.port, ("x-large", "x" * 7_000)) as call:
        await call.send(framed(b""))
        while not call.received:
            await call.read()


# What is no message and no protocol


@pytest.mark.parametrize(
    "content",
    [b"\x0a", b"\x0a\x7f", b"\x00\x01", b"\x0f\x01", b"\xff" * 11, b"\x0a\x04\x1a\x02\xff\xfe", b"\x0b" * 101],
    ids=["cut", "longer than it is", "field 0", "wire type 7", "varint", "no UTF-8", "nested"],
)
async def test_what_is_no_message_ends_the_call_without_an_echo(target: Target, content: bytes) -> None:
    async with raw_call(target.port) as call:
        await call.send(framed(content))
        headers = await call.finished()
    assert headers.get("grpc-status") in (INTERNAL, INVALID)
    assert "\x7f" not in headers.get("grpc-message", "")


async def test_unknown_fields_are_no_fault(target: Target) -> None:
    async with raw_call(target.port) as call:
        await call.send(framed(SubmitRequest(open=Open()).SerializeToString() + b"\xfa\x7f\x05other"))
        while not call.received:
            await call.read()
        assert call.received.startswith(framed(b"", declared=len(call.received) - 5))


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET / HTTP/1.1\r\nHost: pli\r\n\r\n"],
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\xff" * 64],
        [bytes(1_000)],
        [b"\x16\x03\x01\x02\x00\x01"],
    ],
    ids=["HTTP/1", "garbage after the preface", "zeros", "TLS on a plain port"],
)
async def test_what_is_no_http2_is_hung_up_on(target: Target, pieces: list[bytes]) -> None:
    assert len(await says(target.port, pieces)) < 1_000


# Handshakes, and the limits as a whole


async def test_a_handshake_that_is_never_finished_is_cut_off(tmp_path: Path) -> None:
    files = DevelopmentAuthority(tmp_path).issue("ingest", "a", ("127.0.0.1",))
    health = Health()
    await health.start()
    server = make_server(Limits(handshake_timeout_ms=200), [], health)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(files, ask_for_certificate=False))
    await server.start()
    try:
        assert await says(port, []) == b"", "not a byte of a hello"
        assert await says(port, [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"]) == b"", "a hello that stops in the middle"
    finally:
        await server.stop(0)


def test_every_limit_reaches_grpc() -> None:
    values = {name: 1_000_000 + number for number, name in enumerate(Limits.model_fields)}
    for reuse_port in (True, False):
        options = Limits(**values).options(reuse_port=reuse_port)
        assert set(values.values()) <= {value for _, value in options}
        assert len({name for name, _ in options}) == len(options)
        assert dict(options)["grpc.so_reuseport"] == reuse_port

"""Bytes that no protobuf library would write: each gets its status, never INTERNAL, and harms nobody else."""

from __future__ import annotations

import os
from typing import Any

import grpc
import pytest

from pli.errors import Overloaded, PliError, StreamViolation
from pli.ingest.v1.ingest_pb2 import Answer, Answers, Choices, Open, SubmitRequest, SubmitResponse
from pli.rpc.client import typed
from tests.support.platform import Platform
from tests.support.raw_session import tls_channel

pytestmark = pytest.mark.asyncio(loop_scope="session")
METHOD = "/pli.ingest.v1.IngestService/Submit"


@pytest.fixture
def platform(platform_of_module: Platform) -> Platform:
    return platform_of_module


def opening(platform: Platform) -> bytes:
    return SubmitRequest(
        open=Open(
            protocol_version=1,
            campaign_id=platform.campaign_id,
            code=platform.codes[0].printed(),
            writer=os.urandom(16),
            token=os.urandom(16),
        )
    ).SerializeToString()


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def nested(depth: int) -> bytes:
    """A group in a group in a group, which a parser would follow into the depth."""
    start, end = varint(100 << 3 | 3), varint(100 << 3 | 4)
    return start * depth + end * depth


GOOD = SubmitRequest(
    answers=Answers(first_seq=1, answers=[Answer(item_id="one", choices=Choices(options=["A"]), opening=1)])
)


async def exchange(platform: Platform, *messages: bytes) -> tuple[list[SubmitResponse], PliError | None]:
    """Sends these bytes as messages; what came back, and the status as an error."""
    seen: list[SubmitResponse] = []
    async with tls_channel(platform.address, platform.authority_pem) as channel:
        method: Any = channel.stream_stream(METHOD)
        call = method(timeout=20)
        try:
            for message in messages:
                await call.write(message)
            await call.done_writing()
            while isinstance(raw := await call.read(), bytes):
                seen.append(SubmitResponse.FromString(raw))
        except grpc.aio.AioRpcError as error:
            return seen, typed(error)
        except grpc.aio.UsageError:
            pass
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            trailing = await call.trailing_metadata()
            details = await call.details()
            metadata = grpc.aio.Metadata()
            return seen, typed(grpc.aio.AioRpcError(code, metadata, trailing, details=details))
    return seen, None


UNREADABLE = {
    "truncated varint": b"\x12\xff",
    "length beyond the end": b"\x12\x7f\x01",
    "field 0": b"\x02\x01x",
    "wire type 7": b"\x17\x00",
    "nesting 101 deep": nested(101),
    "group never closed": b"\xa3\x06" * 50,
    "invalid UTF-8 in an item": field(2, b"\x08\x01" + field(2, field(1, b"\xff\xfe"))),
    "lone surrogate": field(2, b"\x08\x01" + field(2, field(3, b"\xed\xa0\x80"))),
    "garbage": os.urandom(200).replace(b"\0", b"\xff"),
}


@pytest.mark.parametrize("message", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_an_unreadable_message_is_a_violation_whenever_it_comes(platform: Platform, message: bytes) -> None:
    seen, error = await exchange(platform, message)
    assert (seen, type(error)) == ([], StreamViolation)
    seen, error = await exchange(platform, opening(platform), message)
    assert [response.WhichOneof("message") for response in seen] == ["opened"]
    assert isinstance(error, StreamViolation)


async def test_unknown_fields_are_dropped_and_not_sealed(platform: Platform) -> None:
    code = platform.codes.pop()
    first = SubmitRequest.FromString(opening(platform))
    first.open.code = code.printed()
    smuggled = field(15, b"smuggled" * 20)
    answer = field(2, b"\x08\x01" + field(2, GOOD.answers.answers[0].SerializeToString() + smuggled) + smuggled)
    _, error = await exchange(platform, first.SerializeToString() + field(99, bytes(200_000)), answer + smuggled)
    assert error is None
    (record,) = await platform.records_of(code)
    assert record.payload == GOOD.answers.answers[0].SerializeToString()


async def test_of_two_members_of_a_oneof_the_last_one_counts(platform: Platform) -> None:
    code = platform.codes.pop()
    first = SubmitRequest.FromString(opening(platform))
    first.open.code = code.printed()
    answer = GOOD.answers.answers[0].SerializeToString() + field(5, b"") + field(2, field(1, b"B"))
    _, error = await exchange(platform, first.SerializeToString(), field(2, b"\x08\x01" + field(2, answer)))
    assert error is None
    (record,) = await platform.records_of(code)
    assert list(record.answer.choices.options) == ["B"]


async def test_a_message_above_the_limit_is_refused_without_being_read(platform: Platform) -> None:
    _, error = await exchange(platform, opening(platform), field(99, bytes(256 * 1024)))
    assert isinstance(error, Overloaded)
    _, error = await exchange(platform, field(1, field(3, b"A" * 20_000_000)))
    assert isinstance(error, Overloaded)


async def test_a_peer_that_never_reads_its_acks_harms_nobody(platform: Platform) -> None:
    """Its rejections fill the connection's window; the worker goes on, and others notice nothing."""
    first = SubmitRequest.FromString(opening(platform))
    bad = [Answer(item_id="one", choices=Choices(options=["Z"]), opening=1)] * 64
    options: list[tuple[str, int]] = [("grpc.http2.lookahead_bytes", 0), ("grpc.http2.bdp_probe", 0)]
    credentials = grpc.ssl_channel_credentials(root_certificates=platform.authority_pem)
    async with grpc.aio.secure_channel(platform.address, credentials, options) as channel:
        method: Any = channel.stream_stream(METHOD)
        call = method(timeout=20)
        await call.write(first.SerializeToString())
        for number in range(16):
            message = SubmitRequest(answers=Answers(first_seq=64 * number + 1, answers=bad))
            await call.write(message.SerializeToString())
        async with platform.session(platform.codes[1]) as session:
            await session.open()
            await session.choose("A")
            await session.acked()
        call.cancel()


async def test_none_of_it_was_an_internal_error(platform: Platform) -> None:
    assert platform.nodes[0].faults() == []

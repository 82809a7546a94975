"""Who gets through which listener, who may call what, and what a node says of its health."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pli.development_ca import DevelopmentAuthority
from pli.errors import Forbidden, PliError
from pli.ops.v1.ops_pb2 import GetStatusRequest, GetStatusResponse, WindowState
from pli.ops.v1.ops_pb2_grpc import OperationsServiceStub
from pli.rpc.client import typed
from pli.rpc.roles import INGEST, OBSERVER, OPERATOR, TABLE
from pli.tls import TlsFiles, client_credentials
from tests.support.platform import Platform
from tests.support.raw_session import OWN_CONNECTION, RawSession, tls_channel
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")
NOT_SERVING = 2


@pytest.fixture
def platform(platform_of_module: Platform) -> Platform:
    return platform_of_module


async def status_by(channel: grpc.aio.Channel) -> GetStatusResponse:
    stub: Any = OperationsServiceStub(channel)
    try:
        response: GetStatusResponse = await stub.GetStatus(GetStatusRequest(), timeout=10)
    except grpc.aio.AioRpcError as error:
        raise typed(error) from error
    return response


async def refused(method: Any) -> grpc.StatusCode:
    try:
        await method
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("role", [OPERATOR, OBSERVER])
async def test_people_who_watch_see_the_whole_platform(platform: Platform, role: str) -> None:
    async with platform.session(platform.codes.pop()) as session:
        await session.open()
        await session.choose("A")
        await session.acked()
        files = platform.operator if role == OPERATOR else platform.observer

        async def counted() -> GetStatusResponse | None:
            async with platform.operations(files) as channel:
                status = await status_by(channel)
            return status if status.nodes and status.nodes[0].acknowledged >= 1 else None

        status = await until(counted, "the answer to be counted")
        assert status is not None
    (node,) = status.nodes
    assert (node.ready, node.why) == (True, "")
    assert node.sessions >= 1
    assert node.opened >= 1
    assert node.rss_bytes > 1_000_000
    assert status.window.state == WindowState.WINDOW_STATE_OPEN
    (shard,) = status.shards
    assert shard.blocks_waiting >= 1
    assert shard.registered == len(platform.registered)
    assert [alarm.reason for alarm in status.alarms] == ["NO_RELAY"]


async def test_every_role_gets_what_the_table_gives_it_and_nothing_else(platform: Platform) -> None:
    """By default nobody: each role that exists, and one that does not, on the listener for certificates."""
    roles = sorted({role for roles in TABLE.values() for role in roles if role} | {"intruder"})
    for role in roles:
        files = platform.authority.issue(role, "somebody")
        async with platform.operations(files) as channel:
            operations: Any = OperationsServiceStub(channel)
            health: Any = health_pb2_grpc.HealthStub(channel)
            outcome = {
                "/pli.ops.v1.OperationsService/GetStatus": await refused(operations.GetStatus(GetStatusRequest())),
                "/grpc.health.v1.Health/Check": await refused(health.Check(health_pb2.HealthCheckRequest())),
            }
            ingest = RawSession(channel, platform.campaign_id, platform.codes[0])
            assert isinstance(await ingest.end(), Forbidden)
        for method, code in outcome.items():
            wanted = grpc.StatusCode.OK if role in TABLE[method] else grpc.StatusCode.PERMISSION_DENIED
            assert code is wanted, (role, method)


async def test_holders_of_codes_see_nothing_of_operations(platform: Platform) -> None:
    async with tls_channel(platform.address, platform.authority_pem) as channel:
        with pytest.raises(Forbidden):
            await status_by(channel)


async def test_a_certificate_does_not_change_who_one_is_where_none_is_asked_for(platform: Platform) -> None:
    credentials = client_credentials(platform.authority_pem, platform.operator)
    async with grpc.aio.secure_channel(platform.address, credentials, OWN_CONNECTION) as channel:
        with pytest.raises(Forbidden):
            await status_by(channel)


@pytest.mark.parametrize("method", ["/pli.ingest.v1.IngestService/Nothing", "/pli.vault.v1.DepositService/Deposit"])
async def test_a_method_that_is_not_served_is_unimplemented(platform: Platform, method: str) -> None:
    async with tls_channel(platform.address, platform.authority_pem) as channel:
        call: Any = channel.unary_unary(method)
        assert await refused(call(b"", timeout=10)) is grpc.StatusCode.UNIMPLEMENTED


async def handshake(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """The status of one health check with these credentials, None for plaintext."""
    options = OWN_CONNECTION
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options)
    async with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return await refused(stub.Check(health_pb2.HealthCheckRequest(), timeout=10))


async def test_without_a_certificate_of_our_authority_nobody_reaches_operations(
    platform: Platform, tmp_path: Path
) -> None:
    address, trusted = platform.nodes[0].operations_address, platform.authority_pem
    stranger: TlsFiles = DevelopmentAuthority(tmp_path / "other").issue(OPERATOR, "operator-1")
    assert await handshake(address, client_credentials(trusted, platform.operator)) is grpc.StatusCode.OK
    assert await handshake(address, client_credentials(trusted)) is grpc.StatusCode.UNAVAILABLE
    assert await handshake(address, client_credentials(trusted, stranger)) is grpc.StatusCode.UNAVAILABLE
    assert await handshake(address, None) is grpc.StatusCode.UNAVAILABLE


async def test_nobody_speaks_to_the_node_without_tls_or_to_a_node_it_does_not_trust(
    platform: Platform, tmp_path: Path
) -> None:
    other = DevelopmentAuthority(tmp_path / "other")
    assert await handshake(platform.address, None) is grpc.StatusCode.UNAVAILABLE
    untrusting = client_credentials(other.authority_file.read_bytes())
    assert await handshake(platform.address, untrusting) is grpc.StatusCode.UNAVAILABLE


async def test_a_node_is_not_serving_until_bundle_window_and_key_are_there(tmp_path: Path) -> None:
    async with Platform(tmp_path, start_nodes=False) as platform:
        keys = platform.shards[0].keys
        redis = platform.store.connect("relay")
        held = await redis.get(keys.bundle)
        await redis.set(keys.loaded, 0)
        await platform.add_node(wait=False)
        assert await platform.health() == NOT_SERVING

        async def why() -> str:
            return next((str(row["why"]) for row in (await platform.workers()).values()), "")

        async def waits_for_bundle() -> bool:
            return "bundle" in await why()

        await until(waits_for_bundle, "the node to say what it waits for")
        async with platform.session(platform.codes[0]) as session:
            with pytest.raises(PliError) as caught:
                await session.open()
            assert caught.value.reason == "UNAVAILABLE"
        assert held is not None
        await redis.set(keys.loaded, 1)
        await redis.aclose()
        await platform.healthy(serving=True)


async def test_a_bundle_that_the_vault_did_not_sign_is_not_served(tmp_path: Path) -> None:
    async with Platform(tmp_path, start_nodes=False) as platform:
        keys = platform.shards[0].keys
        redis = platform.store.connect("relay")
        genuine = await redis.get(keys.bundle)
        assert isinstance(genuine, bytes)
        await redis.set(keys.bundle, genuine[:-1] + bytes((genuine[-1] ^ 1,)))
        await platform.add_node(wait=False)

        async def complains() -> bool:
            return "wrong signature" in platform.nodes[0].process.output()

        await until(complains, "the node to refuse the bundle")
        assert await platform.health() == NOT_SERVING
        await redis.set(keys.bundle, genuine)
        await redis.aclose()
        await platform.healthy(serving=True)


async def test_new_certificates_are_taken_without_a_restart(platform: Platform) -> None:
    node = platform.nodes[0]
    files = TlsFiles(
        certificate_file=platform.directory / "certificates" / f"{INGEST}-{node.name}.pem",
        key_file=platform.directory / "certificates" / f"{INGEST}-{node.name}.key",
        authority_file=platform.authority_file,
    )
    async with platform.session(platform.codes.pop()) as running:
        await running.open()
        files.key_file.unlink()
        platform.authority.issue(INGEST, node.name, ("127.0.0.1", "localhost", os.uname().nodename))
        async with platform.session(platform.codes.pop()) as session:
            await session.open()
        await running.choose("A")
        await running.acked()


async def test_many_who_watch_a_stalled_spool_do_not_hold_up_answers(platform: Platform) -> None:
    """They share few connections to the spool among themselves, and none with the commits."""
    store = platform.store.process
    assert store is not None
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(platform.operations(platform.operator)) for _ in range(3)]
        session = await stack.enter_async_context(platform.session(platform.codes.pop()))
        await session.open()
        store.send(signal.SIGSTOP)
        watching = [asyncio.create_task(status_by(channel)) for _ in range(90) for channel in channels]

        async def most_were_turned_away() -> bool:
            return sum(watch.done() for watch in watching) >= 100

        try:
            await until(most_were_turned_away, "the watchers to wait or to be refused")
            await session.choose("A")
            # By the time that these have come back, the worker has tried to commit.
            for _ in range(5):
                await platform.health()
        finally:
            store.send(signal.SIGCONT)
        await session.acked()
        await asyncio.gather(*watching, return_exceptions=True)
    assert "commit_repeated" not in platform.nodes[0].process.output()
    assert platform.nodes[0].faults() == []

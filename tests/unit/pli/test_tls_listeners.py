"""Listeners: which TLS they speak, whom they let in, and new certificates without a restart."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pli.development_ca import DevelopmentAuthority
from pli.errors import ConfigError
from pli.rpc.client import channel
from pli.rpc.server import Health, Limits, make_server
from pli.tls import TlsFiles, client_credentials, server_credentials
from tests.unit.pli.certificates import Authority, uris
from tests.unit.pli.tls_hello import (
    SECP256R1,
    TLS_1_0,
    TLS_1_1,
    TLS_1_2,
    TLS_1_3,
    X25519,
    X25519MLKEM768,
    ServerHello,
    answer_to,
    client_hello,
    read_answer,
    tapped,
)

LOOPBACK = ("127.0.0.1",)
CHECK = health_pb2.HealthCheckRequest()
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def listening(files: TlsFiles, *, ask_for_certificate: bool = False) -> AsyncIterator[int]:
    health = Health()
    await health.start()
    server = make_server(Limits(), [], health)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(files, ask_for_certificate=ask_for_certificate))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def gets_through(port: int, authority: bytes, files: TlsFiles | None = None) -> bool:
    """Whether a call arrives at all; what it may do is another question."""
    async with channel(f"127.0.0.1:{port}", client_credentials(authority, files)) as open_channel:
        try:
            response = await health_pb2_grpc.HealthStub(open_channel).Check(CHECK, timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        assert response.status == NOT_SERVING
        return True


def swap(new: TlsFiles, old: TlsFiles) -> None:
    """Puts a pair in the place of another, each file at once."""
    new.key_file.replace(old.key_file)
    new.certificate_file.replace(old.certificate_file)


async def served_certificate(port: int) -> x509.Certificate:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der)
    finally:
        writer.close()


def certificate(files: TlsFiles) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.certificate_file.read_bytes())


# Versions and key exchange


async def test_old_versions_of_tls_are_refused(tmp_path: Path) -> None:
    files = DevelopmentAuthority(tmp_path).issue("ingest", "a", LOOPBACK)
    groups = (X25519, SECP256R1)
    async with listening(files) as port:
        answers = {
            version: await answer_to(port, client_hello(version, groups))
            for version in (TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3)
        }
    assert answers[TLS_1_0] is answers[TLS_1_1] is None
    assert answers[TLS_1_2] == ServerHello(TLS_1_2, None), "the same hello is answered when it offers 1.2"
    assert answers[TLS_1_3] == ServerHello(TLS_1_3, X25519)


async def test_two_pli_processes_agree_on_the_post_quantum_key_exchange_by_themselves(tmp_path: Path) -> None:
    files = DevelopmentAuthority(tmp_path).issue("ingest", "a", LOOPBACK)
    async with listening(files) as port:
        async with tapped(port) as tap:
            assert await gets_through(tap.port, files.authority_file.read_bytes())
        demanded = await answer_to(port, client_hello(TLS_1_3, (X25519MLKEM768, X25519)))
    assert [read_answer(answer) for answer in tap.answers] == [ServerHello(TLS_1_3, X25519MLKEM768)]
    assert demanded == ServerHello(TLS_1_3, X25519MLKEM768)


async def test_plaintext_on_a_tls_port_gets_no_answer(tmp_path: Path) -> None:
    files = DevelopmentAuthority(tmp_path).issue("ingest", "a", LOOPBACK)
    async with listening(files) as port:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as open_channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_pb2_grpc.HealthStub(open_channel).Check(CHECK, timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert await gets_through(port, files.authority_file.read_bytes())


# Who is let in


async def test_the_listener_for_pupils_asks_for_no_certificate_and_proves_itself(tmp_path: Path) -> None:
    files = DevelopmentAuthority(tmp_path / "a").issue("ingest", "a", LOOPBACK)
    stranger = DevelopmentAuthority(tmp_path / "b")
    elsewhere = DevelopmentAuthority(tmp_path / "c").issue("ingest", "a", ("192.0.2.1",))
    async with listening(files) as port, listening(elsewhere) as elsewhere_port:
        assert await gets_through(port, files.authority_file.read_bytes())
        assert not await gets_through(port, stranger.authority_file.read_bytes())
        assert not await gets_through(elsewhere_port, elsewhere.authority_file.read_bytes()), "other host in the SAN"


CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@pytest.mark.parametrize(
    ("shifted", "usages", "enters"),
    [
        (timedelta(), [CLIENT], True),
        (timedelta(), [CLIENT, SERVER], True),
        (timedelta(), [SERVER], False),
        (timedelta(days=-2), [CLIENT], False),
        (timedelta(days=2), [CLIENT], False),
    ],
    ids=["client", "both", "server certificate", "expired", "not yet valid"],
)
async def test_the_listener_for_processes_lets_in_valid_client_certificates(
    tmp_path: Path, shifted: timedelta, usages: Sequence[x509.ObjectIdentifier], enters: bool
) -> None:
    development = DevelopmentAuthority(tmp_path / "server").issue("vault", "v", LOOPBACK)
    clients = Authority.new()
    caller = clients.files(tmp_path / "client", uris("spiffe://pli/relay/r"), shifted=shifted, usages=usages)
    trusting = development.model_copy(update={"authority_file": caller.authority_file})
    async with listening(trusting, ask_for_certificate=True) as port:
        assert await gets_through(port, development.authority_file.read_bytes(), caller) == enters


async def test_the_listener_for_processes_refuses_none_and_those_of_other_authorities(tmp_path: Path) -> None:
    authority = DevelopmentAuthority(tmp_path / "a")
    files = authority.issue("vault", "v", LOOPBACK)
    trusted = authority.authority_file.read_bytes()
    imitation = Authority.new("pli development authority")
    async with listening(files, ask_for_certificate=True) as port:
        assert await gets_through(port, trusted, authority.issue("relay", "r"))
        assert not await gets_through(port, trusted)
        assert not await gets_through(port, trusted, imitation.files(tmp_path / "b", uris("spiffe://pli/relay/r")))


# New certificates


async def test_a_new_certificate_is_served_without_a_restart_and_running_streams_go_on(tmp_path: Path) -> None:
    authority = DevelopmentAuthority(tmp_path)
    files, new = authority.issue("ingest", "a", LOOPBACK), authority.issue("ingest", "b", LOOPBACK)
    first, second = certificate(files), certificate(new)
    trusted = authority.authority_file.read_bytes()
    async with (
        listening(files) as port,
        channel(f"127.0.0.1:{port}", client_credentials(trusted)) as old_channel,
    ):
        watch = health_pb2_grpc.HealthStub(old_channel).Watch(CHECK)
        assert (await watch.read()).status == NOT_SERVING
        assert await served_certificate(port) == first
        swap(new, files)
        assert await served_certificate(port) == second
        assert await gets_through(port, trusted)
        assert not watch.done(), "the stream that runs under the old certificate goes on"
        assert (await health_pb2_grpc.HealthStub(old_channel).Check(CHECK)).status == NOT_SERVING
        watch.cancel()


async def test_a_half_replaced_pair_leaves_the_old_one_in_use_until_it_is_whole(tmp_path: Path) -> None:
    authority = DevelopmentAuthority(tmp_path)
    files, new = authority.issue("ingest", "a", LOOPBACK), authority.issue("ingest", "b", LOOPBACK)
    first, second = certificate(files), certificate(new)
    async with listening(files) as port:
        new.certificate_file.replace(files.certificate_file)
        assert await served_certificate(port) == first, "a certificate without its key"
        files.key_file.unlink()
        assert await served_certificate(port) == first, "no key at all"
        files.key_file.touch(0o644)
        assert await served_certificate(port) == first, "a key that is open to others"
        new.key_file.replace(files.key_file)
        assert await served_certificate(port) == second


async def test_a_listener_takes_a_new_authority_for_its_callers(tmp_path: Path) -> None:
    old, new = DevelopmentAuthority(tmp_path / "old"), DevelopmentAuthority(tmp_path / "new")
    files, server_authority = old.issue("vault", "v", LOOPBACK), old.authority_file.read_bytes()
    before, after = old.issue("relay", "r"), new.issue("relay", "r")
    async with listening(files, ask_for_certificate=True) as port:
        assert await gets_through(port, server_authority, before)
        assert not await gets_through(port, server_authority, after)
        replacement = tmp_path / "replacement.pem"
        replacement.write_bytes(new.authority_file.read_bytes())
        replacement.replace(files.authority_file)
        assert await gets_through(port, server_authority, after)
        assert not await gets_through(port, server_authority, before)


# Files


@pytest.mark.parametrize("missing", ["certificate_file", "key_file", "authority_file"])
def test_a_missing_file_stops_the_start_with_its_name(tmp_path: Path, missing: str) -> None:
    files = DevelopmentAuthority(tmp_path).issue("ingest", "a", LOOPBACK)
    path: Path = getattr(files, missing)
    path.unlink()
    with pytest.raises(ConfigError, match=f"{path} cannot be read"):
        server_credentials(files, ask_for_certificate=True)


def test_a_key_open_to_others_stops_the_start(tmp_path: Path) -> None:
    files = DevelopmentAuthority(tmp_path).issue("ingest", "a", LOOPBACK)
    files.key_file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 0400"):
        server_credentials(files, ask_for_certificate=False)
    with pytest.raises(ConfigError, match="chmod 0400"):
        client_credentials(b"", files)


def test_the_key_of_the_development_authority_is_on_no_disk(tmp_path: Path) -> None:
    DevelopmentAuthority(tmp_path).issue("ingest", "a", LOOPBACK)
    keys = [path for path in tmp_path.rglob("*") if b"PRIVATE KEY" in path.read_bytes()]
    assert [path.name for path in keys] == ["ingest-a.key"]
    assert not os.access(keys[0], os.X_OK)

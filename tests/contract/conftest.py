"""One store per kind of server for the whole suite; each test has a campaign of its own in it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.contract.shard import Shard
from tests.support.stores import ProgramStore, programs

KINDS = ("valkey", "redis")


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=KINDS)
async def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ProgramStore]:
    """A running store of this kind."""
    binary = programs().get(request.param)
    if binary is None:
        pytest.skip(f"not run: no {request.param}-server on this machine")
    running = ProgramStore(tmp_path_factory.mktemp(request.param), binary)
    try:
        await running.start()
        yield running
    finally:
        await running.aclose()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def clients(store: ProgramStore) -> AsyncIterator[tuple[Any, Any]]:
    """Connections of an ingest node and of a relay."""
    ingest, relay = store.connect("ingest"), store.connect("relay")
    yield ingest, relay
    await ingest.aclose()
    await relay.aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def shard(store: ProgramStore, clients: tuple[Any, Any]) -> Shard:
    """A fresh campaign, its window open."""
    fresh = Shard(store, f"c-{os.urandom(6).hex()}", *clients)
    await fresh.prepare()
    return fresh

"""Fixtures that start platforms. Registered in tests/conftest.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.platform import Platform


@pytest_asyncio.fixture(loop_scope="session")
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    """A platform of one node and one worker for this test alone, its window open."""
    async with Platform(tmp_path, pupils=8, classes=(3,), revoked=1) as running:
        await running.open_window()
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def platform_of_module(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """One platform for a whole module, its window open; every test takes codes of its own."""
    async with Platform(tmp_path_factory.mktemp("platform"), pupils=120, classes=(3, 3, 3, 3), revoked=1) as running:
        await running.open_window()
        yield running

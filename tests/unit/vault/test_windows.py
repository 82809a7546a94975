"""Orders about the window: signed, rising, final once closed, and never later than was said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from pli.errors import IntegrityError, StateError
from pli.signing import BUNDLE, WINDOW, verify
from pli.vault.v1.bundle_pb2 import Signed, WindowOrder, WindowPhase
from tests.support.vault_parts import CAMPAIGN, NOW_MS, VaultParts, vault_parts
from vault.store.campaign_tables import SHARDS
from vault.windows import UNSCHEDULED, Window, give_order, next_version, read_order, window_of

READY = WindowPhase.WINDOW_PHASE_READY
OPEN = WindowPhase.WINDOW_PHASE_OPEN
CLOSING = WindowPhase.WINDOW_PHASE_CLOSING
CLOSED = WindowPhase.WINDOW_PHASE_CLOSED

MINUTE = 60_000
Give = Callable[..., WindowOrder]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[VaultParts]:
    with vault_parts(tmp_path) as parts:
        yield parts


@pytest.fixture
async def give(parts: VaultParts) -> Give:
    """Puts an order in force, in a transaction of its own."""
    await parts.create()

    def give(version: int, phase: WindowPhase.ValueType, window: Window = UNSCHEDULED) -> WindowOrder:
        campaign = parts.campaign()
        parts.database.write_now(
            lambda connection: give_order(connection, parts.answers, campaign, version, phase, window)
        )
        order = read_order(parts.campaign())
        assert order is not None
        return order

    return give


async def test_an_order_is_signed_for_its_purpose_by_the_campaigns_key(parts: VaultParts, give: Give) -> None:
    order = give(1, READY, Window(1, 2, 3))
    signed = Signed.FromString(parts.campaign().window_order)
    key = parts.answers.signing.public_key()
    assert WindowOrder.FromString(verify(key, WINDOW, signed)) == order
    assert (order.campaign_id, order.version, order.phase) == (CAMPAIGN, 1, READY)
    assert (order.opens_at_ms, order.closes_at_ms, order.grace_ms) == (1, 2, 3)
    with pytest.raises(IntegrityError):
        verify(key, BUNDLE, signed)


async def test_a_campaign_has_no_order_before_publication(parts: VaultParts) -> None:
    campaign = await parts.create()
    assert read_order(campaign) is None
    assert window_of(read_order(campaign)) == UNSCHEDULED


async def test_versions_only_rise(parts: VaultParts, give: Give) -> None:
    give(3, OPEN)
    with pytest.raises(StateError, match=r"order 3 .* order 2 comes too late"):
        give(2, CLOSING)
    with pytest.raises(StateError):
        give(3, CLOSING)
    assert read_order(parts.campaign()) == give(3, OPEN)


async def test_the_same_order_again_changes_nothing(parts: VaultParts, give: Give) -> None:
    give(1, OPEN, Window(1, 0, 0))
    before = parts.campaign().window_order
    give(1, OPEN, Window(2, 0, 0))
    assert parts.campaign().window_order == before


async def test_nothing_follows_an_order_to_close_for_ever(give: Give) -> None:
    give(4, CLOSED)
    with pytest.raises(StateError, match="in force"):
        give(5, OPEN)
    assert give(4, CLOSED).version == 4


async def test_the_next_version_is_above_what_the_platform_follows(parts: VaultParts, give: Give) -> None:
    give(2, OPEN)
    assert parts.database.read_now(lambda connection: next_version(connection, parts.campaign())) == 3
    # A vault restored from an older backup finds a platform that is ahead of it.
    parts.database.write_now(lambda connection: connection.execute(update(SHARDS).values(window_version=9)))
    assert parts.database.read_now(lambda connection: next_version(connection, parts.campaign())) == 10


@pytest.mark.parametrize(
    ("held", "grace_ms", "closes_at_ms", "ends_at_ms"),
    [
        pytest.param(UNSCHEDULED, 5_000, NOW_MS, NOW_MS + 5_000, id="not scheduled: from now on"),
        pytest.param(UNSCHEDULED, 0, NOW_MS, NOW_MS, id="without grace"),
        pytest.param(Window(1, NOW_MS + MINUTE, 5_000), 9_000, NOW_MS, NOW_MS + 9_000, id="before the schedule"),
        pytest.param(Window(1, NOW_MS + 1_000, 5_000), MINUTE, NOW_MS, NOW_MS + 6_000, id="never later than scheduled"),
        pytest.param(Window(1, NOW_MS - 1_000, MINUTE), 5_000, NOW_MS - 1_000, NOW_MS + 5_000, id="a shorter grace"),
        pytest.param(
            Window(1, NOW_MS - MINUTE, 5_000), MINUTE, NOW_MS - MINUTE, NOW_MS - MINUTE + 5_000, id="ended already"
        ),
    ],
)
def test_closing_by_hand_never_lengthens_a_window(
    held: Window, grace_ms: int, closes_at_ms: int, ends_at_ms: int
) -> None:
    window = held.closed_by_hand(NOW_MS, grace_ms)
    assert (window.closes_at_ms, window.ends_at_ms) == (closes_at_ms, ends_at_ms)
    assert window.opens_at_ms == held.opens_at_ms


def test_closing_by_hand_twice_comes_to_the_same_end() -> None:
    first = UNSCHEDULED.closed_by_hand(NOW_MS, 0)
    assert first.closed_by_hand(NOW_MS + MINUTE, 0) == first


def test_only_a_scheduled_window_ends() -> None:
    assert not UNSCHEDULED.has_ended(NOW_MS)
    assert not Window(1, NOW_MS - 5_000, 5_001).has_ended(NOW_MS)
    assert Window(1, NOW_MS - 5_000, 5_000).has_ended(NOW_MS)

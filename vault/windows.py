"""Orders about the window: what the spool lets through from now on, signed, each of a higher version.

The spool keeps the highest version it was given and decides by its own clock: past closes_at + grace it
refuses every commit, whether or not a later order reached it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, update

from pli.errors import StateError
from pli.signing import WINDOW, sign
from pli.vault.v1.bundle_pb2 import Signed, WindowOrder, WindowPhase
from vault.campaigns import Campaign
from vault.keyring import AnswerKeys
from vault.store.campaign_tables import CAMPAIGNS
from vault.sync import load_shards

NO_TIME = 0
"""Of a time in an order: not scheduled."""


@dataclass(frozen=True, slots=True)
class Window:
    """When a window opens and closes: Unix ms and ms, 0 = not scheduled."""

    opens_at_ms: int = NO_TIME
    closes_at_ms: int = NO_TIME
    grace_ms: int = 0

    @property
    def ends_at_ms(self) -> int:
        """From this moment on nothing is let in; meaningless when no close is scheduled."""
        return self.closes_at_ms + self.grace_ms

    def has_ended(self, now_ms: int) -> bool:
        """Whether closes_at and the grace after it have passed."""
        return self.closes_at_ms != NO_TIME and now_ms >= self.ends_at_ms

    def closed_by_hand(self, now_ms: int, grace_ms: int) -> Window:
        """This window, closed now with a grace for sessions that have started.

        Never later than it would have closed anyway: clients may have been told the end already.
        """
        closes_at_ms, ends_at_ms = now_ms, now_ms + grace_ms
        if self.closes_at_ms != NO_TIME:
            closes_at_ms, ends_at_ms = min(closes_at_ms, self.closes_at_ms), min(ends_at_ms, self.ends_at_ms)
        return Window(self.opens_at_ms, closes_at_ms, ends_at_ms - closes_at_ms)


UNSCHEDULED = Window()


def read_order(campaign: Campaign) -> WindowOrder | None:
    """The order in force; None before publication."""
    if not campaign.window_version:
        return None
    return WindowOrder.FromString(Signed.FromString(campaign.window_order).body)


def window_of(order: WindowOrder | None) -> Window:
    """The times of an order."""
    return UNSCHEDULED if order is None else Window(order.opens_at_ms, order.closes_at_ms, order.grace_ms)


def next_version(connection: Connection, campaign: Campaign) -> int:
    """Above every version that was ever given, also by a vault whose database was lost since."""
    followed = [shard.window_version for shard in load_shards(connection, campaign.campaign_id)]
    return max(campaign.window_version, *followed) + 1


def give_order(
    connection: Connection,
    keys: AnswerKeys,
    campaign: Campaign,
    version: int,
    phase: WindowPhase.ValueType,
    window: Window,
) -> None:
    """Signs an order and puts it in force; the same version again changes nothing.

    Raises:
        StateError: a higher version is in force, or the window was closed for ever.
    """
    held = read_order(campaign)
    if held is not None and held.version == version and held.phase == phase:
        return
    if held is not None and (held.version >= version or held.phase == WindowPhase.WINDOW_PHASE_CLOSED):
        raise StateError(
            f"order {held.version} about the window of campaign {campaign.campaign_id} is in force; "
            f"order {version} comes too late"
        )
    order = WindowOrder(
        campaign_id=campaign.campaign_id,
        version=version,
        phase=phase,
        opens_at_ms=window.opens_at_ms,
        closes_at_ms=window.closes_at_ms,
        grace_ms=window.grace_ms,
    )
    signed = sign(keys.signing, WINDOW, order.SerializeToString(deterministic=True))
    connection.execute(
        update(CAMPAIGNS)
        .where(CAMPAIGNS.c.campaign_id == campaign.campaign_id)
        .values(window_version=version, window_order=signed.SerializeToString())
    )

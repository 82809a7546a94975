"""Where a campaign stands, and in sentences why it does not stand further yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection

from pli.vault.v1.bundle_pb2 import WindowOrder, WindowPhase
from vault.campaigns import Campaign, find
from vault.drain import Drain
from vault.publication import missing
from vault.states import State
from vault.sync import Shard, load_shards
from vault.transitions import Transition, open_transition
from vault.windows import NO_TIME, read_order, window_of


@dataclass(frozen=True, slots=True)
class CampaignStatus:
    """`waiting_for` says why the next state is not reached; empty when nothing but a person's word is
    missing. `spool_left` counts entries in the platform's streams as relays last said.
    """

    state: State
    window: WindowOrder | None
    waiting_for: list[str]
    spool_left: int


def read_status(connection: Connection, campaign_id: str, drain: Drain, now_ms: int, *, locked: bool) -> CampaignStatus:
    """The status. `locked`: whether the answers are locked, so that no order can be signed.

    Raises:
        NotFound: there is no such campaign.
    """
    campaign = find(connection, campaign_id)
    shards = load_shards(connection, campaign_id)
    return CampaignStatus(
        state=State(campaign.state),
        window=read_order(campaign),
        waiting_for=list(_waiting_for(connection, campaign, shards, drain, now_ms, locked=locked)),
        spool_left=sum(shard.blocks_waiting for shard in shards),
    )


def _waiting_for(
    connection: Connection, campaign: Campaign, shards: list[Shard], drain: Drain, now_ms: int, *, locked: bool
) -> Iterator[str]:
    state = State(campaign.state)
    pending = open_transition(connection, campaign.campaign_id)
    if locked and _needs_keys(campaign, pending, now_ms):
        yield "an order about the window is due and the answers are locked: KeyService.Unlock"
    if state in (State.CLOSED, State.DRAINED):
        yield from drain.missing(connection, campaign.campaign_id)
        return
    for shard in shards:
        if shard.exchanged:
            yield (
                f"shard {shard.shard}: the relay has another store than the one that was adopted; "
                "restore that one: no other is taken"
            )
        if shard.window_version > campaign.window_version:
            yield (
                f"shard {shard.shard}: the platform follows order {shard.window_version} about the window, this "
                f"vault gave {campaign.window_version}; was an older database restored?"
            )
    if state is State.DRAFT and pending is None:
        yield from missing(connection, campaign.campaign_id) or ["the bundle is not published: CampaignService.Publish"]
    elif state is State.DRAFT:
        yield from _unloaded(campaign, shards)
    elif state is State.OPEN:
        yield from _unapplied(campaign, shards)
    elif state is State.CLOSING:
        yield from _unclosed(campaign, shards, now_ms)


def _needs_keys(campaign: Campaign, pending: Transition | None, now_ms: int) -> bool:
    """Whether the next thing to do is to sign."""
    if pending is not None:
        return campaign.window_version < pending.terms.window_version
    window = window_of(read_order(campaign))
    due = window.closes_at_ms != NO_TIME and now_ms >= window.closes_at_ms
    return (campaign.state == State.OPEN and due) or (campaign.state == State.CLOSING and window.has_ended(now_ms))


def _unloaded(campaign: Campaign, shards: list[Shard]) -> Iterator[str]:
    for shard in shards:
        if not shard.marker:
            yield f"shard {shard.shard}: no relay has reported it yet; is one running for this campaign?"
    if campaign.bundle_loaded < campaign.bundle_version:
        yield f"bundle {campaign.bundle_version} is not loaded in every shard yet; the relay does that"
    yield from _unapplied(campaign, shards)


def _unapplied(campaign: Campaign, shards: list[Shard]) -> Iterator[str]:
    for shard in shards:
        if shard.marker and shard.window_version < campaign.window_version:
            yield f"shard {shard.shard}: order {campaign.window_version} about the window has not reached it yet"


def _unclosed(campaign: Campaign, shards: list[Shard], now_ms: int) -> Iterator[str]:
    order = read_order(campaign)
    window = window_of(order)
    if order is not None and order.phase == WindowPhase.WINDOW_PHASE_CLOSED:
        for shard in shards:
            if not shard.closed:
                yield f"shard {shard.shard}: it has not closed yet; the relay does that"
    elif not window.has_ended(now_ms):
        end = datetime.fromtimestamp(window.ends_at_ms / 1000, UTC).isoformat(timespec="seconds")
        yield f"sessions that have started may finish until {end}"

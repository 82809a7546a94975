"""What the platform has applied, as relays report it, against what this vault wants.

Nothing here is proof: the platform says it. Proof is what the drain finds in the landing log.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy import Connection, select, update

from pli.closings import MARKER_BYTES
from pli.errors import InputError
from pli.vault.v1.bundle_pb2 import Signed
from pli.vault.v1.deposit_pb2 import ShardState, SyncRequest, SyncResponse
from vault.campaigns import Campaign, find
from vault.store.campaign_tables import CAMPAIGNS, SHARDS

MAX_REPORTED = (1 << 62) - 1
"""What fits into a database's signed integers; no honest count or version comes near."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Shard:
    """One row of `shards`: what the relay said last, and which store this campaign was begun with."""

    shard: int
    marker: bytes
    reported_marker: bytes
    window_version: int
    blocks_waiting: int
    closed: bool
    reported_at_ms: int

    @property
    def exchanged(self) -> bool:
        """Whether the relay found another store than the one that was adopted."""
        return self.marker != b"" and self.reported_marker != self.marker


def load_shards(connection: Connection, campaign_id: str) -> list[Shard]:
    """The shards of a campaign, in order."""
    columns = SHARDS.c
    rows = connection.execute(
        select(SHARDS).where(columns.campaign_id == campaign_id).order_by(columns.shard)
    ).mappings()
    return [Shard(**{name: value for name, value in row.items() if name != "campaign_id"}) for row in rows]


def synchronise(connection: Connection, request: SyncRequest, now_ms: int) -> SyncResponse:
    """Records a report and answers what the vault wants.

    The first store that is reported for a shard is adopted. Another one later is an incident: nothing
    of its state is taken, and the answer names the known marker, so that the relay refuses it.

    Raises:
        NotFound: there is no such campaign.
        InputError: the report does not fit the campaign's shards; nothing of it was taken.
    """
    campaign = find(connection, request.campaign_id)
    _check(campaign, request)
    for known, state in zip(load_shards(connection, campaign.campaign_id), request.shards, strict=True):
        _take(connection, campaign, known, state, now_ms)
    shards = load_shards(connection, campaign.campaign_id)
    if all(shard.marker and not shard.exchanged for shard in shards):
        _take_bundle(connection, campaign, request.bundle_version)
    window = Signed.FromString(campaign.window_order) if campaign.window_version else None
    return SyncResponse(
        bundle_version=campaign.bundle_version,
        window=window,
        markers=[shard.marker for shard in shards],
        state=campaign.state,
    )


def _check(campaign: Campaign, request: SyncRequest) -> None:
    if len(request.shards) != campaign.shards:
        raise InputError(
            f"campaign {campaign.campaign_id} has {campaign.shards} shards, this relay reports "
            f"{len(request.shards)}; correct `shards` in its configuration"
        )
    for shard, state in enumerate(request.shards):
        if len(state.marker) not in (0, MARKER_BYTES):
            raise InputError(f"the marker of shard {shard} has {len(state.marker)} bytes instead of {MARKER_BYTES}")
        if max(state.window_version, state.blocks_waiting) > MAX_REPORTED:
            raise InputError(f"shard {shard} reports a number that cannot be")


def _take(connection: Connection, campaign: Campaign, known: Shard, state: ShardState, now_ms: int) -> None:
    adopted = known.marker or state.marker
    values: dict[str, object] = {"reported_marker": state.marker, "reported_at_ms": now_ms, "marker": adopted}
    if state.marker != adopted:
        if state.marker != known.reported_marker:
            what = "another store" if state.marker else "an empty store"
            log.error("store_exchanged", campaign=campaign.campaign_id, shard=known.shard, why=f"the relay has {what}")
    elif known.closed and not state.closed:
        # A late report of another relay, or a store that was set back: what was closed stays closed.
        log.warning("report_out_of_date", campaign=campaign.campaign_id, shard=known.shard)
    elif adopted:
        if state.window_version > campaign.window_version >= known.window_version:
            why = "the platform follows an order that this vault never gave: was an older database restored?"
            log.error("vault_set_back", campaign=campaign.campaign_id, shard=known.shard, why=why)
        values |= {
            "window_version": state.window_version,
            "blocks_waiting": state.blocks_waiting,
            "closed": state.closed,
        }
    columns = SHARDS.c
    place = (columns.campaign_id == campaign.campaign_id, columns.shard == known.shard)
    connection.execute(update(SHARDS).where(*place).values(**values))


def _take_bundle(connection: Connection, campaign: Campaign, loaded: int) -> None:
    if campaign.bundle_loaded < loaded <= campaign.bundle_version:
        connection.execute(
            update(CAMPAIGNS).where(CAMPAIGNS.c.campaign_id == campaign.campaign_id).values(bundle_loaded=loaded)
        )

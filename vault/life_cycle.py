"""The life cycle of a campaign: one state machine (DESIGN 8).

    DRAFT ──publish──▶ READY ──open──▶ OPEN ──close──▶ CLOSING ──▶ CLOSED ──▶ DRAINED

    step            is carried out by                     has arrived when
    to READY        bundle and order READY are signed     every shard has loaded and follows both
    to OPEN         order OPEN is signed                  at once: from then on pupils may be let in
    to CLOSING      order CLOSING is signed               at once; by hand or at closes_at
    to CLOSED       order CLOSED is signed                every shard has flipped; after the grace
    to DRAINED      (the relay's and landing's work)      vault/drain.py finds nothing missing

Each step's intent is on disk with its terms before anything is signed, and its outcome afterwards
(vault/transitions.py). A step that was cut off anywhere is carried on with the same terms, by the next
tick or by the call repeated: every part of it finds out whether it was done already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from sqlalchemy import Connection, update

from pli.errors import InputError, PliError, StateError, VaultLocked
from pli.identity import Peer
from pli.vault.v1.bundle_pb2 import WindowPhase
from vault.audit import VAULT_ITSELF, Audit
from vault.campaign_status import CampaignStatus, read_status
from vault.campaigns import Campaign, find, list_campaigns
from vault.drain import Drain
from vault.keyring import AnswerKeys, KeyRing
from vault.publication import make_bundle, missing
from vault.states import State
from vault.store.campaign_tables import CAMPAIGNS
from vault.store.database import Database
from vault.sync import load_shards
from vault.transitions import Terms, Transition, finish, intend, open_transition
from vault.windows import NO_TIME, Window, give_order, next_version, read_order, window_of

FIRST_BUNDLE = 1
LATEST_MS = 253_402_300_799_999
"""The end of the year 9999: a later close is a mistake in units."""

MAX_GRACE_MS = 7 * 24 * 3600 * 1000
"""A week: a longer grace is a mistake in units, and would keep the window open unseen."""

_PHASES = {
    State.READY: WindowPhase.WINDOW_PHASE_READY,
    State.OPEN: WindowPhase.WINDOW_PHASE_OPEN,
    State.CLOSING: WindowPhase.WINDOW_PHASE_CLOSING,
    State.CLOSED: WindowPhase.WINDOW_PHASE_CLOSED,
}
"""The order that a step to this state gives."""

_ACTIONS = {
    State.READY: "publish",
    State.OPEN: "open-window",
    State.CLOSING: "close-window",
    State.CLOSED: "flip-window",
    State.DRAINED: "drain",
}
"""What the audit log calls a step."""

log = structlog.get_logger()


class LifeCycle:
    """Leads campaigns from state to state, one step at a time. One per vault process.

    `on_step` is told (campaign, state aimed at, "intended" or "carried out") after each is on disk;
    tests cut off there.
    """

    def __init__(
        self,
        database: Database,
        keyring: KeyRing,
        audit: Audit,
        clock_ms: Callable[[], int],
        late_grace_ms: int,
        tick_ms: int = 1_000,
        *,
        on_step: Callable[[str, State, str], None] = lambda _campaign_id, _state, _moment: None,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._audit = audit
        self._clock_ms = clock_ms
        self._late_grace_ms = late_grace_ms
        self._tick_ms = tick_ms
        self._on_step = on_step
        self._drain = Drain()
        self._turn = asyncio.Lock()
        self._announced: dict[str, int] = {}
        self._complaints: dict[str, str] = {}

    # What people ask for

    async def publish(self, campaign_id: str, actor: Peer) -> int:
        """Signs the bundle, and from then on nothing in it changes; returns its version.

        Raises:
            StateError: roster, instrument or codes are missing.
            VaultLocked: the answers are locked; nothing was begun.
        """

        def decide(connection: Connection, campaign: Campaign) -> Transition | None:
            if campaign.published:
                return None
            if lacking := missing(connection, campaign_id):
                raise StateError(f"campaign {campaign_id} cannot be published: {'; '.join(lacking)}")
            terms = Terms(actor, FIRST_BUNDLE, next_version(connection, campaign))
            return self._intend(connection, campaign, State.READY, terms)

        return (await self._ask(campaign_id, decide)).bundle_version

    async def open(self, campaign_id: str, closes_at_ms: int, actor: Peer) -> int:
        """Opens the window until `closes_at_ms` (Unix ms; 0: until told); returns the order's version.

        Raises:
            InputError: the time is not one, or has passed.
            StateError: the campaign is not READY, or is open with another end.
            VaultLocked: the answers are locked; nothing was begun.
        """
        if not 0 <= closes_at_ms <= LATEST_MS:
            raise InputError("closes_at_ms is no time a window could close; give Unix time in ms, or 0")

        def decide(connection: Connection, campaign: Campaign) -> Transition | None:
            now_ms = self._clock_ms()
            if campaign.state == State.OPEN:
                if window_of(read_order(campaign)).closes_at_ms == closes_at_ms:
                    return None
                raise StateError(f"campaign {campaign_id} is OPEN with another end; close it by hand when it is time")
            if campaign.state != State.READY:
                raise StateError(
                    f"campaign {campaign_id} is {campaign.state} and cannot be opened: {_not_ready(campaign)}"
                )
            if closes_at_ms != NO_TIME and closes_at_ms <= now_ms:
                raise InputError("closes_at_ms has passed already; give a later time, or 0")
            grace_ms = 0 if closes_at_ms == NO_TIME else self._late_grace_ms
            terms = Terms(actor, 0, next_version(connection, campaign), Window(now_ms, closes_at_ms, grace_ms))
            return self._intend(connection, campaign, State.OPEN, terms)

        return (await self._ask(campaign_id, decide)).window_version

    async def close(self, campaign_id: str, grace_ms: int, actor: Peer) -> int:
        """Closes the window, with a grace for sessions that have started; returns the order's version.

        While it is CLOSING an earlier end may be asked for; a later one changes nothing.

        Raises:
            InputError: the grace is negative or longer than a week.
            StateError: the window was never open.
            VaultLocked: the answers are locked; nothing was begun.
        """
        if not 0 <= grace_ms <= MAX_GRACE_MS:
            raise InputError(f"grace_ms is from 0 to {MAX_GRACE_MS} (a week); correct it")

        def decide(connection: Connection, campaign: Campaign) -> Transition | None:
            if campaign.state in (State.DRAFT, State.READY):
                raise StateError(
                    f"campaign {campaign_id} is {campaign.state}: its window is not open, there is nothing to close"
                )
            held = window_of(read_order(campaign))
            window = held.closed_by_hand(self._clock_ms(), grace_ms)
            if campaign.state != State.OPEN and not self._is_earlier(connection, campaign, window, held):
                return None
            terms = Terms(actor, 0, next_version(connection, campaign), window)
            return self._intend(connection, campaign, State.CLOSING, terms)

        return (await self._ask(campaign_id, decide)).window_version

    async def status(self, campaign_id: str) -> CampaignStatus:
        """Where the campaign stands. Needs no keys.

        Raises:
            NotFound: there is no such campaign.
        """
        locked = not self._is_unlocked(campaign_id)
        return await self._database.read(
            lambda connection: read_status(connection, campaign_id, self._drain, self._clock_ms(), locked=locked)
        )

    # What time and the platform bring about

    async def run(self) -> None:
        """Ticks until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(self._tick_ms / 1000)

    async def tick(self) -> None:
        """Leads every campaign as far as it can go now; one that cannot does not hold up the others."""
        try:
            campaigns = await self._database.read(list_campaigns)
        except PliError as error:
            self._complain("", error)
            return
        self._complaints.pop("", None)
        for campaign in campaigns:
            try:
                async with self._turn:
                    await self._advance(campaign.campaign_id)
            except PliError as error:
                self._complain(campaign.campaign_id, error)
            else:
                self._complaints.pop(campaign.campaign_id, None)

    async def _advance(self, campaign_id: str) -> None:
        """Carries on what is under way, and begins what is due, until neither is left."""
        while await self._carry_on(campaign_id):
            if await self._database.read(lambda connection: self._due(find(connection, campaign_id))) is None:
                return
            begun = await self._database.write(lambda connection: self._begin_due(connection, campaign_id))
            if begun is None:
                return
            await self._announce(begun)

    def _due(self, campaign: Campaign) -> State | None:
        """The state that time or the platform leads to next, if it is time."""
        window, now_ms = window_of(read_order(campaign)), self._clock_ms()
        if campaign.state == State.OPEN and window.closes_at_ms != NO_TIME and now_ms >= window.closes_at_ms:
            return State.CLOSING
        if campaign.state == State.CLOSING and window.has_ended(now_ms):
            return State.CLOSED
        return State.DRAINED if campaign.state == State.CLOSED else None

    def _begin_due(self, connection: Connection, campaign_id: str) -> Transition | None:
        campaign = find(connection, campaign_id)
        to_state = self._due(campaign)
        if to_state is None:
            return None
        if to_state is State.DRAINED:
            return self._intend(connection, campaign, to_state, Terms(VAULT_ITSELF))
        # A step that nothing can sign is not begun: it would stand in the way of a person's.
        self._keyring.answers(campaign_id)
        terms = Terms(VAULT_ITSELF, 0, next_version(connection, campaign), window_of(read_order(campaign)))
        return self._intend(connection, campaign, to_state, terms)

    # Steps

    async def _ask(self, campaign_id: str, decide: Callable[[Connection, Campaign], Transition | None]) -> Campaign:
        """Finishes what a crash left, lets `decide` begin a step, and carries that out."""
        async with self._turn:
            await self._database.read(lambda connection: find(connection, campaign_id))
            self._keyring.answers(campaign_id)
            await self._carry_on(campaign_id)
            begun = await self._database.write(lambda connection: decide(connection, find(connection, campaign_id)))
            if begun is not None:
                await self._announce(begun)
                await self._carry_on(campaign_id)
            return await self._database.read(lambda connection: find(connection, campaign_id))

    def _intend(self, connection: Connection, campaign: Campaign, to_state: State, terms: Terms) -> Transition:
        return intend(connection, campaign.campaign_id, State(campaign.state), to_state, terms, self._clock_ms())

    async def _announce(self, step: Transition, why: str = "") -> None:
        """The audit entry of a step, before it takes effect."""
        self._on_step(step.campaign_id, step.to_state, "intended")
        self._announced[step.campaign_id] = step.number
        purpose = f"{step.from_state} to {step.to_state}{why}"
        await self._audit.note(step.terms.actor, _ACTIONS[step.to_state], step.campaign_id, purpose)

    async def _carry_on(self, campaign_id: str) -> bool:
        """Carries out the step under way. False while it waits for the platform."""
        step, due = await self._database.read(lambda connection: self._under_way(connection, campaign_id))
        if step is None:
            return True
        if self._announced.get(campaign_id, 0) < step.number:
            await self._announce(step, ", carried on after a restart")
        if not due:
            return False
        keys = self._keyring.answers(campaign_id) if self._is_unlocked(campaign_id) else None
        arrived = await self._database.write(lambda connection: self._carry_out(connection, step, keys))
        self._on_step(campaign_id, step.to_state, "carried out")
        if arrived:
            log.info("state_reached", campaign=campaign_id, state=str(step.to_state))
            await self._audit.note(VAULT_ITSELF, "state", campaign_id, str(step.to_state))
        return arrived

    def _under_way(self, connection: Connection, campaign_id: str) -> tuple[Transition | None, bool]:
        """The open step, and whether there is something to write: waiting for the platform writes nothing."""
        step = open_transition(connection, campaign_id)
        if step is None:
            return None, False
        ordered = find(connection, campaign_id).window_version >= step.terms.window_version
        return step, not ordered or self._has_arrived(connection, step)

    def _carry_out(self, connection: Connection, step: Transition, keys: AnswerKeys | None) -> bool:
        campaign, terms = find(connection, step.campaign_id), step.terms
        if terms.window_version > campaign.window_version:
            if keys is None:
                raise VaultLocked(f"the answers of campaign {step.campaign_id} are locked: KeyService.Unlock")
            if terms.bundle_version > campaign.bundle_version:
                _store_bundle(connection, keys, campaign, terms.bundle_version)
            give_order(connection, keys, campaign, terms.window_version, _PHASES[step.to_state], terms.window)
        arrived = self._has_arrived(connection, step)
        if arrived:
            finish(connection, step, self._clock_ms())
        return arrived

    def _has_arrived(self, connection: Connection, step: Transition) -> bool:
        if step.to_state is State.DRAINED:
            return not self._drain.missing(connection, step.campaign_id)
        if step.to_state not in (State.READY, State.CLOSED):
            return True
        campaign, shards = find(connection, step.campaign_id), load_shards(connection, step.campaign_id)
        follows = all(
            shard.marker and not shard.exchanged and shard.window_version >= step.terms.window_version
            for shard in shards
        )
        if step.to_state is State.READY:
            return follows and campaign.bundle_loaded >= step.terms.bundle_version
        return follows and all(shard.closed for shard in shards)

    def _is_earlier(self, connection: Connection, campaign: Campaign, window: Window, held: Window) -> bool:
        """Whether CLOSING can still be cut short, and this does it."""
        under_way = open_transition(connection, campaign.campaign_id)
        return campaign.state == State.CLOSING and under_way is None and window.ends_at_ms < held.ends_at_ms

    def _is_unlocked(self, campaign_id: str) -> bool:
        try:
            self._keyring.answers(campaign_id)
        except VaultLocked:
            return False
        return True

    def _complain(self, campaign_id: str, error: PliError) -> None:
        """Says once what holds a campaign up; again when it is something else."""
        if self._complaints.get(campaign_id) != error.message:
            self._complaints[campaign_id] = error.message
            log.warning("life_cycle_waits", campaign=campaign_id, reason=error.reason, why=error.message)


def _store_bundle(connection: Connection, keys: AnswerKeys, campaign: Campaign, version: int) -> None:
    signed = make_bundle(connection, keys, campaign, version)
    connection.execute(
        update(CAMPAIGNS)
        .where(CAMPAIGNS.c.campaign_id == campaign.campaign_id)
        .values(bundle_version=version, bundle=signed.SerializeToString())
    )


def _not_ready(campaign: Campaign) -> str:
    if campaign.state != State.DRAFT:
        return "a window opens once"
    if campaign.published:
        return "the platform has not loaded it yet; see what it waits for: CampaignService.GetCampaign"
    return "publish it first: CampaignService.Publish"

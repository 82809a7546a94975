"""The life cycle: each step once, with its terms, whatever crashes; each state only when it is true."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import select

from pli.development_ca import DevelopmentAuthority
from pli.errors import InputError, NotFound, PliError, StateError, VaultLocked
from pli.identity import Peer
from pli.signing import BUNDLE, WINDOW, verify
from pli.vault.v1.bundle_pb2 import Bundle, Signed, WindowOrder, WindowPhase
from pli.vault.v1.deposit_pb2 import DepositReceipt
from tests.support.played_platform import PlayedPlatform
from tests.support.vault_parts import CAMPAIGN, NOW, NOW_MS, VaultParts, vault_parts
from vault.campaigns import create_campaign, make_terms
from vault.keystore import Scope
from vault.landing import Landing
from vault.life_cycle import MAX_GRACE_MS, LifeCycle
from vault.states import State
from vault.store.campaign_tables import TRANSITIONS
from vault.sync import synchronise
from vault.transitions import Terms, intend

ADMIN = Peer("campaign-admin", "ada")
LATE_GRACE_MS = 300_000
MINUTE = 60_000

DRAFT, READY, OPEN, CLOSING, CLOSED, DRAINED = State


class Crash(Exception):
    """Stands for kill -9 between two transactions: what is on disk stays, what is in memory is gone."""


class Office:
    """One campaign in a vault whose clock the test moves, and the platform that serves it."""

    def __init__(self, parts: VaultParts, authority: DevelopmentAuthority) -> None:
        self.parts = parts
        self.now_ms = NOW_MS
        self.crash_at: tuple[State, str] | None = None
        self.landing = Landing(parts.database, parts.keyring, self.clock)
        self.platform = PlayedPlatform(CAMPAIGN, parts.answers.answer.public_raw, authority, 2, self.clock)
        self.restart()

    def clock(self) -> int:
        return self.now_ms

    def restart(self) -> None:
        """A new process on the same database."""
        self.life_cycle = LifeCycle(
            self.parts.database,
            self.parts.keyring,
            self.parts.audit,
            self.clock,
            LATE_GRACE_MS,
            on_step=self._on_step,
        )

    def _on_step(self, campaign_id: str, state: State, moment: str) -> None:
        if (state, moment) == self.crash_at:
            self.crash_at = None
            raise Crash

    @property
    def state(self) -> State:
        return State(self.parts.campaign().state)

    @property
    def order(self) -> WindowOrder:
        """The order in force; its signature holds."""
        signed = Signed.FromString(self.parts.campaign().window_order)
        return WindowOrder.FromString(verify(self.parts.answers.signing.public_key(), WINDOW, signed))

    def sync(self, *, follow: bool = True, shards: list[int] | None = None) -> None:
        """The relay reports, does what is asked, and reports again."""
        for _ in range(2 if follow else 1):
            report = self.platform.report()
            response = self.parts.database.write_now(
                lambda connection, report=report: synchronise(connection, report, self.now_ms)  # type: ignore[misc]  # a default binds the loop's value
            )
            if follow:
                self.platform.follow(response, shards=shards)

    async def carry(self) -> None:
        """The relay deposits what waits, and removes it after the receipt."""
        for shard in self.platform.shards:
            request = self.platform.deposit(shard.number)
            if request is not None:
                receipt = DepositReceipt.FromString((await self.landing.deposit(request)).receipt.body)
                assert all(receipt.closings)
                self.platform.forget(shard.number)

    async def lead_to(self, state: State) -> None:
        """Takes the straight path to a state."""
        states = list(State)
        await self.reach(*states[1 : states.index(state) + 1])
        assert self.state is state

    async def reach(self, *states: State) -> None:
        """What people, time and the platform do for these steps, each from the state before it."""
        for state in states:
            if state is READY:
                await self.life_cycle.publish(CAMPAIGN, ADMIN)
            elif state is OPEN:
                await self.life_cycle.open(CAMPAIGN, 0, ADMIN)
            elif state is CLOSING:
                await self.life_cycle.close(CAMPAIGN, MINUTE, ADMIN)
            elif state is CLOSED:
                self.now_ms = max(self.now_ms, NOW_MS + MINUTE)
                await self.life_cycle.tick()
            else:
                await self.carry()
            self.sync()
            await self.life_cycle.tick()

    async def waiting_for(self) -> list[str]:
        return (await self.life_cycle.status(CAMPAIGN)).waiting_for

    def transitions(self) -> list[tuple[str, str, bool]]:
        """(from, to, done) of every step, in order."""
        columns = TRANSITIONS.c
        rows = self.parts.database.read_now(
            lambda connection: connection.execute(
                select(columns.from_state, columns.to_state, columns.done_at_ms)
                .where(columns.campaign_id == CAMPAIGN)
                .order_by(columns.number)
            ).all()
        )
        return [(row.from_state, row.to_state, row.done_at_ms is not None) for row in rows]

    def audited(self) -> list[tuple[str, str, str]]:
        """(who, action, purpose) of the campaign's audit entries."""
        entries = [json.loads(entry) for entry in self.parts.audit_entries()]
        return [(entry["actor"], entry["action"], entry["purpose"]) for entry in entries]


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    with vault_parts(tmp_path) as parts:
        authority = DevelopmentAuthority(tmp_path / "authority", NOW)
        await parts.create(authority, shards=2)
        office = Office(parts, authority)
        try:
            yield office
        finally:
            office.landing.close()


# Publication


@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        ("", ["the roster is missing", "the instrument is missing", "the codes of all pupils are missing"]),
        ("roster", ["the instrument is missing", "the codes of 12 of 12 pupils are missing"]),
        ("roster, instrument", ["the codes of 12 of 12 pupils are missing"]),
    ],
)
async def test_publication_is_refused_and_names_all_that_is_missing(
    office: Office, given: str, lacking: list[str]
) -> None:
    if "roster" in given:
        office.parts.import_roster()
    if "instrument" in given:
        office.parts.put_instrument()
    waiting_for = await office.waiting_for()
    with pytest.raises(StateError) as refused:
        await office.life_cycle.publish(CAMPAIGN, ADMIN)
    assert len(waiting_for) == len(lacking)
    for sentence, said in zip(lacking, waiting_for, strict=True):
        assert said.startswith(sentence)
        assert said in refused.value.message
    assert office.transitions() == []
    assert office.audited() == []


async def test_publication_signs_bundle_and_order_and_waits_for_the_platform(office: Office) -> None:
    await office.parts.fill()
    assert await office.waiting_for() == ["the bundle is not published: CampaignService.Publish"]
    assert await office.life_cycle.publish(CAMPAIGN, ADMIN) == 1
    campaign = office.parts.campaign()
    bundle = verify(office.parts.answers.signing.public_key(), BUNDLE, Signed.FromString(campaign.bundle))
    assert Bundle.FromString(bundle).version == campaign.bundle_version == 1
    assert (office.order.version, office.order.phase) == (1, WindowPhase.WINDOW_PHASE_READY)
    assert office.state is DRAFT
    assert office.transitions() == [(DRAFT, READY, False)]
    assert await office.waiting_for() == [
        "shard 0: no relay has reported it yet; is one running for this campaign?",
        "shard 1: no relay has reported it yet; is one running for this campaign?",
        "bundle 1 is not loaded in every shard yet; the relay does that",
    ]


async def test_publication_repeated_returns_what_the_first_one_did(office: Office) -> None:
    await office.parts.fill()
    await office.life_cycle.publish(CAMPAIGN, ADMIN)
    published = office.parts.campaign()
    assert await office.life_cycle.publish(CAMPAIGN, ADMIN) == 1
    await office.reach(READY)
    assert await office.life_cycle.publish(CAMPAIGN, ADMIN) == 1
    assert office.parts.campaign().bundle == published.bundle
    assert office.transitions() == [(DRAFT, READY, True)]


async def test_a_campaign_is_ready_only_when_every_shard_has_loaded_the_bundle(office: Office) -> None:
    await office.parts.fill()
    await office.life_cycle.publish(CAMPAIGN, ADMIN)
    office.sync(shards=[0])
    await office.life_cycle.tick()
    assert office.state is DRAFT
    assert await office.waiting_for() == [
        "shard 1: no relay has reported it yet; is one running for this campaign?",
        "bundle 1 is not loaded in every shard yet; the relay does that",
    ]
    office.sync()
    assert office.state is DRAFT
    await office.life_cycle.tick()
    assert office.state is READY
    assert await office.waiting_for() == []


async def test_a_campaign_is_ready_only_when_every_shard_follows_the_order(office: Office) -> None:
    await office.parts.fill()
    await office.life_cycle.publish(CAMPAIGN, ADMIN)
    office.sync()
    office.platform.shards[1].window_version = 0
    office.sync(follow=False)
    await office.life_cycle.tick()
    assert office.state is DRAFT
    assert await office.waiting_for() == ["shard 1: order 1 about the window has not reached it yet"]


async def test_a_campaign_whose_shards_follow_an_order_without_the_bundle_is_not_ready(office: Office) -> None:
    await office.parts.fill()
    await office.life_cycle.publish(CAMPAIGN, ADMIN)
    office.sync(follow=False)
    for shard in office.platform.shards:
        shard.marker, shard.window_version = bytes((shard.number,)) * 16, 1
    office.sync(follow=False)
    await office.life_cycle.tick()
    assert office.state is DRAFT
    assert await office.waiting_for() == ["bundle 1 is not loaded in every shard yet; the relay does that"]


# Opening


async def test_a_window_opens_when_ready_and_says_which_shards_do_not_follow_yet(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(READY)
    assert await office.life_cycle.open(CAMPAIGN, 0, ADMIN) == 2
    assert office.state is OPEN
    assert (office.order.phase, office.order.opens_at_ms) == (WindowPhase.WINDOW_PHASE_OPEN, NOW_MS)
    assert (office.order.closes_at_ms, office.order.grace_ms) == (0, 0)
    assert len(await office.waiting_for()) == 2
    office.sync(shards=[0])
    assert await office.waiting_for() == ["shard 1: order 2 about the window has not reached it yet"]
    office.sync()
    assert await office.waiting_for() == []


async def test_opening_twice_returns_the_same_order_and_another_end_is_refused(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(READY)
    end = NOW_MS + MINUTE
    assert await office.life_cycle.open(CAMPAIGN, end, ADMIN) == 2
    assert await office.life_cycle.open(CAMPAIGN, end, ADMIN) == 2
    with pytest.raises(StateError, match="is OPEN with another end; close it by hand"):
        await office.life_cycle.open(CAMPAIGN, end + 1, ADMIN)
    assert (office.order.version, office.order.closes_at_ms, office.order.grace_ms) == (2, end, LATE_GRACE_MS)


@pytest.mark.parametrize("closes_at_ms", [-1, 1, NOW_MS, NOW_MS * 1_000_000])
async def test_an_end_that_cannot_be_is_refused_and_nothing_is_begun(office: Office, closes_at_ms: int) -> None:
    await office.parts.fill()
    await office.lead_to(READY)
    with pytest.raises(InputError):
        await office.life_cycle.open(CAMPAIGN, closes_at_ms, ADMIN)
    assert office.state is READY
    assert len(office.transitions()) == 1


# Closing


async def test_a_window_closes_by_itself_at_its_time_and_flips_after_the_late_grace(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(READY)
    end = NOW_MS + MINUTE
    await office.life_cycle.open(CAMPAIGN, end, ADMIN)
    office.sync()
    office.now_ms = end - 1
    await office.life_cycle.tick()
    assert office.state is OPEN
    office.now_ms = end
    await office.life_cycle.tick()
    assert office.state is CLOSING
    assert (office.order.phase, office.order.closes_at_ms, office.order.grace_ms) == (
        WindowPhase.WINDOW_PHASE_CLOSING,
        end,
        LATE_GRACE_MS,
    )
    office.now_ms = end + LATE_GRACE_MS - 1
    await office.life_cycle.tick()
    assert office.order.phase == WindowPhase.WINDOW_PHASE_CLOSING
    office.now_ms += 1
    await office.life_cycle.tick()
    assert (office.state, office.order.phase) == (CLOSING, WindowPhase.WINDOW_PHASE_CLOSED)
    office.sync()
    await office.life_cycle.tick()
    assert office.state is CLOSED


async def test_a_vault_that_was_down_at_the_close_catches_up_in_one_tick(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(READY)
    await office.life_cycle.open(CAMPAIGN, NOW_MS + MINUTE, ADMIN)
    office.now_ms = NOW_MS + MINUTE + LATE_GRACE_MS
    office.restart()
    await office.life_cycle.tick()
    assert (office.state, office.order.phase, office.order.version) == (CLOSING, WindowPhase.WINDOW_PHASE_CLOSED, 4)


async def test_closing_by_hand_gives_a_grace_and_says_until_when(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(OPEN)
    assert await office.life_cycle.close(CAMPAIGN, MINUTE, ADMIN) == 3
    assert office.state is CLOSING
    assert (office.order.closes_at_ms, office.order.grace_ms) == (NOW_MS, MINUTE)
    assert await office.waiting_for() == ["sessions that have started may finish until 2026-09-21T14:14:20+00:00"]
    office.now_ms += MINUTE
    assert await office.waiting_for() == []


async def test_without_grace_closing_goes_straight_on_at_the_next_tick(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(OPEN)
    await office.life_cycle.close(CAMPAIGN, 0, ADMIN)
    assert office.state is CLOSING
    await office.life_cycle.tick()
    assert office.order.phase == WindowPhase.WINDOW_PHASE_CLOSED


async def test_closing_again_changes_nothing_unless_it_ends_earlier(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(OPEN)
    assert await office.life_cycle.close(CAMPAIGN, MINUTE, ADMIN) == 3
    office.now_ms += 1_000
    assert await office.life_cycle.close(CAMPAIGN, MINUTE, ADMIN) == 3
    assert await office.life_cycle.close(CAMPAIGN, 5_000, ADMIN) == 4
    assert (office.order.closes_at_ms, office.order.grace_ms) == (NOW_MS, 6_000)
    assert await office.life_cycle.close(CAMPAIGN, 5_000, ADMIN) == 4
    assert await office.life_cycle.close(CAMPAIGN, 0, ADMIN) == 5
    assert await office.life_cycle.close(CAMPAIGN, 0, ADMIN) == 5
    assert office.state is CLOSING


async def test_closing_after_the_flip_was_ordered_returns_that_order(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(OPEN)
    await office.life_cycle.close(CAMPAIGN, 0, ADMIN)
    await office.life_cycle.tick()
    assert await office.life_cycle.close(CAMPAIGN, 0, ADMIN) == 4
    office.sync()
    await office.life_cycle.tick()
    await office.life_cycle.tick()
    assert await office.life_cycle.close(CAMPAIGN, 0, ADMIN) == 4


@pytest.mark.parametrize("grace_ms", [-1, MAX_GRACE_MS + 1])
async def test_a_grace_that_cannot_be_is_refused(office: Office, grace_ms: int) -> None:
    await office.parts.fill()
    await office.lead_to(OPEN)
    with pytest.raises(InputError):
        await office.life_cycle.close(CAMPAIGN, grace_ms, ADMIN)
    assert office.state is OPEN


async def test_a_campaign_is_closed_only_when_every_shard_has_flipped(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(CLOSING)
    office.now_ms += MINUTE
    await office.life_cycle.tick()
    office.sync(shards=[0])
    await office.life_cycle.tick()
    assert office.state is CLOSING
    assert await office.waiting_for() == ["shard 1: it has not closed yet; the relay does that"]
    office.sync()
    await office.life_cycle.tick()
    assert office.state is CLOSED


async def test_a_shard_that_says_closed_before_the_order_is_not_believed(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(CLOSING)
    for shard in office.platform.shards:
        shard.phase = WindowPhase.WINDOW_PHASE_CLOSED
    office.sync(follow=False)
    office.now_ms += MINUTE
    await office.life_cycle.tick()
    await office.life_cycle.tick()
    assert office.state is CLOSING


# Draining


async def test_a_campaign_is_drained_when_nothing_is_missing_and_not_before(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(OPEN)
    node = office.platform.node(1)
    node.commit(3)
    await office.reach(CLOSING)
    await office.reach(CLOSED)
    assert office.state is CLOSED
    status = await office.life_cycle.status(CAMPAIGN)
    assert status.spool_left == 3
    assert "shard 1: entries waiting in the spool for the relay: 2" in status.waiting_for
    await office.carry()
    await office.life_cycle.tick()
    assert office.state is CLOSED
    office.sync()
    await office.life_cycle.tick()
    assert office.state is DRAINED
    status = await office.life_cycle.status(CAMPAIGN)
    assert (status.waiting_for, status.spool_left) == ([], 0)


async def test_a_lost_block_keeps_a_campaign_from_being_drained(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(OPEN)
    node = office.platform.node()
    node.commit()
    office.platform.forget()
    await office.reach(CLOSING)
    await office.reach(CLOSED)
    await office.reach(DRAINED)
    assert office.state is CLOSED
    assert await office.waiting_for() == [
        f"shard 0, epoch {node.epoch.epoch_id.hex()[:8]}: nothing of it has landed, the frozen table ends at block 1"
    ]


async def test_what_lands_after_the_drain_and_does_not_belong_there_is_said(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(DRAINED)
    node = office.platform.node()
    node.commit()
    await office.carry()
    assert office.state is DRAINED
    assert len(await office.waiting_for()) == 1


# Wrong moments


@pytest.mark.parametrize(
    ("state", "call", "told"),
    [
        (DRAFT, "open", "is DRAFT and cannot be opened: publish it first: CampaignService.Publish"),
        (DRAFT, "close", "is DRAFT: its window is not open, there is nothing to close"),
        (READY, "close", "is READY: its window is not open, there is nothing to close"),
        (CLOSING, "open", "is CLOSING and cannot be opened: a window opens once"),
        (CLOSED, "open", "is CLOSED and cannot be opened: a window opens once"),
        (DRAINED, "open", "is DRAINED and cannot be opened: a window opens once"),
    ],
)
async def test_a_step_at_the_wrong_moment_is_refused_and_says_what_to_do(
    office: Office, state: State, call: str, told: str
) -> None:
    await office.parts.fill()
    if state is not DRAFT:
        await office.lead_to(state)
    before = office.transitions()
    with pytest.raises(StateError, match=told):
        await getattr(office.life_cycle, call)(CAMPAIGN, 0, ADMIN)
    assert office.state is state
    assert office.transitions() == before


async def test_opening_before_the_platform_has_loaded_says_so(office: Office) -> None:
    await office.parts.fill()
    await office.life_cycle.publish(CAMPAIGN, ADMIN)
    with pytest.raises(StateError, match="the platform has not loaded it yet"):
        await office.life_cycle.open(CAMPAIGN, 0, ADMIN)


async def test_a_campaign_that_does_not_exist_is_not_found(office: Office) -> None:
    for call in (
        office.life_cycle.publish("other", ADMIN),
        office.life_cycle.open("other", 0, ADMIN),
        office.life_cycle.close("other", 0, ADMIN),
        office.life_cycle.status("other"),
    ):
        with pytest.raises(NotFound):
            await call


# Locked


@pytest.mark.parametrize("state", [READY, OPEN, CLOSING])
async def test_a_locked_vault_begins_nothing(office: Office, state: State) -> None:
    await office.parts.fill()
    before = list(State)[list(State).index(state) - 1]
    if before is not DRAFT:
        await office.lead_to(before)
    steps = office.transitions()
    office.parts.keystore.lock(Scope.ANSWERS)
    with pytest.raises(VaultLocked):
        await office.reach(state)
    assert office.transitions() == steps
    assert office.state is before
    assert (await office.life_cycle.status(CAMPAIGN)).state is before


async def test_a_close_that_falls_due_while_locked_is_said_and_made_up_for(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(READY)
    await office.life_cycle.open(CAMPAIGN, NOW_MS + MINUTE, ADMIN)
    office.sync()
    office.parts.keystore.lock(Scope.ANSWERS)
    office.now_ms = NOW_MS + MINUTE + LATE_GRACE_MS
    await office.life_cycle.tick()
    assert office.state is OPEN
    assert office.transitions()[-1] == (READY, OPEN, True)
    assert await office.waiting_for() == [
        "an order about the window is due and the answers are locked: KeyService.Unlock"
    ]
    office.parts.keystore.unlock(Scope.ANSWERS)
    await office.life_cycle.tick()
    assert (office.state, office.order.phase) == (CLOSING, WindowPhase.WINDOW_PHASE_CLOSED)


async def test_a_step_that_was_cut_off_before_it_was_signed_waits_for_the_keys(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(READY)
    office.crash_at = (OPEN, "intended")
    with pytest.raises(Crash):
        await office.life_cycle.open(CAMPAIGN, 0, ADMIN)
    office.parts.keystore.lock(Scope.ANSWERS)
    office.restart()
    await office.life_cycle.tick()
    assert office.state is READY
    assert await office.waiting_for() == [
        "an order about the window is due and the answers are locked: KeyService.Unlock"
    ]
    office.parts.keystore.unlock(Scope.ANSWERS)
    await office.life_cycle.tick()
    assert office.state is OPEN


async def test_flips_and_drain_need_no_keys(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(CLOSING)
    office.now_ms += MINUTE
    await office.life_cycle.tick()
    office.sync()
    await office.carry()
    office.sync()
    office.parts.keystore.lock(Scope.ANSWERS)
    await office.life_cycle.tick()
    assert office.state is DRAINED


# Crashes


CRASHES = [(state, moment) for state in list(State)[1:] for moment in ("intended", "carried out")]


@pytest.mark.parametrize(("state", "moment"), CRASHES)
async def test_a_step_that_was_cut_off_is_carried_on_by_the_next_process(
    office: Office, state: State, moment: str
) -> None:
    await office.parts.fill()
    before = list(State)[list(State).index(state) - 1]
    # The drain is intended in the same breath in which the last shard has closed.
    start, path = (CLOSING, [CLOSED, DRAINED]) if state is DRAINED else (before, [state])
    if start is not DRAFT:
        await office.lead_to(start)
    office.crash_at = (state, moment)
    with pytest.raises(Crash):
        await office.reach(*path)
    office.restart()
    await office.life_cycle.tick()
    if state is DRAINED:
        await office.carry()
    office.sync()
    await office.life_cycle.tick()
    assert office.state is state
    steps = [step for step in office.transitions() if step[1] == state]
    assert steps == [(before, state, True)]


@pytest.mark.parametrize(("state", "moment"), CRASHES[:6])
async def test_a_call_that_was_cut_off_is_repeated_with_the_same_outcome(
    office: Office, state: State, moment: str
) -> None:
    await office.parts.fill()
    before = list(State)[list(State).index(state) - 1]
    if before is not DRAFT:
        await office.lead_to(before)
    call: Callable[[], Awaitable[int]] = {
        READY: lambda: office.life_cycle.publish(CAMPAIGN, ADMIN),
        OPEN: lambda: office.life_cycle.open(CAMPAIGN, NOW_MS + MINUTE, ADMIN),
        CLOSING: lambda: office.life_cycle.close(CAMPAIGN, MINUTE, ADMIN),
    }[state]
    office.crash_at = (state, moment)
    with pytest.raises(Crash):
        await call()
    office.restart()
    version = await call()
    assert version == (1 if state is READY else office.order.version)
    assert office.order.version == list(State).index(state)
    assert [step[:2] for step in office.transitions()].count((before, state)) == 1


async def test_the_terms_of_a_step_survive_the_crash_and_not_the_clock(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(READY)
    office.crash_at = (OPEN, "intended")
    with pytest.raises(Crash):
        await office.life_cycle.open(CAMPAIGN, NOW_MS + MINUTE, ADMIN)
    assert office.state is READY
    office.now_ms += 5_000
    office.restart()
    await office.life_cycle.tick()
    assert (office.order.opens_at_ms, office.order.closes_at_ms) == (NOW_MS, NOW_MS + MINUTE)


async def test_a_whole_campaign_takes_each_step_once(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(DRAINED)
    for _ in range(3):
        await office.life_cycle.tick()
    states = list(State)
    assert office.transitions() == [(one, next_, True) for one, next_ in pairwise(states)]
    assert office.order.version == 4


# Audit


async def test_every_step_is_audited_with_who_wanted_it_before_it_took_effect(office: Office) -> None:
    await office.parts.fill()
    office.crash_at = (READY, "carried out")
    with pytest.raises(Crash):
        await office.life_cycle.publish(CAMPAIGN, ADMIN)
    office.crash_at = None
    assert office.audited() == [("ada", "publish", "DRAFT to READY")]


async def test_the_audit_tells_the_whole_life(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(DRAINED)
    assert office.audited() == [
        ("ada", "publish", "DRAFT to READY"),
        ("clock", "state", "READY"),
        ("ada", "open-window", "READY to OPEN"),
        ("clock", "state", "OPEN"),
        ("ada", "close-window", "OPEN to CLOSING"),
        ("clock", "state", "CLOSING"),
        ("clock", "flip-window", "CLOSING to CLOSED"),
        ("clock", "state", "CLOSED"),
        ("clock", "drain", "CLOSED to DRAINED"),
        ("clock", "state", "DRAINED"),
    ]


async def test_a_step_that_is_carried_on_says_so_in_the_audit(office: Office) -> None:
    await office.parts.fill()
    await office.life_cycle.publish(CAMPAIGN, ADMIN)
    office.restart()
    await office.life_cycle.tick()
    await office.life_cycle.tick()
    assert office.audited() == [
        ("ada", "publish", "DRAFT to READY"),
        ("ada", "publish", "DRAFT to READY, carried on after a restart"),
    ]


# Several campaigns


async def test_a_campaign_that_cannot_go_on_does_not_hold_up_another(office: Office) -> None:
    await office.parts.fill()
    await office.lead_to(READY)
    # A campaign that comes first in every tick, has a step to sign, and whose S is away.
    pem = office.platform.authority.authority_file.read_text()
    terms = make_terms("another", "Sans clé", 1, [pem], rehearsal=True)
    await create_campaign(office.parts.database, office.parts.keystore, terms, NOW_MS)
    await _leave_a_step_unsigned(office, "another")
    office.parts.keystore.lock(Scope.ANSWERS)
    for directory in office.parts.secret_dirs:
        (directory / "another.secret").rename(directory / "another.away")
    office.parts.keystore.unlock(Scope.ANSWERS)
    await office.life_cycle.open(CAMPAIGN, NOW_MS + 1, ADMIN)
    office.now_ms += 1
    await office.life_cycle.tick()
    assert office.state is CLOSING
    with pytest.raises(PliError):
        await office.life_cycle.publish("another", ADMIN)


async def _leave_a_step_unsigned(office: Office, campaign_id: str) -> None:
    office.parts.database.write_now(
        lambda connection: intend(connection, campaign_id, DRAFT, READY, Terms(ADMIN, 1, 1), NOW_MS)
    )

"""CampaignService over real mTLS: every step, every refusal, nothing half done."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_asyncio

from pli.errors import (
    AlreadyExists,
    Forbidden,
    InputError,
    NotFound,
    StateError,
    VaultLocked,
)
from pli.vault.v1.bundle_pb2 import WindowPhase
from pli.vault.v1.campaign_pb2 import (
    CloseWindowRequest,
    CreateCampaignRequest,
    GetCampaignRequest,
    IssueCodesRequest,
    OpenWindowRequest,
    PublishRequest,
    PutInstrumentRequest,
    SettleRequest,
)
from tests.support.vault_parts import CAMPAIGN, INSTRUMENT, NOW_MS, ROSTER
from tests.support.vault_server import Knobs, VaultServer, content, refusal, roster_requests, vault_server
from tests.support.waiting import until
from vault.keystore import Scope
from vault.store.campaign_tables import CAMPAIGNS, CODES, REGISTRY


@pytest_asyncio.fixture
async def vault(tmp_path: Path) -> AsyncIterator[VaultServer]:
    """An unlocked vault with one empty campaign."""
    async with vault_server(tmp_path) as running:
        running.parts.unlock()
        await running.create()
        yield running


# The whole way


async def test_a_campaign_goes_from_nothing_to_settled(vault: VaultServer) -> None:
    stub = await vault.campaigns()
    imported = await vault.import_roster()
    assert (imported.pupils, imported.classes, imported.schools) == (12, 4, 3)
    put = await stub.PutInstrument(PutInstrumentRequest(campaign_id=CAMPAIGN, toml=INSTRUMENT))
    assert (put.items, put.max_score) == (10, "15")
    issued = await stub.IssueCodes(IssueCodesRequest(campaign_id=CAMPAIGN))
    assert (issued.issued, issued.total) == (12, 12)
    assert (await stub.Publish(PublishRequest(campaign_id=CAMPAIGN))).bundle_version == 1
    wanted = await vault.report(bundle_version=0, window_version=0)
    await vault.report(bundle_version=1, window_version=wanted.bundle_version)

    async def ready() -> bool:
        state = (await stub.GetCampaign(GetCampaignRequest(campaign_id=CAMPAIGN))).state
        if state == "DRAFT":
            await stub.Publish(PublishRequest(campaign_id=CAMPAIGN))
        return bool(state == "READY")

    await until(ready, "READY")
    opened = await stub.OpenWindow(OpenWindowRequest(campaign_id=CAMPAIGN, closes_at_ms=NOW_MS + 60_000))
    await vault.report(bundle_version=1, window_version=opened.window_version)
    settled = await stub.Settle(SettleRequest(campaign_id=CAMPAIGN))
    assert (settled.counts.pupils, settled.counts.codes, settled.counts.landed) == (12, 12, 0)
    found = await stub.GetCampaign(GetCampaignRequest(campaign_id=CAMPAIGN))
    assert (found.state, found.title, found.rehearsal) == ("OPEN", "Évaluation de rentrée", True)
    assert (found.window.phase, found.window.closes_at_ms) == (WindowPhase.WINDOW_PHASE_OPEN, NOW_MS + 60_000)
    assert (list(found.waiting_for), list(found.unlocked)) == ([], ["answers", "identities"])
    assert found.counts == settled.counts
    assert not found.auto_unlock
    await stub.CloseWindow(CloseWindowRequest(campaign_id=CAMPAIGN, grace_ms=1_000))
    assert (await stub.GetCampaign(GetCampaignRequest(campaign_id=CAMPAIGN))).state == "CLOSING"


async def test_every_act_leaves_a_note_with_the_name_in_the_certificate(vault: VaultServer) -> None:
    stub = await vault.campaigns(name="bob")
    await stub.ImportRoster(roster_requests(ROSTER))
    await stub.PutInstrument(PutInstrumentRequest(campaign_id=CAMPAIGN, toml=INSTRUMENT))
    await stub.IssueCodes(IssueCodesRequest(campaign_id=CAMPAIGN))
    await stub.Publish(PublishRequest(campaign_id=CAMPAIGN))
    assert vault.audited() == [
        ("create-campaign", "campaign-admin", "alice"),
        ("import-roster", "campaign-admin", "bob"),
        ("put-instrument", "campaign-admin", "bob"),
        ("issue-codes", "campaign-admin", "bob"),
        ("publish", "campaign-admin", "bob"),
    ]
    assert await vault.parts.audit.check()


async def test_repeated_calls_return_what_the_first_one_did(vault: VaultServer) -> None:
    stub = await vault.campaigns()
    for _ in range(2):
        await vault.create()
        assert (await vault.import_roster()).pupils == 12
        assert (await stub.PutInstrument(PutInstrumentRequest(campaign_id=CAMPAIGN, toml=INSTRUMENT))).items == 10
    first = await stub.IssueCodes(IssueCodesRequest(campaign_id=CAMPAIGN))
    again = await stub.IssueCodes(IssueCodesRequest(campaign_id=CAMPAIGN))
    assert (first.issued, first.total, again.issued, again.total) == (12, 12, 0, 12)
    versions = [(await stub.Publish(PublishRequest(campaign_id=CAMPAIGN))).bundle_version for _ in range(2)]
    assert versions == [1, 1]


async def test_calls_at_the_same_time_issue_each_pupil_one_code(vault: VaultServer) -> None:
    await vault.import_roster()
    stub = await vault.campaigns()
    calls = [stub.IssueCodes(IssueCodesRequest(campaign_id=CAMPAIGN)) for _ in range(4)]
    assert sorted([(await call).issued for call in calls]) == [0, 0, 0, 12]


# Moments and keys


async def test_publication_lists_all_that_is_missing(vault: VaultServer) -> None:
    stub = await vault.campaigns()
    error = await refusal(stub.Publish(PublishRequest(campaign_id=CAMPAIGN)))
    assert isinstance(error, StateError)
    for each in ("ImportRoster", "PutInstrument", "IssueCodes"):
        assert each in error.message
    waiting = (await stub.GetCampaign(GetCampaignRequest(campaign_id=CAMPAIGN))).waiting_for
    assert len(waiting) == 3


async def test_after_publication_roster_instrument_and_codes_are_fixed(vault: VaultServer) -> None:
    stub = await vault.campaigns()
    await vault.import_roster()
    await stub.PutInstrument(PutInstrumentRequest(campaign_id=CAMPAIGN, toml=INSTRUMENT))
    await stub.IssueCodes(IssueCodesRequest(campaign_id=CAMPAIGN))
    await stub.Publish(PublishRequest(campaign_id=CAMPAIGN))
    before = content(vault)
    other = INSTRUMENT.replace(b'version = "2026-a"', b'version = "2026-b"')
    for call in (
        stub.PutInstrument(PutInstrumentRequest(campaign_id=CAMPAIGN, toml=other)),
        stub.ImportRoster(roster_requests(ROSTER + b"\n")),
    ):
        assert isinstance(await refusal(call), StateError | AlreadyExists)
    assert (await stub.IssueCodes(IssueCodesRequest(campaign_id=CAMPAIGN))).issued == 0
    assert content(vault) == before


async def test_nothing_is_settled_before_the_window_was_open(vault: VaultServer) -> None:
    error = await refusal((await vault.campaigns()).Settle(SettleRequest(campaign_id=CAMPAIGN)))
    assert isinstance(error, StateError)
    assert "open its window first" in error.message
    assert "settle" not in {action for action, _, _ in vault.audited()}


def calls(stub: Any, campaign_id: str) -> dict[str, Any]:
    """One call of each RPC that names an existing campaign."""
    return {
        "ImportRoster": lambda: stub.ImportRoster(roster_requests(ROSTER, campaign_id=campaign_id)),
        "PutInstrument": lambda: stub.PutInstrument(PutInstrumentRequest(campaign_id=campaign_id, toml=INSTRUMENT)),
        "IssueCodes": lambda: stub.IssueCodes(IssueCodesRequest(campaign_id=campaign_id)),
        "Publish": lambda: stub.Publish(PublishRequest(campaign_id=campaign_id)),
        "OpenWindow": lambda: stub.OpenWindow(OpenWindowRequest(campaign_id=campaign_id)),
        "CloseWindow": lambda: stub.CloseWindow(CloseWindowRequest(campaign_id=campaign_id)),
        "Settle": lambda: stub.Settle(SettleRequest(campaign_id=campaign_id)),
    }


NEEDS = {
    "ImportRoster": {Scope.IDENTITIES},
    "PutInstrument": {Scope.ANSWERS},
    "IssueCodes": {Scope.ANSWERS, Scope.IDENTITIES},
    "Publish": {Scope.ANSWERS},
    "OpenWindow": {Scope.ANSWERS},
    "CloseWindow": {Scope.ANSWERS},
    "Settle": {Scope.ANSWERS},
}


@pytest.mark.parametrize("locked", list(Scope))
async def test_a_locked_scope_refuses_every_call_that_needs_it(vault: VaultServer, locked: Scope) -> None:
    await vault.import_roster()
    vault.parts.keystore.lock(locked)
    before, stub = content(vault), await vault.campaigns()
    for name, call in calls(stub, CAMPAIGN).items():
        if locked in NEEDS[name]:
            error = await refusal(call())
            assert isinstance(error, VaultLocked), name
            assert f"unlock scope {locked}" in error.message
    assert content(vault) == before
    assert set(NEEDS) == set(calls(stub, CAMPAIGN)), "a new call must be listed here"


async def test_a_locked_vault_makes_no_campaign_and_still_says_where_one_stands(vault: VaultServer) -> None:
    for scope in Scope:
        vault.parts.keystore.lock(scope)
    before, stub = content(vault), await vault.campaigns()
    pem = vault.authority.authority_file.read_text()
    request = CreateCampaignRequest(campaign_id="new", title="T", shards=1, node_authorities_pem=[pem])
    assert isinstance(await refusal(stub.CreateCampaign(request)), VaultLocked)
    assert content(vault) == before
    assert vault.parts.keystore.campaigns() == {CAMPAIGN}
    found = await stub.GetCampaign(GetCampaignRequest(campaign_id=CAMPAIGN))
    assert (found.state, list(found.unlocked)) == ("DRAFT", [])


async def test_a_campaign_whose_secret_is_gone_says_so_instead_of_unlock(vault: VaultServer) -> None:
    for scope in Scope:
        vault.parts.keystore.lock(scope)
    for directory in vault.parts.secret_dirs:
        (directory / f"{CAMPAIGN}.secret").unlink()
    vault.parts.unlock()
    stub = await vault.campaigns()
    error = await refusal(stub.PutInstrument(PutInstrumentRequest(campaign_id=CAMPAIGN, toml=INSTRUMENT)))
    assert isinstance(error, VaultLocked)
    assert "bring a copy back from its holder" in error.message
    found = await stub.GetCampaign(GetCampaignRequest(campaign_id=CAMPAIGN))
    assert any("bring a copy back" in why for why in found.waiting_for)


async def test_an_unknown_campaign_is_not_found_by_any_call(vault: VaultServer) -> None:
    stub = await vault.campaigns()
    before = content(vault)
    for name, call in calls(stub, "no-such-campaign").items():
        error = await refusal(call())
        assert isinstance(error, NotFound), name
        assert "no-such-campaign" in error.message
    assert isinstance(await refusal(stub.GetCampaign(GetCampaignRequest(campaign_id="x" * 4_000_000))), NotFound)
    assert content(vault) == before


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"campaign_id": "Été"}, "a campaign id has"),
        ({"campaign_id": "x" * 100_000}, "a campaign id has"),
        ({"title": ""}, "a title"),
        ({"shards": 0}, "1 to 64 shards"),
        ({"shards": 65}, "1 to 64 shards"),
        ({"node_authorities_pem": []}, "node authorities"),
        ({"node_authorities_pem": ["rubbish"]}, "not a PEM certificate"),
    ],
)
async def test_wrong_terms_make_no_campaign(vault: VaultServer, change: dict[str, Any], rule: str) -> None:
    pem = vault.authority.authority_file.read_text()
    given = {"campaign_id": "new", "title": "T", "shards": 1, "node_authorities_pem": [pem], **change}
    error = await refusal((await vault.campaigns()).CreateCampaign(CreateCampaignRequest(**given)))
    assert isinstance(error, InputError)
    assert rule in error.message
    assert vault.parts.rows_in(CAMPAIGNS) == 1
    assert vault.parts.keystore.campaigns() == {CAMPAIGN}


async def test_other_terms_for_a_campaign_that_exists_are_refused(vault: VaultServer) -> None:
    pem = vault.authority.authority_file.read_text()
    request = CreateCampaignRequest(campaign_id=CAMPAIGN, title="Other", shards=1, node_authorities_pem=[pem])
    assert isinstance(await refusal((await vault.campaigns()).CreateCampaign(request)), AlreadyExists)


async def test_an_act_is_finished_and_noted_when_its_caller_hangs_up(tmp_path: Path) -> None:
    drawing, go_on = Event(), Event()

    def held(bits: int) -> int:
        drawing.set()
        assert go_on.wait(20)
        return secrets.randbits(bits)

    async with vault_server(tmp_path, Knobs(random_bits=held)) as vault:
        vault.parts.unlock()
        await vault.create()
        await vault.import_roster()
        call = (await vault.campaigns()).IssueCodes(IssueCodesRequest(campaign_id=CAMPAIGN))

        async def begun() -> bool:
            return drawing.is_set()

        asking = asyncio.ensure_future(call)
        await until(begun, "the first code")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go_on.set()

        async def noted() -> bool:
            return "issue-codes" in {action for action, _, _ in vault.audited()}

        await until(noted, "the note")
        assert vault.parts.rows_in(CODES) == vault.parts.rows_in(REGISTRY) == 12


async def test_watchers_may_look_and_not_touch(vault: VaultServer) -> None:
    await vault.import_roster()
    before = content(vault)
    for role in ("operator", "observer"):
        stub = await vault.campaigns(role)
        assert (await stub.GetCampaign(GetCampaignRequest(campaign_id=CAMPAIGN))).counts.pupils == 12
        for name, call in calls(stub, CAMPAIGN).items():
            assert isinstance(await refusal(call()), Forbidden), name
    assert content(vault) == before

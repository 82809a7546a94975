"""Campaigns come into being with keys first, once, and on the terms they were created with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import delete, select

from pli.development_ca import DevelopmentAuthority
from pli.errors import AlreadyExists, ConfigError, InputError, IntegrityError, NotFound, VaultLocked
from tests.support.vault_parts import CAMPAIGN, NOW_MS, VaultParts, vault_parts
from vault.campaigns import CampaignTerms, create_campaign, find, list_campaigns, make_terms
from vault.keystore import Scope
from vault.states import State
from vault.store.campaign_tables import CAMPAIGNS, SHARDS


@pytest.fixture
def pem(tmp_path: Path) -> str:
    return DevelopmentAuthority(tmp_path / "authority").authority_file.read_text()


def terms(pem: str, campaign_id: str = CAMPAIGN) -> CampaignTerms:
    return make_terms(campaign_id, "Évaluation de rentrée", 3, [pem], rehearsal=False)


async def create(parts: VaultParts, wanted: CampaignTerms, now_ms: int = NOW_MS) -> None:
    await create_campaign(parts.database, parts.keystore, wanted, now_ms)


async def test_a_new_campaign_is_a_draft_with_keys_and_silent_shards(tmp_path: Path, pem: str) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        campaign = await create_campaign(parts.database, parts.keystore, terms(pem), NOW_MS)
        assert campaign == parts.campaign()
        assert (campaign.state, campaign.created_at_ms, campaign.published) == (State.DRAFT, NOW_MS, False)
        assert parts.answers.campaign_id == parts.identities.campaign_id == CAMPAIGN
        shards = parts.database.read_now(lambda c: c.execute(select(SHARDS.c.shard, SHARDS.c.marker)).all())
        assert shards == [(0, b""), (1, b""), (2, b"")]


async def test_created_again_with_the_same_terms_it_is_found(tmp_path: Path, pem: str) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        await create(parts, terms(pem))
        key = parts.answers.answer.public_raw
        again = await create_campaign(parts.database, parts.keystore, terms(pem), NOW_MS + 1)
        assert again.created_at_ms == NOW_MS
        assert parts.answers.answer.public_raw == key
        assert parts.rows_in(SHARDS) == 3


@pytest.mark.parametrize("change", [{"title": "Autre"}, {"rehearsal": True}, {"shards": 4}])
async def test_other_terms_are_refused_and_change_nothing(tmp_path: Path, pem: str, change: dict[str, Any]) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        await create(parts, terms(pem))
        before = parts.campaign()
        with pytest.raises(AlreadyExists, match="other terms; they cannot be changed"):
            await create(parts, replace(terms(pem), **change))
        assert parts.campaign() == before


async def test_a_creation_cut_off_before_the_row_is_completed_with_the_same_keys(tmp_path: Path, pem: str) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        parts.keystore.create_campaign(CAMPAIGN)
        key = parts.answers.answer.public_raw
        await create(parts, terms(pem))
        assert parts.answers.answer.public_raw == key
        assert parts.campaign().state == State.DRAFT


async def test_a_row_whose_keys_are_gone_is_refused_loudly_and_gets_no_new_ones(tmp_path: Path, pem: str) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        await create(parts, terms(pem))
    (parts.state_dir / "keystore" / "keystore.json").unlink()
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        with pytest.raises(IntegrityError, match="restore database and keystore of the same day"):
            await create(parts, terms(pem))
        assert CAMPAIGN not in parts.keystore.campaigns()


async def test_locked_answers_leave_neither_row_nor_keys(tmp_path: Path, pem: str) -> None:
    with vault_parts(tmp_path) as parts:
        parts.keystore.unlock(Scope.IDENTITIES)
        with pytest.raises(VaultLocked):
            await create(parts, terms(pem))
        assert parts.rows_in(CAMPAIGNS) == 0
        assert parts.keystore.campaigns() == frozenset()


async def test_a_medium_that_cannot_be_written_leaves_no_row(tmp_path: Path, pem: str) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        parts.secret_dirs[1].write_text("a file where the directory should be")
        with pytest.raises(ConfigError, match="medium-2"):
            await create(parts, terms(pem))
        assert parts.rows_in(CAMPAIGNS) == 0
        parts.secret_dirs[1].unlink()
        await create(parts, terms(pem))
        assert parts.campaign().state == State.DRAFT


async def test_campaigns_are_found_and_listed_by_id(tmp_path: Path, pem: str) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        for name in ("c2", "c1"):
            await create(parts, terms(pem, name))
        assert [each.campaign_id for each in parts.database.read_now(list_campaigns)] == ["c1", "c2"]
        with pytest.raises(NotFound, match="no campaign c3 in this vault"):
            parts.database.read_now(lambda connection: find(connection, "c3"))
        parts.database.write_now(lambda connection: connection.execute(delete(CAMPAIGNS)))
        assert parts.database.read_now(list_campaigns) == []


@pytest.mark.parametrize("campaign_id", ["É" * 3, "a\nb", "x" * 100_000])
async def test_an_id_that_cannot_be_one_is_not_repeated(tmp_path: Path, campaign_id: str) -> None:
    with vault_parts(tmp_path) as parts, pytest.raises(NotFound) as caught:
        parts.database.read_now(lambda connection: find(connection, campaign_id))
    assert campaign_id not in caught.value.message


@pytest.mark.parametrize("campaign_id", ["", "A", "été", "a b", "a/b", "..", "a" * 65, "a\n"])
def test_a_wrong_id_is_refused(pem: str, campaign_id: str) -> None:
    with pytest.raises(InputError, match="a campaign id has 1 to 64 characters"):
        make_terms(campaign_id, "Titre", 1, [pem], rehearsal=False)


@pytest.mark.parametrize("title", ["", "  ", "x" * 201, "a\nb", "a\x00b", "a\u202eb"])
def test_a_wrong_title_is_refused(pem: str, title: str) -> None:
    with pytest.raises(InputError, match="title"):
        make_terms(CAMPAIGN, title, 1, [pem], rehearsal=False)


@pytest.mark.parametrize("shards", [0, 65])
def test_a_wrong_number_of_shards_is_refused(pem: str, shards: int) -> None:
    with pytest.raises(InputError, match=f"1 to 64 shards, not {shards}"):
        make_terms(CAMPAIGN, "Titre", shards, [pem], rehearsal=False)


def test_wrong_authorities_are_refused(tmp_path: Path, pem: str) -> None:
    leaf = DevelopmentAuthority(tmp_path / "other").issue("ingest", "n1").certificate_file.read_text()
    for given, rule in (([], "not 0"), ([pem, "rubbish"], "authority 2 is not a PEM"), ([leaf], "basicConstraints CA")):
        with pytest.raises(InputError, match=rule):
            make_terms(CAMPAIGN, "Titre", 1, given, rehearsal=False)


def test_authorities_are_the_same_whatever_their_order_and_the_text_around_them(tmp_path: Path, pem: str) -> None:
    other = DevelopmentAuthority(tmp_path / "other").authority_file.read_text()
    given = ([pem, other], [other, pem, other], [f"issued by the contractor\n{pem}\n{other}"])
    forms = {make_terms(CAMPAIGN, "Titre", 1, each, rehearsal=False).node_authorities_pem for each in given}
    assert len(forms) == 1
    assert len(x509.load_pem_x509_certificates(forms.pop().encode())) == 2

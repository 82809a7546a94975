"""Results: every script has the result of its last version, sealed, and no other script is scored again."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, select, update

from pli.errors import IntegrityError, StateError, VaultLocked
from pli.ingest.v1.ingest_pb2 import Presence
from tests.support.landing_place import LandingCampaign, LandingPlace, landing_place
from tests.support.sealing_node import Section, Writer
from vault.results import RESULTS_AT_ONCE, is_scored, load_results, score_due
from vault.scoring import Result
from vault.settlement import is_settled
from vault.store.campaign_tables import INSTRUMENTS
from vault.store.landing_tables import RESULTS, SCRIPTS


@pytest.fixture
def place(tmp_path: Path) -> Iterator[LandingPlace]:
    with landing_place(tmp_path) as place:
        yield place


@pytest.fixture
def campaign(place: LandingPlace) -> LandingCampaign:
    return place.campaign()


async def land(campaign: LandingCampaign, *sections: Section) -> None:
    epoch = campaign.node().epoch()
    await campaign.deposit(epoch.block(*sections), headers=[epoch.header])


def results(campaign: LandingCampaign) -> dict[bytes, Result]:
    return campaign.database.read_now(lambda c: load_results(c, campaign.keys, campaign.pupils))


def totals(campaign: LandingCampaign) -> list[Decimal | None]:
    """In the order of the pupils, of those who have a result."""
    found = results(campaign)
    return [found[pseudonym].total for pseudonym in campaign.pupils if pseudonym in found]


def sealed(campaign: LandingCampaign) -> dict[bytes, bytes]:
    rows = campaign.database.read_now(lambda c: c.execute(select(RESULTS.c.pseudonym, RESULTS.c.sealed)).all())
    return {row.pseudonym: row.sealed for row in rows}


async def everybody_answers(campaign: LandingCampaign, option: str = "A") -> None:
    writers = [Writer(pseudonym) for pseudonym in campaign.pupils]
    await land(campaign, *(writer.sends(writer.choose("a", option)) for writer in writers))


async def test_a_result_tells_scores_total_domains_and_is_exact(campaign: LandingCampaign) -> None:
    writer = Writer(campaign.pupils[0])
    await land(
        campaign, writer.sends(*(writer.choose(item, option) for item, option in zip("abc", "ACC", strict=True)))
    )
    await campaign.settle()
    (result,) = results(campaign).values()
    one, half = Decimal(1), Decimal("0.5")
    assert result.scores == (one, half, one)
    assert (result.total, result.max_score, result.group) == (Decimal("2.5"), Decimal(4), None)
    assert [(part.domain, part.score, part.max_score) for part in result.domains] == [
        ("one", one + half, Decimal(3)),
        ("two", one, one),
    ]


async def test_of_the_absent_everything_is_empty(campaign: LandingCampaign) -> None:
    writer = Writer(campaign.pupils[0])
    await land(campaign, writer.sends(writer.choose("a", "A"), writer.mark(Presence.PRESENCE_EXEMPT)))
    await campaign.settle()
    (result,) = results(campaign).values()
    assert (result.scores, result.total) == ((None, None, None), None)
    assert [part.score for part in result.domains] == [None, None]


async def test_a_late_answer_scores_its_script_again_and_no_other(campaign: LandingCampaign) -> None:
    await everybody_answers(campaign)
    await campaign.settle()
    assert totals(campaign) == [1, 1, 1, 1]
    before = sealed(campaign)
    writer = Writer(campaign.pupils[2], opening=2)
    await land(campaign, writer.sends(writer.choose("a", "B"), writer.choose("b", "B")))
    await campaign.settle()
    assert totals(campaign) == [1, 1, 2, 1]
    after = sealed(campaign)
    assert [name for name in campaign.pupils if after[name] != before[name]] == [campaign.pupils[2]]


async def test_what_is_missing_is_scored_wherever_it_was_cut_off(campaign: LandingCampaign) -> None:
    await everybody_answers(campaign)
    await campaign.settle()
    before = sealed(campaign)
    lost = campaign.pupils[1:3]
    campaign.database.write_now(lambda c: c.execute(delete(RESULTS).where(RESULTS.c.pseudonym.in_(lost))))
    assert not campaign.database.read_now(lambda c: is_settled(c, campaign.campaign_id))
    await campaign.settle()
    assert totals(campaign) == [1, 1, 1, 1]
    assert all((sealed(campaign)[name] == before[name]) is (name not in lost) for name in campaign.pupils)


async def test_more_scripts_than_one_portion_holds_are_all_scored(place: LandingPlace) -> None:
    campaign = place.campaign(pupils=RESULTS_AT_ONCE + 1)
    epoch = campaign.node().epoch()
    writers = [Writer(pseudonym) for pseudonym in campaign.pupils]
    sections = [writer.sends(writer.choose("a", "A")) for writer in writers]
    await campaign.deposit(epoch.block(*sections[:700]), epoch.block(*sections[700:]), headers=[epoch.header])
    await campaign.settle()
    assert place.rows_in(RESULTS) == RESULTS_AT_ONCE + 1
    assert campaign.database.read_now(lambda c: is_scored(c, campaign.campaign_id))


async def test_without_an_instrument_nothing_is_scored_and_nothing_lost(campaign: LandingCampaign) -> None:
    campaign.database.write_now(lambda c: c.execute(delete(INSTRUMENTS)))
    await everybody_answers(campaign)
    with pytest.raises(StateError, match="no instrument"):
        await campaign.settle()
    assert (campaign.place.rows_in(SCRIPTS), campaign.place.rows_in(RESULTS)) == (4, 0)
    assert not campaign.database.read_now(lambda c: is_settled(c, campaign.campaign_id))


async def test_nothing_to_score_needs_no_instrument(campaign: LandingCampaign) -> None:
    campaign.database.write_now(lambda c: c.execute(delete(INSTRUMENTS)))
    await score_due(campaign.database, campaign.keyring, campaign.campaign_id)


async def test_locked_answers_are_not_scored(campaign: LandingCampaign) -> None:
    await everybody_answers(campaign)
    await campaign.settle()
    campaign.database.write_now(lambda c: c.execute(delete(RESULTS)))
    campaign.keyring.forget_answers()
    with pytest.raises(VaultLocked):
        await score_due(campaign.database, campaign.keyring, campaign.campaign_id)


async def test_a_result_altered_or_moved_to_another_pupil_does_not_open(campaign: LandingCampaign) -> None:
    await everybody_answers(campaign)
    await campaign.settle()
    first, second = campaign.pupils[:2]
    for content in (sealed(campaign)[second], sealed(campaign)[first][:-1], b""):
        changed = update(RESULTS).where(RESULTS.c.pseudonym == first).values(sealed=content)
        campaign.database.write_now(partial(Connection.execute, statement=changed))
        with pytest.raises(IntegrityError, match="results"):
            results(campaign)


async def test_a_script_that_was_altered_is_not_scored(campaign: LandingCampaign) -> None:
    await everybody_answers(campaign)
    await campaign.settle()
    campaign.database.write_now(lambda c: c.execute(update(SCRIPTS).values(version=2, sealed=b"x" * 100)))
    with pytest.raises(IntegrityError, match="scripts"):
        await campaign.settle()


async def test_a_pupil_who_gave_nothing_has_no_result(campaign: LandingCampaign) -> None:
    writer = Writer(campaign.pupils[0])
    await land(campaign, writer.sends(writer.choose("a", "A")))
    await campaign.settle()
    assert list(results(campaign)) == [campaign.pupils[0]]

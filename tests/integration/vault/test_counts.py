"""Counts: what landed is settled, duplicate, conflict or quarantined, and every screen sees the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pli.vault.v1.campaign_pb2 import CampaignCounts
from tests.support.landing_place import LandingPlace, landing_place
from tests.support.sealing_node import Writer
from vault.counts import LandedRecords, accounted, landed_records, scripts_stored
from vault.registry import CHUNK_ENTRIES, ENTRY, known_pseudonyms, registry_chunks
from vault.settlement import is_settled


@pytest.fixture
def place(tmp_path: Path) -> Iterator[LandingPlace]:
    with landing_place(tmp_path) as place:
        yield place


async def test_every_count_is_what_it_says(place: LandingPlace) -> None:
    campaign = place.campaign()
    first, second, stranger = Writer(campaign.pupils[0]), Writer(campaign.pupils[1]), Writer(b"s" * 16)
    twin = Writer(second.pseudonym, second.writer)
    records = [first.choose("a", "A"), first.choose("b", "B"), first.finish()]
    epoch = campaign.node().epoch()
    blocks = [
        epoch.block(first.sends(*records)),
        epoch.block(first.sends(*records[:2])),
        epoch.block(twin.sends(twin.choose("a", "B")), stranger.sends(stranger.choose("a", "A"))),
        epoch.block(second.sends(second.choose("a", "A"), second.finish(digest=bytes(32)))),
    ]
    beside = epoch.sealed(4, [second.sends(second.choose("c", "C"))])
    await campaign.deposit(*blocks, beside, b"poison", headers=[epoch.header])
    assert campaign.counts() == CampaignCounts(landed_blocks=4, landed=10, quarantined_blocks=1)
    counts = await campaign.settle()
    assert (counts.settled, counts.duplicate, counts.conflict, counts.quarantined) == (6, 2, 1, 1)
    assert accounted(counts) == counts.landed == 10
    assert (counts.scripts, counts.answers, counts.digests_agree, counts.digests_differ) == (2, 4, 1, 1)
    assert (counts.pupils, counts.codes, counts.spool_left) == (0, 0, 0), "the campaign's side adds these"
    assert place.database.read_now(lambda c: scripts_stored(c, campaign.campaign_id)) == 2


async def test_sums_are_of_what_is_settled_while_more_has_landed(place: LandingPlace) -> None:
    campaign = place.campaign()
    writer = Writer(campaign.pupils[0])
    epoch = campaign.node().epoch()
    blocks = [epoch.block(writer.sends(*(writer.choose("a", "A") for _ in range(count)))) for count in (1, 2, 4, 8)]
    await campaign.deposit(blocks[0], blocks[3], headers=[epoch.header])
    await campaign.settle()
    await campaign.deposit(blocks[1])

    def records() -> LandedRecords:
        return place.database.read_now(lambda c: landed_records(c, campaign.campaign_id))

    assert records() == LandedRecords(landed=11, targeted=9, accounted=9)
    assert not place.database.read_now(lambda c: is_settled(c, campaign.campaign_id))
    await campaign.settle()
    assert records() == LandedRecords(landed=11, targeted=11, accounted=11)


async def test_a_block_beside_the_log_counts_as_settled_once_a_run_has_taken_it(place: LandingPlace) -> None:
    campaign = place.campaign()
    writer = Writer(campaign.pupils[0])
    epoch = campaign.node().epoch()
    await campaign.deposit(epoch.block(writer.sends(writer.choose("a", "A"))), headers=[epoch.header])
    await campaign.settle()
    await campaign.deposit(epoch.sealed(1, [writer.sends(writer.choose("b", "B"), writer.choose("c", "C"))]))
    sums = place.database.read_now(lambda c: landed_records(c, campaign.campaign_id))
    assert sums == LandedRecords(landed=3, targeted=1, accounted=1)
    await campaign.settle()
    sums = place.database.read_now(lambda c: landed_records(c, campaign.campaign_id))
    assert sums == LandedRecords(landed=3, targeted=3, accounted=3)


async def test_a_campaign_in_which_nothing_landed_counts_nothing_and_is_settled(place: LandingPlace) -> None:
    campaign = place.campaign()
    assert campaign.counts() == CampaignCounts()
    assert place.database.read_now(lambda c: is_settled(c, campaign.campaign_id))


def test_the_registry_comes_in_ascending_order_and_whole_entries(place: LandingPlace) -> None:
    campaign = place.campaign(pupils=30, classes=(25,))
    chunks = place.database.read_now(lambda c: list(registry_chunks(c, campaign.campaign_id)))
    entries = [ENTRY.unpack(chunk[at : at + ENTRY.size]) for chunk in chunks for at in range(0, len(chunk), ENTRY.size)]
    assert ENTRY.size == 20
    assert CHUNK_ENTRIES * ENTRY.size <= 1 << 20
    assert [entry[0] for entry in entries] == sorted([*campaign.pupils, *campaign.classes])
    assert {entry[1:] for entry in entries} == {(1, 0, 1), (2, 25, 1)}


def test_a_registry_larger_than_a_chunk_comes_in_several(place: LandingPlace) -> None:
    campaign = place.campaign(pupils=CHUNK_ENTRIES + 3)
    chunks = place.database.read_now(lambda c: list(registry_chunks(c, campaign.campaign_id)))
    assert [len(chunk) // ENTRY.size for chunk in chunks] == [CHUNK_ENTRIES, 3]


def test_an_empty_registry_has_no_chunk(place: LandingPlace) -> None:
    assert place.database.read_now(lambda c: list(registry_chunks(c, "no such campaign"))) == []


def test_only_pseudonyms_of_this_campaign_are_known(place: LandingPlace) -> None:
    first, second = place.campaign("c-1", pupils=600), place.campaign("c-2", pupils=1)
    asked = sorted([*first.pupils, *second.pupils, b"x" * 16])
    known = place.database.read_now(lambda c: known_pseudonyms(c, "c-1", asked))
    assert sorted(known) == first.pupils
    assert {(entry.kind, entry.seats, entry.status) for entry in known.values()} == {(1, 0, 1)}

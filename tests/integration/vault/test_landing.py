"""Landing: every block gets one verdict, what is receipted is on disk, and the log cannot shrink unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update
from structlog.testing import capture_logs

from pli.blocks import block_hash
from pli.closings import ClosedEpoch, write_closing
from pli.errors import InputError, IntegrityError, NotFound, PliError, VaultLocked
from pli.process import LOG_FIELDS
from pli.signing import DEPOSIT_RECEIPT, ENROLLED, verify
from pli.vault.v1.deposit_pb2 import DepositReceipt, DepositRequest, Verdict
from tests.support.landing_place import NOW_MS, LandingCampaign, LandingPlace, landing_place
from tests.support.sealing_node import SealedEpoch, Writer
from vault.closings import load_closings
from vault.epochs import OpenEpochs
from vault.landing import Landing
from vault.landing_log import LOG, verify_log
from vault.merkle import consistency_proof, leaf_hash, root_of, verify_consistency
from vault.quarantine import BLOCK, CLOSING, HEADER
from vault.store.landing_tables import (
    DEPOSIT_RECEIPTS,
    EPOCH_HEADERS,
    LANDED_BLOCKS,
    LANDING_CONFLICTS,
    LANDING_LOG,
    QUARANTINE,
)
from vault.store.log_heads import read_head

NEW, DUPLICATE = Verdict.VERDICT_NEW, Verdict.VERDICT_DUPLICATE
CONFLICT, QUARANTINED, RETRY = Verdict.VERDICT_CONFLICT, Verdict.VERDICT_QUARANTINED, Verdict.VERDICT_RETRY


@pytest.fixture
def place(tmp_path: Path) -> Iterator[LandingPlace]:
    with landing_place(tmp_path) as place:
        yield place


@pytest.fixture
def campaign(place: LandingPlace) -> LandingCampaign:
    return place.campaign()


def answered(epoch: SealedEpoch, campaign: LandingCampaign, records: int = 2) -> bytes:
    """The next block of an epoch: so many answers of the first pupil."""
    writer = Writer(campaign.pupils[0])
    return epoch.block(writer.sends(*(writer.choose("a", "A") for _ in range(records))))


def quarantined(campaign: LandingCampaign) -> list[tuple[str, bytes]]:
    """(kind, content) of everything in quarantine."""
    rows = campaign.database.read_now(
        lambda connection: connection.execute(
            select(QUARANTINE.c.kind, QUARANTINE.c.content).where(QUARANTINE.c.campaign_id == campaign.campaign_id)
        ).all()
    )
    return [(row.kind, row.content) for row in rows]


def altered(raw: bytes, at: int = -1) -> bytes:
    changed = bytearray(raw)
    changed[at] ^= 1
    return bytes(changed)


async def test_a_block_lands_with_its_header_and_the_same_bytes_again_are_a_duplicate(
    campaign: LandingCampaign,
) -> None:
    epoch = campaign.node().epoch()
    block = answered(epoch, campaign)
    assert await campaign.verdicts(block, block, headers=[epoch.header]) == [NEW, DUPLICATE]
    assert await campaign.verdicts(block) == [DUPLICATE]
    assert campaign.place.rows_in(LANDED_BLOCKS) == 1
    assert (campaign.counts().landed_blocks, campaign.counts().landed) == (1, 2)


async def test_the_receipt_names_every_block_in_the_order_of_the_request(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    blocks = [answered(epoch, campaign, records) for records in (1, 3, 2)]
    receipt = await campaign.deposit(*reversed(blocks), headers=[epoch.header])
    assert [verdict.digest for verdict in receipt.blocks] == [block_hash(block) for block in reversed(blocks)]
    assert [verdict.records for verdict in receipt.blocks] == [2, 3, 1]
    assert receipt.campaign_id == campaign.campaign_id


async def test_what_is_receipted_is_on_disk_in_another_process_eyes(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    response = await campaign.landing.deposit(campaign.request(answered(epoch, campaign), headers=[epoch.header]))
    with landing_place_again(campaign.place) as again:
        assert again.rows_in(LANDED_BLOCKS) == again.rows_in(EPOCH_HEADERS) == 1
        stored = again.database.read_now(lambda connection: connection.execute(select(DEPOSIT_RECEIPTS)).one())
    assert (stored.body, stored.signature) == (response.receipt.body, response.receipt.signature)


def landing_place_again(place: LandingPlace) -> AbstractContextManager[LandingPlace]:
    """The same database, opened by a vault of its own."""
    return landing_place(place.directory)


async def test_receipts_are_numbered_without_a_gap_over_all_campaigns(place: LandingPlace) -> None:
    first, second = place.campaign("c-1"), place.campaign("c-2")
    numbers = [(await campaign.deposit()).number for campaign in (first, second, first, second)]
    assert numbers == [1, 2, 3, 4]


async def test_a_receipt_is_signed_for_its_purpose_alone(campaign: LandingCampaign) -> None:
    response = await campaign.landing.deposit(campaign.request())
    key = campaign.keys.signing.public_key()
    assert DepositReceipt.FromString(verify(key, DEPOSIT_RECEIPT, response.receipt)).number == 1
    with pytest.raises(IntegrityError):
        verify(key, ENROLLED, response.receipt)


# Headers


async def test_a_block_without_its_header_is_to_be_sent_again_and_leaves_nothing(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    block = answered(epoch, campaign)
    assert await campaign.verdicts(block) == [RETRY]
    assert campaign.place.rows_in(LANDED_BLOCKS) == campaign.place.rows_in(QUARANTINE) == 0
    assert await campaign.verdicts(block, headers=[epoch.header]) == [NEW]


async def test_a_header_sent_once_serves_later_deposits_and_other_processes(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    await campaign.deposit(headers=[epoch.header])
    assert await campaign.verdicts(answered(epoch, campaign)) == [NEW]
    campaign.landing = campaign.place.landing()
    assert await campaign.verdicts(answered(epoch, campaign)) == [NEW]


async def test_a_refused_header_is_kept_for_examination_with_its_blocks(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    block = answered(epoch, campaign)
    stranger = campaign.place.campaign("c-2").node().epoch()
    foreign = answered(stranger, campaign)
    receipt = await campaign.deposit(foreign, block, headers=[stranger.header, epoch.header])
    assert [verdict.verdict for verdict in receipt.blocks] == [QUARANTINED, NEW]
    assert sorted(quarantined(campaign)) == sorted([(HEADER, stranger.header), (BLOCK, foreign)])


async def test_a_stored_header_that_was_altered_is_refused_loudly(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    await campaign.deposit(headers=[epoch.header])
    campaign.database.write_now(
        lambda connection: connection.execute(update(EPOCH_HEADERS).values(header=altered(epoch.header)))
    )
    campaign.landing = campaign.place.landing()
    assert await campaign.verdicts(answered(epoch, campaign)) == [QUARANTINED]


# Poison


async def test_poison_is_kept_and_stops_nothing(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    good = [answered(epoch, campaign) for _ in range(3)]
    poison = [b"", b"no block", altered(good[0]), good[1][:-1], good[1] + b"\0"]
    receipt = await campaign.deposit(good[0], *poison, *good[1:], headers=[b"no header", epoch.header])
    assert [verdict.verdict for verdict in receipt.blocks] == [NEW, *[QUARANTINED] * 5, NEW, NEW]
    assert sorted(quarantined(campaign)) == sorted([(HEADER, b"no header"), *((BLOCK, content) for content in poison)])
    assert campaign.counts().quarantined_blocks == 5
    assert campaign.counts().landed_blocks == 3


async def test_an_incident_is_logged_by_reason_and_hash_and_shows_nothing_of_the_content(
    campaign: LandingCampaign,
) -> None:
    with capture_logs() as logged:
        await campaign.deposit(b"MARKER of a block", headers=[b"MARKER of a header"], closings=[b"MARKER of a closing"])
    assert [entry["event"] for entry in logged] == ["header_quarantined", "block_quarantined", "closing_quarantined"]
    assert all(set(entry) - {"log_level"} <= LOG_FIELDS for entry in logged)
    assert "MARKER" not in str(logged)


async def test_the_same_poison_again_is_kept_once(campaign: LandingCampaign) -> None:
    for _ in range(2):
        assert await campaign.verdicts(b"no block") == [QUARANTINED]
    assert campaign.counts().quarantined_blocks == 1


async def test_a_block_of_another_shard_or_campaign_is_poison(place: LandingPlace) -> None:
    campaign, other = place.campaign("c-1", shards=2), place.campaign("c-2")
    elsewhere, foreign = campaign.node().epoch(shard=1), other.node().epoch()
    await campaign.deposit(headers=[elsewhere.header], shard=1)
    assert await campaign.verdicts(answered(elsewhere, campaign), shard=0) == [QUARANTINED]
    assert await campaign.verdicts(answered(foreign, other), headers=[foreign.header]) == [QUARANTINED]


async def test_every_deposit_accounts_for_every_block(campaign: LandingCampaign) -> None:
    node = campaign.node()
    epoch, unknown = node.epoch(), node.epoch()
    first = answered(epoch, campaign)
    other = epoch.sealed(1, [Writer(campaign.pupils[1]).sends()])
    sent = [first, first, other, other, altered(first), answered(unknown, campaign)]
    verdicts = await campaign.verdicts(*sent, headers=[epoch.header])
    assert verdicts == [NEW, DUPLICATE, CONFLICT, DUPLICATE, QUARANTINED, RETRY]


# Conflicts


async def test_another_authentic_block_of_the_same_number_is_kept_beside_the_first(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    first = answered(epoch, campaign)
    writer = Writer(campaign.pupils[1])
    second = epoch.sealed(1, [writer.sends(writer.choose("b", "B"), writer.choose("b", "C"), writer.choose("b", "A"))])
    assert await campaign.verdicts(first, headers=[epoch.header]) == [NEW]
    assert await campaign.verdicts(second) == [CONFLICT]
    assert await campaign.verdicts(second, first) == [DUPLICATE, DUPLICATE]
    assert campaign.place.rows_in(LANDING_LOG) == campaign.place.rows_in(LANDING_CONFLICTS) == 1
    assert campaign.counts().landed == 2 + 3


# The log


async def test_the_log_grows_and_every_receipt_proves_the_one_before(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    receipts = []
    for _ in range(5):
        blocks = [answered(epoch, campaign) for _ in range(3)]
        receipts.append(await campaign.deposit(*blocks, headers=[epoch.header]))
    hashes = leaves_of(campaign)
    assert [receipt.log_size for receipt in receipts] == [3, 6, 9, 12, 15]
    for receipt in receipts:
        assert receipt.log_root == root_of(hashes[: receipt.log_size])
        proof = consistency_proof(hashes, receipt.log_size)
        verify_consistency(receipt.log_size, receipt.log_root, 15, receipts[-1].log_root, proof)


async def test_a_log_that_lost_a_block_does_not_fit_the_receipts(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    receipt = await campaign.deposit(*(answered(epoch, campaign) for _ in range(4)), headers=[epoch.header])
    campaign.database.write_now(
        lambda connection: connection.execute(delete(LANDING_LOG).where(LANDING_LOG.c.position == 2))
    )
    assert root_of(leaves_of(campaign)) != receipt.log_root
    with pytest.raises(IntegrityError, match="3 blocks"):
        campaign.database.read_now(lambda connection: verify_log(connection, campaign.campaign_id))


async def test_a_log_that_nobody_touched_proves_its_head(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    receipt = await campaign.deposit(*(answered(epoch, campaign) for _ in range(5)), headers=[epoch.header])
    head = campaign.database.read_now(lambda connection: verify_log(connection, campaign.campaign_id))
    assert (head.size, head.root()) == (receipt.log_size, receipt.log_root)


async def test_a_duplicate_does_not_grow_the_log(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    block = answered(epoch, campaign)
    first = await campaign.deposit(block, headers=[epoch.header])
    again = await campaign.deposit(block)
    assert (again.log_size, again.log_root) == (first.log_size, first.log_root)
    assert again.number == first.number + 1


def leaves_of(campaign: LandingCampaign) -> list[bytes]:
    """The leaves as anyone can compute them who reads the table."""
    rows = campaign.database.read_now(
        lambda connection: connection.execute(select(LANDING_LOG).order_by(LANDING_LOG.c.position)).all()
    )
    return [
        leaf_hash(
            row.shard.to_bytes(2, "big")
            + row.epoch_id
            + row.number.to_bytes(8, "big")
            + row.records.to_bytes(4, "big")
            + row.digest
        )
        for row in rows
    ]


async def test_positions_go_on_from_the_head_of_the_log(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    for _ in range(3):
        await campaign.deposit(answered(epoch, campaign), headers=[epoch.header])
    assert campaign.database.read_now(lambda c: read_head(c, campaign.campaign_id, LOG)).size == 3
    positions = select(LANDING_LOG.c.position).order_by(LANDING_LOG.c.position)
    assert campaign.database.read_now(lambda c: c.execute(positions).scalars().all()) == [0, 1, 2]


async def test_deposits_side_by_side_leave_one_whole_log(campaign: LandingCampaign) -> None:
    epochs = [campaign.node().epoch() for _ in range(6)]
    blocks = {epoch.epoch_id: [answered(epoch, campaign) for _ in range(4)] for epoch in epochs}
    receipts = await asyncio.gather(
        *(campaign.deposit(*blocks[epoch.epoch_id], headers=[epoch.header]) for epoch in epochs),
        *(campaign.deposit(*blocks[epoch.epoch_id], headers=[epoch.header]) for epoch in epochs),
    )
    verdicts = [block.verdict for receipt in receipts for block in receipt.blocks]
    assert (verdicts.count(NEW), verdicts.count(DUPLICATE)) == (24, 24)
    newest = max(receipts, key=lambda receipt: receipt.number)
    assert newest.log_root == root_of(leaves_of(campaign))


# Closings


async def test_the_first_closing_of_a_shard_is_taken_and_only_the_same_again(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    block = answered(epoch, campaign)
    closing = write_closing(campaign.campaign_id, 0, b"m" * 16, [ClosedEpoch(epoch.epoch_id, 1, block_hash(block))])
    other = write_closing(campaign.campaign_id, 0, b"m" * 16, [])
    foreign = write_closing("c-2", 0, b"m" * 16, [])
    receipt = await campaign.deposit(block, headers=[epoch.header], closings=[closing, closing, other, foreign, b"x"])
    assert list(receipt.closings) == [True, True, False, False, False]
    assert sorted(quarantined(campaign)) == sorted([(CLOSING, other), (CLOSING, foreign), (CLOSING, b"x")])
    stored = campaign.database.read_now(lambda connection: load_closings(connection, campaign.campaign_id))
    assert [found.epochs[0].last_number for found in stored.values()] == [1]


# Refusals of the whole


async def test_locked_answers_take_no_deposit(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    campaign.keyring.forget_answers()
    with pytest.raises(VaultLocked):
        await campaign.deposit(answered(epoch, campaign), headers=[epoch.header])
    assert campaign.place.rows_in(DEPOSIT_RECEIPTS) == 0


async def test_a_deposit_under_way_when_the_answers_are_locked_leaves_no_key_behind(campaign: LandingCampaign) -> None:
    epochs = OpenEpochs()

    def lock() -> int:
        campaign.keyring.forget_answers()
        epochs.forget()
        return NOW_MS

    # The clock is asked while the header is examined, and while the deposit is stored.
    landing = Landing(campaign.database, campaign.keyring, lock, epochs)
    epoch = campaign.node().epoch()
    await landing.deposit(campaign.request(answered(epoch, campaign), headers=[epoch.header]))
    landing.close()
    assert not epochs._epochs


@pytest.mark.parametrize("shard", [1, 2**31])
async def test_a_shard_that_the_campaign_does_not_have_is_refused(campaign: LandingCampaign, shard: int) -> None:
    with pytest.raises(InputError, match="no shard"):
        await campaign.landing.deposit(campaign.request(shard=shard))


async def test_an_unknown_campaign_is_refused(campaign: LandingCampaign) -> None:
    other = campaign.place.campaign("c-2")
    campaign.database.write_now(lambda connection: connection.exec_driver_sql("DELETE FROM campaigns"))
    with pytest.raises(NotFound):
        await other.landing.deposit(other.request())


async def test_a_deposit_that_cannot_be_stored_leaves_nothing_and_may_be_repeated(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    block = answered(epoch, campaign)
    full = "CREATE TRIGGER full BEFORE INSERT ON deposit_receipts BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    campaign.database.write_now(lambda connection: connection.exec_driver_sql(full))
    with pytest.raises(Exception, match="disk full"):
        await campaign.deposit(block, headers=[epoch.header])
    assert campaign.place.rows_in(LANDED_BLOCKS) == campaign.place.rows_in(EPOCH_HEADERS) == 0
    # The header is not remembered either: its blocks would land without it.
    campaign.database.write_now(lambda connection: connection.exec_driver_sql("DROP TRIGGER full"))
    assert await campaign.verdicts(block) == [RETRY]
    assert await campaign.verdicts(block, headers=[epoch.header]) == [NEW]


@pytest.mark.filterwarnings("ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning")
async def test_a_header_and_a_block_of_any_rubbish_are_never_more_than_poison(campaign: LandingCampaign) -> None:
    epoch = campaign.node().epoch()
    block = answered(epoch, campaign)
    rubbish = [altered(block, at) for at in range(0, len(block), 7)]
    headers = [altered(epoch.header, at) for at in range(0, len(epoch.header), 41)]
    request = DepositRequest(campaign_id=campaign.campaign_id, relay="r", headers=headers, blocks=[*rubbish, block])
    try:
        await campaign.landing.deposit(request)
    except PliError as error:
        pytest.fail(f"one bad item stopped the rest: {error}")
    assert campaign.counts().landed_blocks == 0
    assert await campaign.verdicts(block, headers=[epoch.header]) == [NEW]

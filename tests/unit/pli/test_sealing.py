"""Sealing: bound to its place, never the same nonce twice, and over when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from struct import error as struct_error
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from pli.blocks import NO_HASH, Block, block_hash, read_block
from pli.errors import StateError
from pli.records import NONCE, PLACE, RECORD_DOMAIN, TAG_DOMAIN, TAG_LABEL, RecordKind, record_context, unpad
from pli.sealing import NewRecord, SealingEpoch
from pli.secret import Secret

KEY = bytes(range(32))
EPOCH_ID = b"e" * 16
PUPIL, WRITER = b"p" * 16, b"w" * 16
ANSWERS: list[NewRecord] = [(seq, 0, RecordKind.ANSWER, b"answer %d" % seq) for seq in (1, 2, 3)]


def epoch(key: Secret | None = None) -> SealingEpoch:
    return SealingEpoch("rehearsal", 3, key or Secret(KEY), b"header", EPOCH_ID)


def opened(block: Block, **elsewhere: Any) -> list[tuple[int, bytes]]:
    """Opens every record as DESIGN 6 says, at its own place or at another one."""
    found = []
    for section in block.sections:
        for seq, seat, counter, ciphertext in section.records:
            place: dict[str, Any] = {
                "campaign_id": block.context.campaign_id, "epoch_id": block.context.epoch_id, "key": KEY,
                "pseudonym": section.pseudonym, "opening": section.opening, "writer": section.writer,
                "seat": seat, "seq": seq, "counter": counter, **elsewhere,
            }  # fmt: skip
            context = record_context(place["campaign_id"], place["epoch_id"]) + PLACE.pack(
                place["pseudonym"], place["opening"], place["writer"], place["seat"], place["seq"]
            )
            nonce = NONCE.pack(RECORD_DOMAIN, place["counter"])
            found.append(unpad(AESGCM(place["key"]).decrypt(nonce, ciphertext, context)))
    return found


def check_tag(block: Block, key: bytes = KEY) -> None:
    nonce = NONCE.pack(TAG_DOMAIN, block.context.tag_counter)
    assert AESGCM(key).decrypt(nonce, block.tag, TAG_LABEL + block.tagged_part) == b""


def sealed_block(sealing: SealingEpoch, records: Sequence[NewRecord] = ANSWERS) -> Block:
    section = sealing.seal_section(PUPIL, WRITER, 2, records)
    return read_block(sealing.seal_block(1, NO_HASH, [section], len(records)))


PAYLOADS = st.lists(st.tuples(st.integers(0, 65_535), st.sampled_from([1, 2, 3]), st.binary(max_size=300)), max_size=6)


@given(st.lists(PAYLOADS, max_size=4))
def test_what_is_sealed_opens_with_the_epoch_key_at_its_place(sessions: list[list[tuple[int, int, bytes]]]) -> None:
    sealing = epoch()
    sections, given_records = [], []
    for number, session in enumerate(sessions):
        records = [(seq, seat, kind, payload) for seq, (seat, kind, payload) in enumerate(session, start=1)]
        sections.append(sealing.seal_section(bytes([number]) * 16, WRITER, number, records))
        given_records += [(kind, payload) for _, _, kind, payload in records]
    block = read_block(sealing.seal_block(1, NO_HASH, sections, len(given_records)))
    check_tag(block)
    assert opened(block) == given_records
    assert (block.context.campaign_id, block.context.shard, block.context.epoch_id) == ("rehearsal", 3, EPOCH_ID)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"campaign_id": "rehearsal2"},
        {"epoch_id": b"f" * 16},
        {"pseudonym": b"q" * 16},
        {"opening": 3},
        {"writer": b"v" * 16},
        {"seat": 1},
        {"seq": 2},
        {"counter": 1},
        {"key": bytes(32)},
    ],
)
def test_a_record_cannot_be_moved(elsewhere: dict[str, object]) -> None:
    block = sealed_block(epoch(), ANSWERS[:1])
    assert opened(block) == [(RecordKind.ANSWER, b"answer 1")]
    with pytest.raises(InvalidTag):
        opened(block, **elsewhere)


def test_the_tag_covers_every_bit_of_the_block() -> None:
    raw = epoch().seal_block(1, NO_HASH, [epoch().seal_section(PUPIL, WRITER, 2, ANSWERS[:1])], 1)
    check_tag(read_block(raw))
    tagged, tag = raw[:-16], raw[-16:]
    for bit in range(8 * len(raw)):
        altered = bytearray(raw)
        altered[bit // 8] ^= 1 << bit % 8
        tagged, tag = bytes(altered[:-16]), bytes(altered[-16:])
        with pytest.raises(InvalidTag):
            AESGCM(KEY).decrypt(NONCE.pack(TAG_DOMAIN, 0), tag, TAG_LABEL + tagged)


def test_the_tag_binds_the_previous_block() -> None:
    sealing = epoch()
    first = sealing.seal_block(1, NO_HASH, [], 0)
    second = read_block(sealing.seal_block(2, block_hash(first), [], 0))
    assert second.context.previous_hash == block_hash(first)
    check_tag(second)


def test_no_answer_is_in_the_block_in_clear_and_all_short_ones_have_one_length() -> None:
    sealing = epoch()
    section = sealing.seal_section(PUPIL, WRITER, 2, [(1, 0, 1, b"A"), (2, 0, 1, b"photosynthesis"), (3, 0, 3, b"")])
    block = read_block(sealing.seal_block(1, NO_HASH, [section], 3))
    assert b"photosynthesis" not in section
    assert {len(record[3]) for record in block.sections[0].records} == {64 + 16}


# Nonces


def nonces(*blocks: Block) -> list[bytes]:
    found = [NONCE.pack(TAG_DOMAIN, block.context.tag_counter) for block in blocks]
    sections = {id(section): section for block in blocks for section in block.sections}
    return found + [NONCE.pack(RECORD_DOMAIN, record[2]) for section in sections.values() for record in section.records]


def test_no_nonce_is_used_twice_over_sections_and_blocks() -> None:
    sealing = epoch()
    blocks = [sealed_block(sealing) for _ in range(20)]
    used = nonces(*blocks)
    assert len(used) == 20 * (3 + 1) == len(set(used))
    assert sealing.sealed_records == 60


def test_a_block_sealed_again_without_superseded_sessions_has_a_new_tag_nonce_and_no_new_record_nonce() -> None:
    sealing = epoch()
    sections = [sealing.seal_section(bytes([n]) * 16, WRITER, 1, ANSWERS) for n in range(3)]
    first = read_block(sealing.seal_block(1, NO_HASH, sections, 9))
    again = read_block(sealing.seal_block(1, NO_HASH, [sections[0], sections[2]], 6))
    third = read_block(sealing.seal_block(1, NO_HASH, [], 0))
    for block in (first, again, third):
        check_tag(block)
    assert len({block.context.tag_counter for block in (first, again, third)}) == 3
    assert sealing.sealed_records == 9
    assert again.sections == [first.sections[0], first.sections[2]], "the same bytes under the same nonces"
    with pytest.raises(InvalidTag):
        # The tag of the larger block does not hold for the smaller one under its number.
        AESGCM(KEY).decrypt(NONCE.pack(TAG_DOMAIN, first.context.tag_counter), again.tag, TAG_LABEL + again.tagged_part)


@pytest.mark.parametrize(
    "impossible", [(9, 0, 256, b""), (2**64, 0, 1, b""), (9, 70_000, 1, b""), (9, 0, 1, bytes(70_000))]
)
def test_a_nonce_is_gone_even_if_sealing_fails_behind_it(impossible: NewRecord) -> None:
    sealing = epoch()
    with pytest.raises(struct_error):
        sealing.seal_section(PUPIL, WRITER, 2, [*ANSWERS, impossible])
    block = sealed_block(sealing)
    assert min(record[2] for record in block.sections[0].records) >= len(ANSWERS)
    assert opened(block) == [(1, payload) for _, _, _, payload in ANSWERS]


def test_counters_of_different_blocks_never_meet() -> None:
    sealing = epoch()
    used = [{record[2] for record in sealed_block(sealing).sections[0].records} for _ in range(5)]
    assert all(not one & other for one, other in combinations(used, 2))


# The end of an epoch


def test_the_end_wipes_the_key_and_nothing_is_sealed_any_more() -> None:
    key = Secret(KEY)
    sealing = epoch(key)
    section = sealing.seal_section(PUPIL, WRITER, 2, ANSWERS)
    sealing.end()
    assert key.reveal() == bytes(32)
    with pytest.raises(StateError, match="ended"):
        sealing.seal_section(PUPIL, WRITER, 2, ANSWERS)
    with pytest.raises(StateError, match="ended"):
        sealing.seal_block(1, NO_HASH, [section], 3)
    sealing.end()


def test_an_epoch_prints_neither_key_nor_content() -> None:
    shown = repr(epoch()) + str(epoch()) + f"{epoch()}"
    assert KEY.hex()[:8] not in shown
    assert EPOCH_ID.hex() not in shown

"""Blocks as bytes: taken apart whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.blocks import (
    FIXED,
    MAGIC,
    MAX_BLOCK_BYTES,
    NO_HASH,
    RECORD,
    SECTION,
    TAG_BYTES,
    BlockContext,
    Section,
    assemble,
    block_hash,
    read_block,
    read_context,
)
from pli.errors import IntegrityError

ID = st.binary(min_size=16, max_size=16)
U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
RECORDS = st.lists(st.tuples(U64, U16, U32, st.binary(max_size=80)), max_size=5)
SECTIONS = st.lists(st.builds(Section, ID, ID, U32, RECORDS), max_size=5)
CONTEXTS = st.builds(BlockContext, st.text(max_size=60), U16, ID, U64, U32, st.binary(min_size=32, max_size=32))
CONTEXT = BlockContext("rehearsal", 3, b"e" * 16, 5, 9, NO_HASH)
SAMPLE = [
    Section(b"p" * 16, b"w" * 16, 1, [(1, 0, 0, b"first"), (2, 0, 1, b"second")]),
    Section(b"q" * 16, b"v" * 16, 2, [(8, 4, 2, b"third")]),
]


def serialised(section: Section) -> bytes:
    parts = [SECTION.pack(section.pseudonym, section.writer, section.opening, len(section.records))]
    for seq, seat, counter, ciphertext in section.records:
        parts.append(RECORD.pack(seq, seat, counter, len(ciphertext)) + ciphertext)
    return b"".join(parts)


def written(context: BlockContext, sections: list[Section], tag: bytes = b"t" * TAG_BYTES) -> bytes:
    records = sum(len(section.records) for section in sections)
    return assemble(context, [serialised(section) for section in sections], records) + tag


RAW = written(CONTEXT, SAMPLE)
AT = len(MAGIC) + 1 + len("rehearsal")
COUNTS_AT = AT + FIXED.size - 6
"""Where the counts of sections (2 bytes) and records (4) stand."""


@given(CONTEXTS.filter(lambda context: len(context.campaign_id.encode()) < 256), SECTIONS)
def test_what_is_written_is_read_back(context: BlockContext, sections: list[Section]) -> None:
    raw = written(context, sections)
    block = read_block(raw)
    assert (block.context, block.sections) == (context, sections)
    assert block.record_count == sum(len(section.records) for section in sections)
    assert block.tagged_part + block.tag == raw
    assert len(block.tag) == TAG_BYTES
    assert read_context(raw) == context


def test_the_layout_is_as_documented() -> None:
    assert RAW.startswith(
        b"PLIB\x01\x09rehearsal" + b"\0\3" + b"e" * 16 + b"\0" * 7 + b"\5" + b"\0\0\0\x09" + bytes(32) + b"\0\2\0\0\0\3"
        + b"p" * 16 + b"w" * 16 + b"\0\0\0\1" + b"\0\2"
        + b"\0" * 7 + b"\1" + b"\0\0" + b"\0\0\0\0" + b"\0\5first"
    )  # fmt: skip
    assert block_hash(RAW) == sha256(RAW).digest()


def test_a_block_cut_at_any_byte_is_refused() -> None:
    for length in range(len(RAW)):
        with pytest.raises(IntegrityError):
            read_block(RAW[:length])


@pytest.mark.parametrize("more", [b"\0", b"x" * 15, b"t" * 16, RAW])
def test_a_block_with_bytes_after_its_end_is_refused(more: bytes) -> None:
    with pytest.raises(IntegrityError):
        read_block(RAW + more)


@pytest.mark.parametrize("sections", [0, 1, 3, 1000, 65_535])
def test_a_wrong_count_of_sections_is_refused(sections: int) -> None:
    with pytest.raises(IntegrityError):
        read_block(RAW[:COUNTS_AT] + sections.to_bytes(2, "big") + RAW[COUNTS_AT + 2 :])


@pytest.mark.parametrize("records", [0, 2, 4, 2**32 - 1])
def test_a_wrong_count_of_records_is_refused(records: int) -> None:
    with pytest.raises(IntegrityError):
        read_block(RAW[: COUNTS_AT + 2] + records.to_bytes(4, "big") + RAW[COUNTS_AT + 6 :])


@pytest.mark.parametrize("records", [0, 1, 3, 65_535])
def test_a_wrong_count_in_a_section_is_refused(records: int) -> None:
    at = COUNTS_AT + 6 + SECTION.size - 2
    with pytest.raises(IntegrityError):
        read_block(RAW[:at] + records.to_bytes(2, "big") + RAW[at + 2 :])


@pytest.mark.parametrize("length", [0, 4, 6, 65_535])
def test_a_wrong_length_of_a_record_is_refused(length: int) -> None:
    at = COUNTS_AT + 6 + SECTION.size + RECORD.size - 2
    with pytest.raises(IntegrityError):
        read_block(RAW[:at] + length.to_bytes(2, "big") + RAW[at + 2 :])


@pytest.mark.parametrize("raw", [b"", b"PLIB", b"PLIB\x02" + RAW[5:], b"PLIE" + RAW[4:], bytes(100)])
def test_another_format_or_version_is_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError, match="another format"):
        read_block(raw)


def test_a_campaign_that_is_no_text_is_refused() -> None:
    with pytest.raises(IntegrityError):
        read_block(RAW[:6] + b"\xff" + RAW[7:])


def test_a_block_larger_than_a_spool_call_is_refused() -> None:
    section = Section(b"p" * 16, b"w" * 16, 1, [(n, 0, n, b"x" * 65_000) for n in range(16)])
    filler = MAX_BLOCK_BYTES - len(written(CONTEXT, [section])) - RECORD.size
    fits = replace(section, records=[*section.records, (16, 0, 16, b"x" * filler)])
    assert len(written(CONTEXT, [fits])) == MAX_BLOCK_BYTES
    assert read_block(written(CONTEXT, [fits])).record_count == 17
    over = replace(section, records=[*section.records, (16, 0, 16, b"x" * (filler + 1))])
    with pytest.raises(IntegrityError):
        read_block(written(CONTEXT, [over]))


def test_every_flipped_bit_is_refused_or_read_as_other_content() -> None:
    original = read_block(RAW)
    for bit in range(8 * len(RAW)):
        altered = bytearray(RAW)
        altered[bit // 8] ^= 1 << bit % 8
        try:
            assert read_block(bytes(altered)) != original
        except IntegrityError:
            continue


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_read_or_refused(noise: bytes, framed: bool) -> None:
    raw = RAW[:COUNTS_AT] + noise if framed else MAGIC + noise
    try:
        assert written(read_block(raw).context, read_block(raw).sections, raw[-TAG_BYTES:]) == raw
    except IntegrityError:
        return

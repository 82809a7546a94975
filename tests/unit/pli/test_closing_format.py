"""The frozen table of epochs that a shard leaves when it closes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.closings import MAX_CLOSING_BYTES, ClosedEpoch, Closing, read_closing, write_closing
from pli.errors import IntegrityError

ID = st.binary(min_size=16, max_size=16)
EPOCHS = st.lists(
    st.builds(ClosedEpoch, ID, st.integers(1, 2**64 - 1), st.binary(min_size=32, max_size=32)),
    max_size=6,
    unique_by=lambda epoch: epoch.epoch_id,
)
ONE = ClosedEpoch(b"1" * 16, 12, b"d" * 32)
TWO = ClosedEpoch(b"2" * 16, 1, b"f" * 32)
RAW = write_closing("rehearsal", 2, b"m" * 16, [ONE, TWO])
COUNT_AT = len(RAW) - 2 * 56 - 4


@given(st.text(max_size=60), st.integers(0, 65_535), ID, EPOCHS)
def test_what_is_written_is_read_back(campaign: str, shard: int, marker: bytes, epochs: list[ClosedEpoch]) -> None:
    closing = Closing(campaign, shard, marker, tuple(epochs))
    assert read_closing(write_closing(campaign, shard, marker, epochs)) == closing


def test_the_layout_is_as_documented() -> None:
    assert RAW == (
        b"PLIC\x01\x09rehearsal" + b"\0\2" + b"m" * 16 + b"\0\0\0\2"
        + b"1" * 16 + b"\0" * 7 + b"\x0c" + b"d" * 32
        + b"2" * 16 + b"\0" * 7 + b"\x01" + b"f" * 32
    )  # fmt: skip


def test_a_closing_cut_at_any_byte_is_refused() -> None:
    for length in range(len(RAW)):
        with pytest.raises(IntegrityError):
            read_closing(RAW[:length])


@pytest.mark.parametrize(
    "raw",
    [
        RAW + b"\0",
        RAW + RAW[-56:],
        RAW[:COUNT_AT] + b"\0\0\0\1" + RAW[COUNT_AT + 4 :],
        RAW[:COUNT_AT] + b"\xff\xff\xff\xff" + RAW[COUNT_AT + 4 :],
        b"PLIC\x02" + RAW[5:],
        b"PLIC\x01\x01\xff" + RAW[15:],
        b"PLIC\x01\xff" + RAW[6:],
        write_closing("c", 0, bytes(16), [ONE, ClosedEpoch(ONE.epoch_id, 13, b"e" * 32)]),
        write_closing("c", 0, bytes(16), [ONE, ONE]),
        write_closing("c", 0, bytes(16), [ClosedEpoch(ONE.epoch_id, 0, b"e" * 32)]),
    ],
)
def test_extended_miscounted_foreign_empty_and_repeated_epochs_are_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        read_closing(raw)


def test_a_closing_above_the_limit_is_refused_unread() -> None:
    epochs = [ClosedEpoch(n.to_bytes(16, "big"), 1, bytes(32)) for n in range(MAX_CLOSING_BYTES // 56 + 1)]
    with pytest.raises(IntegrityError, match="another format"):
        read_closing(write_closing("c", 0, bytes(16), epochs))
    assert len(read_closing(write_closing("c", 0, bytes(16), epochs[:18_000])).epochs) == 18_000


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(noise: bytes) -> None:
    try:
        closing = read_closing(b"PLIC\x01" + noise)
    except IntegrityError:
        return
    assert write_closing(closing.campaign_id, closing.shard, closing.marker, closing.epochs) == b"PLIC\x01" + noise

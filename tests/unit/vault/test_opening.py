"""Opening: what a node sealed opens at its place; everything else, byte by byte, is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from pli.blocks import NO_HASH, RECORD, SECTION, read_block
from pli.development_ca import DevelopmentAuthority
from pli.epochs import NO_EPOCH, EpochContext, make_header, node_key_id, read_header
from pli.errors import IntegrityError, PliError
from pli.hpke import PrivateKey
from pli.records import NONCE, PLACE, RECORD_DOMAIN, RecordKind, pad, record_context
from pli.rpc.roles import RELAY
from pli.sealing import SealingEpoch
from pli.secret import Secret
from tests.support.sealing_node import SealingNode, Section, Writer
from vault.epochs import MAX_STORED_NUMBER, accept_header
from vault.keyring import AnswerKeys
from vault.opening import ENTRY, OpeningEpoch
from vault.rows import RowCipher

NOW_MS = 1_790_000_000_000
NOW = datetime.fromtimestamp(NOW_MS / 1000, UTC)
CAMPAIGN = "c-1"
ANSWER_KEY = PrivateKey.generate()
EPOCH_KEY = bytes(range(32))
EPOCH_ID = bytes(range(16))
LOW, HIGH = bytes(8), b"\xff" * 17
FLIPS = (0x01, 0x80, 0xFF)

Entries = dict[bytes, list[bytes]]


def sealing(campaign_id: str = CAMPAIGN, epoch_id: bytes = EPOCH_ID, shard: int = 0) -> SealingEpoch:
    """An epoch of a key that the test knows."""
    return SealingEpoch(campaign_id, shard, Secret(EPOCH_KEY), b"", epoch_id)


def opening(campaign_id: str = CAMPAIGN, epoch_id: bytes = EPOCH_ID) -> OpeningEpoch:
    return OpeningEpoch(campaign_id, epoch_id, EPOCH_KEY)


def block_of(*sections: bytes, records: int, epoch: SealingEpoch | None = None) -> bytes:
    """A block with a right tag, whatever its sections hold."""
    return (epoch or sealing()).seal_block(1, NO_HASH, sections, records)


def small_block() -> tuple[bytes, list[Section]]:
    """Two sessions, three records."""
    first, second = Writer(b"p" * 16), Writer(b"q" * 16, opening=3)
    sections = [first.sends(first.choose("a", "A"), first.clear("a")), second.sends(second.choose("b", "C"))]
    epoch = sealing()
    return block_of(*[epoch.seal_section(*section) for section in sections], records=3, epoch=epoch), sections


def collected(raw: bytes, low: bytes = LOW, high: bytes = HIGH, epoch: OpeningEpoch | None = None) -> Entries:
    entries: Entries = {}
    (epoch or opening()).collect(raw, low, high, entries)
    return entries


def opened_slowly(raw: bytes) -> None:
    block = read_block(raw)
    opening().verify_tag(block)
    list(opening().open_records(block))


def authenticated(raw: bytes) -> None:
    opening().authenticate(raw)


def collected_whole(raw: bytes) -> None:
    collected(raw)


WAYS = pytest.mark.parametrize("way", [authenticated, collected_whole, opened_slowly])


def entry(section: Section, record: tuple[int, int, int, bytes]) -> bytes:
    seq, seat, kind, payload = record
    return ENTRY.pack(section[2], seat, kind, section[1], seq, len(payload)) + payload


def test_a_block_opens_to_what_was_sealed_whichever_way_it_is_read() -> None:
    raw, sections = small_block()
    assert opening().authenticate(raw) == 3
    assert collected(raw) == {section[0]: [entry(section, record) for record in section[3]] for section in sections}
    block = read_block(raw)
    opening().verify_tag(block)
    assert list(opening().open_records(block)) == [
        (pseudonym, writer, stream, seq, seat, kind, payload)
        for pseudonym, writer, stream, records in sections
        for seq, seat, kind, payload in records
    ]


@given(
    st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.lists(st.binary(max_size=300), max_size=4)), max_size=5)
)
def test_records_of_any_length_open_whichever_way_they_are_read(content: list[tuple[bytes, list[bytes]]]) -> None:
    epoch, expected = sealing(), Entries()
    parts = []
    for pseudonym, payloads in content:
        records = [(seq, 0, RecordKind.ANSWER, payload) for seq, payload in enumerate(payloads, start=1)]
        section = (pseudonym, b"w" * 16, 7, records)
        parts.append(epoch.seal_section(*section))
        expected.setdefault(pseudonym, []).extend(entry(section, record) for record in records)
    raw = block_of(*parts, records=sum(map(len, expected.values())), epoch=epoch)
    assert opening().authenticate(raw) == sum(map(len, expected.values()))
    assert collected(raw) == expected


@WAYS
def test_a_block_with_any_byte_changed_is_refused(way: Callable[[bytes], None]) -> None:
    raw, _ = small_block()
    way(raw)
    for at in range(len(raw)):
        for flip in FLIPS:
            altered = bytearray(raw)
            altered[at] ^= flip
            with pytest.raises(IntegrityError):
                way(bytes(altered))


@WAYS
def test_a_block_cut_short_or_extended_is_refused(way: Callable[[bytes], None]) -> None:
    raw, _ = small_block()
    for length in range(len(raw)):
        with pytest.raises(IntegrityError):
            way(raw[:length])
    with pytest.raises(IntegrityError):
        way(raw + b"\0")


def moved(section: bytes, **changes: int) -> bytes:
    """A sealed section that claims another place than the one it was sealed for."""
    pseudonym, writer, stream, count = SECTION.unpack_from(section)
    seq, seat, counter, length = RECORD.unpack_from(section, SECTION.size)
    head = SECTION.pack(
        b"q" * 16 if "pseudonym" in changes else pseudonym,
        b"x" * 16 if "writer" in changes else writer,
        changes.get("opening", stream),
        count,
    )
    record = RECORD.pack(changes.get("seq", seq), changes.get("seat", seat), changes.get("counter", counter), length)
    return head + record + section[SECTION.size + RECORD.size :]


@WAYS
@pytest.mark.parametrize("change", ["pseudonym", "writer", "opening", "seq", "seat", "counter"])
def test_a_record_moved_to_another_pupil_or_place_does_not_open(way: Callable[[bytes], None], change: str) -> None:
    writer = Writer(b"p" * 16)
    epoch = sealing()
    section = epoch.seal_section(*writer.sends(writer.choose("a", "A")))
    way(block_of(section, records=1, epoch=epoch))
    # The tag is right, as only a node that holds the epoch key could make it: the record still refuses.
    with pytest.raises(IntegrityError, match="does not open at its place"):
        way(block_of(moved(section, **{change: 9}), records=1, epoch=epoch))


@WAYS
@pytest.mark.parametrize("other", [{"campaign_id": "c-2"}, {"epoch_id": bytes(16)}])
def test_a_record_moved_to_another_campaign_or_epoch_does_not_open(
    way: Callable[[bytes], None], other: dict[str, object]
) -> None:
    writer = Writer(b"p" * 16)
    section = sealing(**other).seal_section(*writer.sends(writer.choose("a", "A")))  # type: ignore[arg-type]  # one of two keywords
    with pytest.raises(IntegrityError, match="does not open at its place"):
        way(block_of(section, records=1))


@pytest.mark.parametrize("other", [{"campaign_id": "c-2"}, {"epoch_id": bytes(16)}])
def test_a_block_of_another_campaign_or_epoch_does_not_open(other: dict[str, object]) -> None:
    writer = Writer(b"p" * 16)
    epoch = sealing(**other)  # type: ignore[arg-type]  # one of two keywords
    raw = block_of(epoch.seal_section(*writer.sends(writer.choose("a", "A"))), records=1, epoch=epoch)
    with pytest.raises(IntegrityError):
        authenticated(raw)


@WAYS
@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"\1\0\0",
        b"\0" + bytes(63),
        b"\4" + bytes(63),
        b"\1\0\0\0\x3c" + bytes(59),
        b"\1\xff\xff\xff\xff" + bytes(59),
    ],
    ids=["empty", "too short", "kind 0", "kind 4", "one byte too long", "4 GB"],
)
def test_a_record_that_no_sealing_makes_is_refused(way: Callable[[bytes], None], plaintext: bytes) -> None:
    place = record_context(CAMPAIGN, EPOCH_ID) + PLACE.pack(b"p" * 16, 1, b"w" * 16, 0, 1)
    ciphertext = AESGCM(EPOCH_KEY).encrypt(NONCE.pack(RECORD_DOMAIN, 0), plaintext, place)
    section = SECTION.pack(b"p" * 16, b"w" * 16, 1, 1) + RECORD.pack(1, 0, 0, len(ciphertext)) + ciphertext
    with pytest.raises(IntegrityError):
        way(block_of(section, records=1))


@pytest.mark.parametrize("records", [0, 1, 3])
def test_a_block_that_counts_its_records_wrongly_is_not_landed(records: int) -> None:
    writer = Writer(b"p" * 16)
    epoch = sealing()
    section = epoch.seal_section(*writer.sends(writer.choose("a", "A"), writer.choose("b", "B")))
    with pytest.raises(IntegrityError, match="counts"):
        authenticated(block_of(section, records=records, epoch=epoch))


def test_collecting_takes_the_pseudonyms_of_its_partition_alone() -> None:
    names = [bytes([first]) + bytes(15) for first in (0, 1, 0x7F, 0x80, 0xFF)] + [b"\xff" * 16]
    epoch = sealing()
    parts = [epoch.seal_section(*writer.sends(writer.choose("a", "A"))) for writer in map(Writer, names)]
    raw = block_of(*parts, records=len(parts), epoch=epoch)
    middle = b"\x80" + bytes(7)
    assert sorted(collected(raw, high=middle)) == names[:3]
    assert sorted(collected(raw, low=middle)) == names[3:]


def test_a_block_altered_outside_the_partition_is_refused_too() -> None:
    raw, _ = small_block()
    at = raw.index(b"q" * 16) + SECTION.size + RECORD.size
    altered = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
    with pytest.raises(IntegrityError, match="tag"):
        collected(altered, low=b"p" * 8, high=b"q" * 8)


def test_padding_hides_everything_but_powers_of_two() -> None:
    assert [len(pad(1, bytes(size))) for size in (0, 59, 60, 123, 124, 252)] == [64, 64, 128, 128, 256, 512]


# Headers


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentAuthority:
    return DevelopmentAuthority(tmp_path_factory.mktemp("authority"), NOW)


@pytest.fixture(scope="module")
def node(authority: DevelopmentAuthority) -> SealingNode:
    return SealingNode(CAMPAIGN, ANSWER_KEY.public_raw, authority, NOW_MS)


def keys_of(campaign_id: str = CAMPAIGN, answer_key: PrivateKey = ANSWER_KEY) -> AnswerKeys:
    rows = RowCipher(campaign_id, Secret(bytes(32)), os.urandom)
    return AnswerKeys(campaign_id, answer_key, Secret(bytes(32)), Ed25519PrivateKey.generate(), rows)


def accepted(
    raw: bytes, authority: DevelopmentAuthority, *, keys: AnswerKeys | None = None, shard: int = 0, now_ms: int = NOW_MS
) -> OpeningEpoch:
    keys = keys or keys_of()
    return accept_header(raw, keys.campaign_id, shard, keys, [authority.certificate], now_ms)[1]


def header_of(node: SealingNode, **changes: object) -> bytes:
    """A header that is signed and sealed rightly, of a context that may be wrong."""
    fields: dict[str, object] = {
        "campaign_id": CAMPAIGN,
        "shard": 0,
        "answer_key_id": node.answer_key.key_id,
        "node_key_id": node_key_id(node.certificate),
        "process_id": bytes(16),
        "started_at_ms": NOW_MS,
        "previous_epoch": NO_EPOCH,
        "previous_last": 0,
        **changes,
    }
    context = EpochContext(**fields)  # type: ignore[arg-type]  # a test's changes
    der = node.certificate.public_bytes(Encoding.DER)
    return make_header(context, EPOCH_KEY, node.answer_key, node.signing_key, der)


def test_a_header_gives_the_key_that_its_blocks_open_with(node: SealingNode, authority: DevelopmentAuthority) -> None:
    epoch = node.epoch()
    writer = Writer(b"p" * 16)
    raw = epoch.block(writer.sends(writer.choose("a", "A")))
    found = accepted(epoch.header, authority)
    assert found.authenticate(raw) == 1
    assert found.epoch_id == epoch.epoch_id


@pytest.mark.filterwarnings("ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning")
def test_a_header_with_any_byte_changed_is_refused(node: SealingNode, authority: DevelopmentAuthority) -> None:
    raw = node.epoch().header
    keys = keys_of()
    for at in range(len(raw)):
        for flip in FLIPS:
            altered = bytearray(raw)
            altered[at] ^= flip
            with pytest.raises(PliError):
                accepted(bytes(altered), authority, keys=keys)


def test_a_header_cut_short_or_extended_is_refused(node: SealingNode, authority: DevelopmentAuthority) -> None:
    raw = node.epoch().header
    keys = keys_of()
    for length in range(len(raw)):
        with pytest.raises(IntegrityError):
            accepted(raw[:length], authority, keys=keys)
    with pytest.raises(IntegrityError, match="after its end"):
        accepted(raw + b"\0", authority, keys=keys)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"campaign_id": "c-2"}, "another campaign or shard"),
        ({"shard": 1}, "another campaign or shard"),
        ({"answer_key_id": bytes(16)}, "another answer key"),
        ({"node_key_id": bytes(16)}, "another node key"),
        ({"started_at_ms": MAX_STORED_NUMBER + 1}, "cannot be"),
        ({"previous_last": MAX_STORED_NUMBER + 1}, "cannot be"),
    ],
)
def test_a_header_of_another_context_is_refused_though_it_is_signed(
    node: SealingNode, authority: DevelopmentAuthority, changes: dict[str, object], why: str
) -> None:
    with pytest.raises(IntegrityError, match=why):
        accepted(header_of(node, **changes), authority)


def test_a_header_sealed_to_another_answer_key_does_not_open(authority: DevelopmentAuthority) -> None:
    other = PrivateKey.generate()
    node = SealingNode(CAMPAIGN, other.public_raw, authority, NOW_MS)
    raw = header_of(node, answer_key_id=keys_of().answer.public_raw[:16])
    with pytest.raises(IntegrityError, match="another answer key"):
        accepted(raw, authority)
    # Even one that names the vault's key while it was sealed to another.
    forged = header_of(
        node, answer_key_id=SealingNode(CAMPAIGN, ANSWER_KEY.public_raw, authority, NOW_MS).answer_key.key_id
    )
    with pytest.raises(IntegrityError, match="does not open"):
        accepted(forged, authority)


def test_a_node_of_another_authority_or_role_is_refused(
    authority: DevelopmentAuthority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = DevelopmentAuthority(tmp_path_factory.mktemp("stranger"), NOW)
    for foreign in (
        SealingNode(CAMPAIGN, ANSWER_KEY.public_raw, stranger, NOW_MS),
        SealingNode(CAMPAIGN, ANSWER_KEY.public_raw, authority, NOW_MS, role=RELAY),
    ):
        with pytest.raises(PliError):
            accepted(foreign.epoch().header, authority)


def test_a_certificate_may_have_expired_since_the_epoch_began_but_not_before(
    node: SealingNode, authority: DevelopmentAuthority
) -> None:
    later_ms = NOW_MS + int(timedelta(days=365).total_seconds() * 1000)
    accepted(node.epoch().header, authority, now_ms=later_ms)
    with pytest.raises(PliError):
        accepted(header_of(node, started_at_ms=later_ms), authority, now_ms=later_ms)


def test_an_epoch_shows_its_name_and_not_its_key() -> None:
    assert repr(opening()) == "OpeningEpoch(00010203…)"


def test_a_header_that_was_read_names_itself_by_its_own_hash(node: SealingNode) -> None:
    epoch = node.epoch()
    assert read_header(epoch.header).epoch_id == epoch.epoch_id

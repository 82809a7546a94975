"""The vault's part, played: its keys, what it signs for the platform, and the opening of what it gets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from struct import pack

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pli.blocks import NO_HASH, block_hash, read_block
from pli.codes import Code, new_code
from pli.epochs import read_header
from pli.hpke import PrivateKey, PublicKey, key_id
from pli.ingest.v1.ingest_pb2 import Answer, Finish, Mark
from pli.pseudonym import pseudonym_of
from pli.records import RecordKind
from pli.secret import Secret
from pli.signing import BUNDLE, DEPOSIT_RECEIPT, ENROLLED, ENROLMENT, WINDOW, sign, verify_node
from pli.vault.v1.bundle_pb2 import (
    Bundle,
    Enrolled,
    ItemType,
    NodeEnrolment,
    PublicInstrument,
    PublicItem,
    Signed,
    SignedEnrolment,
    WindowOrder,
)
from pli.vault.v1.deposit_pb2 import DepositReceipt
from vault.opening import OpeningEpoch

PUPIL, CLASS, RESERVE = 1, 2, 3
LIVE, REVOKED = 1, 2

INSTRUMENT = PublicInstrument(
    id="tests",
    title="An instrument with every type of item",
    version="2026.1",
    items=[
        PublicItem(id="one", type=ItemType.ITEM_TYPE_CHOICE, options=["A", "B", "C", "D"]),
        PublicItem(id="many", type=ItemType.ITEM_TYPE_CHOICES, options=["A", "B", "C", "D", "E"]),
        PublicItem(id="words", type=ItemType.ITEM_TYPE_TEXT, max_length=20),
        PublicItem(id="essay", type=ItemType.ITEM_TYPE_TEXT),
        PublicItem(id="count", type=ItemType.ITEM_TYPE_NUMBER),
    ],
)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """One record as the vault reads it from a block."""

    pseudonym: bytes
    writer: bytes
    opening: int
    seq: int
    seat: int
    kind: RecordKind
    payload: bytes

    @property
    def answer(self) -> Answer:
        assert self.kind == RecordKind.ANSWER
        return Answer.FromString(self.payload)

    @property
    def mark(self) -> Mark:
        assert self.kind == RecordKind.MARK
        return Mark.FromString(self.payload)

    @property
    def finish(self) -> Finish:
        assert self.kind == RecordKind.FINISH
        return Finish.FromString(self.payload)


@dataclass(frozen=True, slots=True)
class Registered:
    """One code of the campaign."""

    code: Code
    kind: int = PUPIL
    seats: int = 0
    status: int = LIVE


class PlayedVault:
    """Keys of one campaign, and everything signed or opened with them."""

    def __init__(self, campaign_id: str = "tests", shards: int = 1) -> None:
        self.campaign_id = campaign_id
        self.shards = shards
        self.signing_key = Ed25519PrivateKey.generate()
        self.answer_key = PrivateKey.generate()
        self.pseudonym_key = Secret(os.urandom(32))
        self._receipts = 0

    def write_public_key(self, path: Path) -> Path:
        """The file that nodes and relays pin."""
        path.write_bytes(self.signing_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return path

    def pseudonym(self, code: Code) -> bytes:
        """16 bytes."""
        return pseudonym_of(self.pseudonym_key, code)

    def registry(self, codes: Iterable[Registered]) -> list[bytes]:
        """Entries of 20 bytes, ascending by pseudonym."""
        return sorted(self.pseudonym(each.code) + pack(">BHB", each.kind, each.seats, each.status) for each in codes)

    def bundle(
        self, instrument: PublicInstrument, registry: Sequence[bytes], authority: x509.Certificate, version: int = 1
    ) -> Signed:
        """The signed bundle."""
        public = self.answer_key.public_raw
        bundle = Bundle(
            campaign_id=self.campaign_id,
            version=version,
            shards=self.shards,
            instrument=instrument,
            answer_key_id=key_id(public),
            answer_public_key=public,
            registry_count=len(registry),
            registry_digest=sha256(b"".join(registry)).digest(),
            node_authorities=[authority.public_bytes(Encoding.DER)],
            rehearsal=True,
        )
        return sign(self.signing_key, BUNDLE, bundle.SerializeToString())

    def window_order(self, version: int, phase: int, opens: int = 0, closes: int = 0, grace: int = 0) -> Signed:
        """A signed order about the window; times in ms."""
        order = WindowOrder(
            campaign_id=self.campaign_id,
            version=version,
            phase=phase,  # type: ignore[arg-type]  # an enum's number
            opens_at_ms=opens,
            closes_at_ms=closes,
            grace_ms=grace,
        )
        return sign(self.signing_key, WINDOW, order.SerializeToString())

    def enrol(self, request: SignedEnrolment) -> tuple[bytes, Signed]:
        """The node's key id and the signed answer with the pseudonym key."""
        verify_node(x509.load_der_x509_certificate(request.certificate), ENROLMENT, request.body, request.signature)
        asked = NodeEnrolment.FromString(request.body)
        node_key = PublicKey(asked.node_public_key)
        info = b"\0".join((b"pli/pseudonym-key/v1", self.campaign_id.encode(), node_key.key_id))
        enrolled = Enrolled(
            campaign_id=self.campaign_id,
            node_key_id=node_key.key_id,
            sealed_pseudonym_key=node_key.encrypt(self.pseudonym_key.reveal(), info),
        )
        return node_key.key_id, sign(self.signing_key, ENROLLED, enrolled.SerializeToString())

    def receipt(self, receipt: DepositReceipt) -> Signed:
        """Numbers and signs a receipt."""
        self._receipts += 1
        receipt.number = self._receipts
        return sign(self.signing_key, DEPOSIT_RECEIPT, receipt.SerializeToString())

    def open(self, blocks: Sequence[tuple[bytes, bytes]]) -> list[StoredRecord]:
        """All records of (block, header or b"") in the order given, as the vault would accept them.

        Raises:
            IntegrityError: a signature, tag, record or place does not hold.
            AssertionError: a block is missing before another, or not linked to it.
        """
        epochs: dict[bytes, OpeningEpoch] = {}
        last: dict[bytes, tuple[int, bytes]] = {}
        records: list[StoredRecord] = []
        for raw, raw_header in blocks:
            block = read_block(raw)
            name = block.context.epoch_id
            if raw_header:
                header = read_header(raw_header)
                header.verify_signature()
                assert header.epoch_id == name
                epochs[name] = OpeningEpoch.from_header(header, self.answer_key)
            number, previous = last.get(name, (0, NO_HASH))
            assert block.context.number == number + 1, "a block is missing before this one"
            assert block.context.previous_hash == previous, "a block is not linked to the one before"
            last[name] = block.context.number, block_hash(raw)
            epochs[name].verify_tag(block)
            records += [
                StoredRecord(pseudonym, writer, opening, seq, seat, RecordKind(kind), payload)
                for pseudonym, writer, opening, seq, seat, kind, payload in epochs[name].open_records(block)
            ]
        return records


def make_codes(count: int, seed: int = 2026) -> list[Code]:
    """Different codes, the same ones for the same seed."""
    codes: dict[Code, None] = {}
    random = Random(seed)
    while len(codes) < count:
        codes[new_code(random.getrandbits)] = None
    return list(codes)

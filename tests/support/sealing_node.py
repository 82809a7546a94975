"""A node as the vault sees it: a certificate, epochs, and blocks of what pupils gave."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from pli.blocks import NO_HASH, block_hash
from pli.canonical import FinishDigest, canonical
from pli.config import read_secret_file
from pli.development_ca import DevelopmentAuthority
from pli.epochs import NO_EPOCH, EpochContext, epoch_id, make_header, node_key_id
from pli.hpke import PublicKey
from pli.ingest.v1.ingest_pb2 import Answer, Choices, Cleared, Finish, Mark, Presence
from pli.records import RecordKind
from pli.rpc.roles import INGEST
from pli.sealing import NewRecord, SealingEpoch
from pli.secret import Secret

Section = tuple[bytes, bytes, int, Sequence[NewRecord]]
"""pseudonym, writer, opening of the stream, records."""

_names = count(1)


class SealingNode:
    """One process of one node."""

    def __init__(
        self, campaign_id: str, answer_key: bytes, authority: DevelopmentAuthority, now_ms: int, role: str = INGEST
    ) -> None:
        files = authority.issue(role, f"n{next(_names)}")
        key = load_pem_private_key(read_secret_file(files.key_file).reveal(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.campaign_id = campaign_id
        self.answer_key = PublicKey(answer_key)
        self.signing_key = key
        self.certificate = x509.load_pem_x509_certificate(files.certificate_file.read_bytes())
        self.process_id = os.urandom(16)
        self.now_ms = now_ms

    def epoch(self, shard: int = 0, previous: SealedEpoch | None = None) -> SealedEpoch:
        """A fresh epoch, linked to the one before it."""
        key = os.urandom(32)
        context = EpochContext(
            campaign_id=self.campaign_id,
            shard=shard,
            answer_key_id=self.answer_key.key_id,
            node_key_id=node_key_id(self.certificate),
            process_id=self.process_id,
            started_at_ms=self.now_ms,
            previous_epoch=NO_EPOCH if previous is None else previous.epoch_id,
            previous_last=0 if previous is None else previous.last,
        )
        der = self.certificate.public_bytes(Encoding.DER)
        header = make_header(context, key, self.answer_key, self.signing_key, der)
        return SealedEpoch(header, SealingEpoch(self.campaign_id, shard, Secret(key), header, epoch_id(header)))


class SealedEpoch:
    """Seals blocks 1, 2, 3 …, each naming the one before."""

    def __init__(self, header: bytes, sealing: SealingEpoch) -> None:
        self.header = header
        self.epoch_id = sealing.epoch_id
        self.last = 0
        self._sealing = sealing
        self._previous = NO_HASH

    def block(self, *sections: Section) -> bytes:
        """The next block."""
        self.last += 1
        raw = self.sealed(self.last, sections)
        self._previous = block_hash(raw)
        return raw

    def sealed(self, number: int, sections: Sequence[Section]) -> bytes:
        """A block of any number: what only a faulty node makes twice."""
        parts = [self._sealing.seal_section(*section) for section in sections]
        return self._sealing.seal_block(number, self._previous, parts, sum(len(section[3]) for section in sections))


@dataclass(slots=True)
class Writer:
    """One client queue: numbers what it gives, and digests it."""

    pseudonym: bytes
    writer: bytes = field(default_factory=lambda: os.urandom(16))
    opening: int = 1
    seq: int = 0
    given: FinishDigest = field(default_factory=FinishDigest)

    def choose(self, item: str, option: str, *, opening: int | None = None, seat: int = 0) -> NewRecord:
        """An answer to a choice item."""
        given_in = opening or self.opening
        return self.give(Answer(item_id=item, choices=Choices(options=[option]), opening=given_in, seat=seat))

    def clear(self, item: str) -> NewRecord:
        """An answer taken back."""
        return self.give(Answer(item_id=item, cleared=Cleared(), opening=self.opening))

    def give(self, answer: Answer) -> NewRecord:
        """Any answer."""
        return self._record(RecordKind.ANSWER, answer.seat, canonical(answer))

    def mark(self, presence: Presence.ValueType, seat: int = 0) -> NewRecord:
        """A mark. Pupils have no seat; a class session marks one."""
        return self._record(
            RecordKind.MARK, seat, canonical(Mark(seq=self.seq + 1, seat=seat, presence=presence, opening=self.opening))
        )

    def finish(self, *, digest: bytes | None = None) -> NewRecord:
        """The end, with the right digest unless another is given."""
        finish = Finish(
            seq=self.seq + 1,
            count=self.given.count,
            digest=self.given.digest() if digest is None else digest,
            opening=self.opening,
        )
        self.seq += 1
        return self.seq, 0, RecordKind.FINISH, canonical(finish)

    def sends(self, *records: NewRecord) -> Section:
        """Records of one commit, in the stream of the opening of now."""
        return self.pseudonym, self.writer, self.opening, records

    def _record(self, kind: RecordKind, seat: int, payload: bytes) -> NewRecord:
        self.seq += 1
        self.given.add(self.seq, payload)
        return self.seq, seat, kind, payload

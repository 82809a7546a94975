"""Epoch headers: whole, signed, and bound to what they name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from pli.development_ca import DevelopmentAuthority
from pli.epochs import (
    MAX_HEADER_BYTES,
    NO_EPOCH,
    EpochContext,
    epoch_id,
    make_header,
    node_key_id,
    read_header,
)
from pli.errors import IntegrityError
from pli.hpke import PrivateKey, PublicKey
from pli.tls import TlsFiles

EPOCH_KEY = bytes(range(32))


@dataclass
class Node:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def of(cls, files: TlsFiles) -> Node:
        key = load_pem_private_key(files.key_file.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(key, x509.load_pem_x509_certificate(files.certificate_file.read_bytes()))


@dataclass
class Scene:
    node: Node
    other: Node
    answer_key: PrivateKey
    context: EpochContext
    raw: bytes

    def header(self, context: EpochContext, signer: Node | None = None) -> bytes:
        der = self.node.certificate.public_bytes(Encoding.DER)
        return make_header(context, EPOCH_KEY, PublicKey(self.answer_key.public_raw), (signer or self.node).key, der)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    directory: Path = tmp_path_factory.mktemp("authority")
    authority = DevelopmentAuthority(directory)
    node, other = (Node.of(authority.issue("ingest", name)) for name in ("one", "two"))
    answer_key = PrivateKey.generate()
    context = EpochContext(
        "rehearsal",
        3,
        PublicKey(answer_key.public_raw).key_id,
        node_key_id(node.certificate),
        b"p" * 16,
        99,
        NO_EPOCH,
        0,
    )
    made = Scene(node, other, answer_key, context, b"")
    return replace(made, raw=made.header(context))


def test_a_header_is_read_back_signed_by_its_node_and_its_key_opens(scene: Scene) -> None:
    header = read_header(scene.raw)
    assert header.context == scene.context
    assert header.verify_signature() == scene.node.certificate
    assert scene.answer_key.decrypt(header.sealed_key, header.info()) == EPOCH_KEY
    assert header.epoch_id == epoch_id(scene.raw) == sha256(scene.raw).digest()[:16]


@given(
    st.text(max_size=64),
    st.integers(0, 65_535),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
def test_every_context_is_read_back(
    scene: Scene, campaign: str, shard: int, some_id: bytes, start: int, last: int
) -> None:
    context = EpochContext(campaign, shard, some_id, some_id[::-1], some_id, start, some_id, last)
    empty = context.serialise() + bytes(6)
    assert read_header(empty).context == context


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_every_flipped_bit_of_a_header_is_refused(scene: Scene) -> None:
    for bit in range(8 * len(scene.raw)):
        altered = bytearray(scene.raw)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            read_header(bytes(altered)).verify_signature()


def test_a_header_cut_at_any_byte_is_refused(scene: Scene) -> None:
    for length in range(len(scene.raw)):
        with pytest.raises(IntegrityError):
            read_header(scene.raw[:length])


@pytest.mark.parametrize("more", [b"\0", b"\0\0", bytes(MAX_HEADER_BYTES)])
def test_a_header_with_bytes_after_its_end_is_refused(scene: Scene, more: bytes) -> None:
    with pytest.raises(IntegrityError):
        read_header(scene.raw + more)


def test_a_header_signed_by_another_key_is_refused(scene: Scene) -> None:
    with pytest.raises(IntegrityError, match="signature"):
        read_header(scene.header(scene.context, signer=scene.other)).verify_signature()


def test_a_header_that_names_another_node_key_than_its_certificate_is_refused(scene: Scene) -> None:
    raw = scene.header(replace(scene.context, node_key_id=node_key_id(scene.other.certificate)))
    with pytest.raises(IntegrityError, match="another node key"):
        read_header(raw).verify_signature()


@pytest.mark.parametrize(
    "change",
    [
        {"campaign_id": "rehearsal2"},
        {"shard": 4},
        {"answer_key_id": b"a" * 16},
        {"node_key_id": b"n" * 16},
        {"process_id": b"q" * 16},
        {"started_at_ms": 100},
        {"previous_epoch": b"e" * 16},
        {"previous_last": 1},
    ],
)
def test_the_sealed_key_opens_for_no_other_context(scene: Scene, change: dict[str, object]) -> None:
    header = read_header(scene.raw)
    moved = replace(header, context=replace(scene.context, **change))  # type: ignore[arg-type]  # one field each
    with pytest.raises(IntegrityError):
        scene.answer_key.decrypt(header.sealed_key, moved.info())


def test_no_other_private_key_opens_the_sealed_key(scene: Scene) -> None:
    header = read_header(scene.raw)
    with pytest.raises(IntegrityError):
        PrivateKey.generate().decrypt(header.sealed_key, header.info())


def test_the_epoch_key_is_nowhere_in_the_header_nor_in_what_it_prints(scene: Scene) -> None:
    header = read_header(scene.raw)
    assert EPOCH_KEY not in scene.raw
    assert EPOCH_KEY.hex() not in repr(header)


def test_two_headers_of_the_same_context_are_two_epochs(scene: Scene) -> None:
    assert epoch_id(scene.header(scene.context)) != epoch_id(scene.raw)


def test_a_node_key_id_is_the_hash_of_its_public_key(scene: Scene) -> None:
    spki = scene.node.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert node_key_id(scene.node.certificate) == sha256(spki).digest()[:16]

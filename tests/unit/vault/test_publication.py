"""The bundle: everything a node needs, signed, and nothing that only the vault may know."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from sqlalchemy import delete

from pli.development_ca import DevelopmentAuthority
from pli.errors import IntegrityError, NotFound, StateError
from pli.hpke import PublicKey
from pli.signing import BUNDLE, WINDOW, verify
from pli.vault.v1.bundle_pb2 import Bundle, Signed
from tests.support.vault_parts import CAMPAIGN, NOW, VaultParts, vault_parts
from vault.instrument_store import current_instrument
from vault.keystore import Scope
from vault.publication import bundle_parts, make_bundle, missing
from vault.store.campaign_tables import CODES


@pytest.fixture
def authority(tmp_path: Path) -> DevelopmentAuthority:
    return DevelopmentAuthority(tmp_path / "authority", NOW)


@pytest.fixture
async def parts(tmp_path: Path, authority: DevelopmentAuthority) -> AsyncIterator[VaultParts]:
    with vault_parts(tmp_path) as made:
        await made.create(authority, shards=3)
        yield made


def signed(parts: VaultParts, version: int = 1) -> Signed:
    return parts.database.read_now(lambda c: make_bundle(c, parts.answers, parts.campaign(), version))


def bundle_of(parts: VaultParts, statement: Signed) -> Bundle:
    return Bundle.FromString(verify(parts.answers.signing.public_key(), BUNDLE, statement))


async def test_a_bundle_says_what_a_node_must_know(parts: VaultParts, authority: DevelopmentAuthority) -> None:
    await parts.fill()
    bundle = bundle_of(parts, signed(parts, 4))
    assert (bundle.campaign_id, bundle.version, bundle.shards, bundle.rehearsal) == (CAMPAIGN, 4, 3, True)
    assert bundle.registry_count == 12
    assert [x509.load_der_x509_certificate(der) for der in bundle.node_authorities] == [authority.certificate]
    key = PublicKey(bundle.answer_public_key)
    assert key.key_id == bundle.answer_key_id
    assert parts.answers.answer.decrypt(key.encrypt(b"epoch key", b"info"), b"info") == b"epoch key"
    instrument = parts.database.read_now(lambda c: current_instrument(c, parts.answers))
    assert bundle.instrument == instrument.public_part()


async def test_it_verifies_under_the_key_that_nodes_pin_and_for_this_purpose_alone(parts: VaultParts) -> None:
    await parts.fill()
    statement = signed(parts)
    pinned = load_pem_public_key((parts.public_dir / f"vault-signing-{CAMPAIGN}.pub").read_bytes())
    assert verify(pinned, BUNDLE, statement) == statement.body  # type: ignore[arg-type]  # Ed25519, as written
    with pytest.raises(IntegrityError):
        verify(parts.answers.signing.public_key(), WINDOW, statement)
    with pytest.raises(IntegrityError):
        bundle_of(parts, Signed(body=statement.body + b"x", signature=statement.signature))


async def test_no_key_of_an_item_and_no_name_is_in_it(parts: VaultParts) -> None:
    await parts.fill()
    body = signed(parts).body.decode("latin-1")
    for secret in ("Bäcker", "E01", "Émile-Zola", "6e A"):
        assert secret.encode().decode("latin-1") not in body
    instrument = parts.database.read_now(lambda c: current_instrument(c, parts.answers))
    texts = [key for item in instrument.items for key in item.scores if isinstance(key, str) and not item.options]
    assert texts
    for text in texts:
        assert text.encode().decode("latin-1") not in body


async def test_everything_that_is_missing_is_listed_with_what_to_do(parts: VaultParts) -> None:
    with pytest.raises(StateError) as caught:
        signed(parts)
    for each in ("ImportRoster", "PutInstrument", "IssueCodes", "codes of all pupils"):
        assert each in caught.value.message
    parts.put_instrument()
    assert len(parts.database.read_now(lambda c: missing(c, CAMPAIGN))) == 2
    parts.import_roster()
    (lacking,) = parts.database.read_now(lambda c: missing(c, CAMPAIGN))
    assert lacking == "the codes of 12 of 12 pupils are missing: CampaignService.IssueCodes"
    await parts.fill()
    assert parts.database.read_now(lambda c: missing(c, CAMPAIGN)) == []
    parts.database.write_now(lambda c: c.execute(delete(CODES).where(CODES.c.ordinal == 5)))
    with pytest.raises(StateError, match="the codes of 1 of 12 pupils are missing"):
        signed(parts)


async def test_names_may_stay_locked(parts: VaultParts) -> None:
    await parts.fill()
    parts.keystore.lock(Scope.IDENTITIES)
    assert bundle_of(parts, signed(parts)).registry_count == 12


async def test_a_relay_gets_the_stored_bundle_and_the_registry_that_fits_its_digest(parts: VaultParts) -> None:
    await parts.fill()
    statement = signed(parts)
    parts.store_bundle(statement, 1)
    for scope in Scope:
        parts.keystore.lock(scope)
    first, *chunks = parts.database.read_now(lambda c: list(bundle_parts(c, CAMPAIGN)))
    assert first.bundle == statement
    bundle = Bundle.FromString(statement.body)
    entries = b"".join(part.registry.entries for part in chunks)
    assert sha256(entries).digest() == bundle.registry_digest
    names = [entries[at : at + 16] for at in range(0, len(entries), 20)]
    assert names == sorted(names)
    assert len(names) == bundle.registry_count


async def test_nothing_is_handed_out_before_publication(parts: VaultParts) -> None:
    await parts.fill()
    with pytest.raises(StateError, match="not published yet"):
        parts.database.read_now(lambda c: list(bundle_parts(c, CAMPAIGN)))
    with pytest.raises(NotFound):
        parts.database.read_now(lambda c: list(bundle_parts(c, "unknown")))

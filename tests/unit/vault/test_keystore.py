"""The keystore: two scopes apart, every key wrapped, nothing opens without S."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from sqlalchemy import select

from pli.config import write_secret_file
from pli.errors import ConfigError, Forbidden, InputError, IntegrityError, VaultLocked
from pli.secret import Secret
from tests.support.vault_parts import CAMPAIGN, VaultParts, vault_parts
from vault.keyring import AnswerKeys
from vault.keystore import SCOPE_LABEL, Scope
from vault.roster_store import row_of
from vault.rows import RowCipher
from vault.store.campaign_tables import IDENTITIES

PASSPHRASES = {Scope.ANSWERS: b"a passphrase for answers", Scope.IDENTITIES: b"a passphrase for identities"}


def raw_keys(keys: AnswerKeys) -> list[bytes]:
    return [keys.answer.raw().reveal(), keys.pseudonym.reveal(), keys.signing.private_bytes_raw()]


def keystore_file(parts: VaultParts) -> Path:
    return parts.state_dir / "keystore" / "keystore.json"


def test_it_starts_locked_and_scopes_open_apart(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        assert parts.keystore.unlocked() == ()
        parts.keystore.unlock(Scope.ANSWERS)
        parts.keystore.create_campaign(CAMPAIGN)
        assert parts.keystore.unlocked() == (Scope.ANSWERS,)
        assert parts.answers.campaign_id == CAMPAIGN
        with pytest.raises(VaultLocked, match="unlock scope identities"):
            _ = parts.identities
        parts.keystore.unlock(Scope.IDENTITIES)
        parts.keystore.lock(Scope.ANSWERS)
        assert parts.keystore.unlocked() == (Scope.IDENTITIES,)
        assert parts.identities.campaign_id == CAMPAIGN
        with pytest.raises(VaultLocked, match="unlock scope answers"):
            _ = parts.answers


def test_after_a_restart_the_same_keys_come_back(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        parts.keystore.create_campaign(CAMPAIGN)
        before, sealed = raw_keys(parts.answers), parts.identities.rows.seal("t", b"r", b"content")
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        assert raw_keys(parts.answers) == before
        assert parts.identities.rows.open("t", b"r", sealed) == b"content"


def test_passphrases_open_where_no_key_file_is_configured(tmp_path: Path) -> None:
    with vault_parts(tmp_path, key_files=False) as parts:
        for scope, passphrase in PASSPHRASES.items():
            parts.keystore.unlock(scope, Secret(passphrase))
        parts.keystore.create_campaign(CAMPAIGN)
    with vault_parts(tmp_path, key_files=False) as parts:
        with pytest.raises(Forbidden):
            parts.keystore.unlock(Scope.ANSWERS, Secret(PASSPHRASES[Scope.IDENTITIES]))
        assert parts.keystore.unlocked() == ()
        with pytest.raises(InputError, match="opens by its passphrase; give it"):
            parts.keystore.unlock(Scope.ANSWERS)
        parts.keystore.unlock(Scope.ANSWERS, Secret(PASSPHRASES[Scope.ANSWERS]))
        assert parts.answers.campaign_id == CAMPAIGN
        with pytest.raises(Forbidden):
            parts.keystore.unlock(Scope.ANSWERS, Secret(b"a wrong passphrase"))
        assert parts.answers.campaign_id == CAMPAIGN, "a wrong try locks nobody out"


def test_a_scope_of_a_key_file_takes_no_passphrase_and_needs_its_file(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        with pytest.raises(InputError, match="give no passphrase"):
            parts.keystore.unlock(Scope.ANSWERS, Secret(b"a passphrase for answers"))
        parts.keystore.unlock(Scope.ANSWERS)
    with vault_parts(tmp_path, key_files=False) as parts, pytest.raises(ConfigError, match="set answers_key_file"):
        parts.keystore.unlock(Scope.ANSWERS)


def test_another_root_key_opens_nothing(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        parts.keystore.create_campaign(CAMPAIGN)
    for scope in Scope:
        (tmp_path / f"{scope}.key").unlink()
        write_secret_file(tmp_path / f"{scope}.key", b"w" * 32)
    with vault_parts(tmp_path) as parts:
        for scope in Scope:
            with pytest.raises(Forbidden):
                parts.keystore.unlock(scope)
        assert parts.keystore.unlocked() == ()


def thief(root: Secret, salt: bytes | None) -> RowCipher:
    """Derives the key of names by the published rule, from the true root key and whatever stands in for S."""
    info = SCOPE_LABEL + CAMPAIGN.encode() + b"\0" + Scope.IDENTITIES.encode()
    scope_key = HKDF(SHA256(), 32, salt=salt, info=info).derive(root.reveal())
    rows = HKDFExpand(SHA256(), 32, info=b"pli/scope-use/v1\0rows").derive(scope_key)
    return RowCipher(CAMPAIGN, Secret(rows), os.urandom)


async def test_root_keys_and_all_backups_without_s_open_nothing(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        await parts.create()
        parts.import_roster()
        stolen = parts.database.read_now(lambda c: c.execute(select(IDENTITIES.c.ordinal, IDENTITIES.c.sealed)).all())
        slot = parts.keystore._file.roots[Scope.IDENTITIES]
        secret_id = parts.keystore._file.campaigns[CAMPAIGN].secret_id
    root = slot.open(Scope.IDENTITIES, Secret((tmp_path / "identities.key").read_bytes()))
    with_s = thief(root, (parts.secret_dirs[0] / f"{CAMPAIGN}.secret").read_bytes())
    assert "Bäcker" in with_s.open(IDENTITIES.name, row_of(0), stolen[0].sealed).decode(), "control: the rule is right"
    for directory in parts.secret_dirs:
        shutil.rmtree(directory)
    for stand_in in (None, bytes(32), secret_id.encode(), bytes.fromhex(secret_id)):
        for ordinal, sealed in stolen:
            with pytest.raises(IntegrityError):
                thief(root, stand_in).open(IDENTITIES.name, row_of(ordinal), sealed)
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        assert "in none of secret_dirs" in parts.keystore.closed_campaigns[CAMPAIGN]
        with pytest.raises(VaultLocked):
            _ = parts.answers
        with pytest.raises(VaultLocked):
            _ = parts.identities


def test_a_campaign_without_its_secret_stays_closed_and_the_others_open(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        for campaign_id in ("c1", "c2"):
            parts.keystore.create_campaign(campaign_id)
    for directory in parts.secret_dirs:
        (directory / "c1.secret").unlink()
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        assert set(parts.keystore.closed_campaigns) == {"c1"}
        assert parts.keyring.answers("c2").campaign_id == "c2"


def test_creating_a_campaign_again_draws_nothing_anew(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        parts.keystore.create_campaign(CAMPAIGN)
        before = raw_keys(parts.answers)
        parts.keystore.create_campaign(CAMPAIGN)
        assert raw_keys(parts.answers) == before


def test_a_creation_cut_off_after_s_was_written_goes_on_with_that_s(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        secret = parts.keystore._secrets.create(CAMPAIGN)
        parts.unlock()
        parts.keystore.create_campaign(CAMPAIGN)
        assert (parts.secret_dirs[1] / f"{CAMPAIGN}.secret").read_bytes() == secret.reveal()


def test_a_campaign_is_not_created_while_answers_are_locked(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        parts.keystore.unlock(Scope.IDENTITIES)
        with pytest.raises(VaultLocked):
            parts.keystore.create_campaign(CAMPAIGN)
        assert not any(directory.exists() for directory in parts.secret_dirs)
        assert not keystore_file(parts).read_text().count(CAMPAIGN)


def test_locking_wipes_the_pseudonym_key(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        parts.keystore.create_campaign(CAMPAIGN)
        keys = parts.answers
        assert keys.pseudonym.reveal() != bytes(32)
        parts.keystore.lock(Scope.ANSWERS)
        assert keys.pseudonym.reveal() == bytes(32)


def test_the_file_is_private_and_holds_no_key_in_clear(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        parts.keystore.create_campaign(CAMPAIGN)
        path = keystore_file(parts)
        content = path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        secrets = [*raw_keys(parts.answers), *(path.read_bytes() for path in parts.key_files.values())]
        secrets += [root.reveal() for root in parts.keystore._roots.values()]
        secrets.append((parts.secret_dirs[0] / f"{CAMPAIGN}.secret").read_bytes())
        for secret in secrets:
            for start in range(0, len(secret), 16):
                part = secret[start : start + 16]
                assert part not in content
                assert part.hex().encode() not in content


def test_a_damaged_keystore_is_named_without_its_content(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        path = keystore_file(parts)
    content = path.read_text()
    path.write_text(content.replace('"sealed"', '"selaed"'))
    with pytest.raises(ConfigError, match="damaged; restore it") as caught, vault_parts(tmp_path):
        pass
    assert "sealed" not in caught.value.message


def test_a_keystore_that_others_may_read_is_refused(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        keystore_file(parts).chmod(0o644)
    with pytest.raises(ConfigError, match="open to others"), vault_parts(tmp_path):
        pass


def test_the_signing_key_that_nodes_pin_is_written_and_never_overwritten(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        parts.unlock()
        parts.keystore.create_campaign(CAMPAIGN)
        path = parts.public_dir / f"vault-signing-{CAMPAIGN}.pub"
        written = path.read_bytes()
        assert load_pem_public_key(written) == parts.answers.signing.public_key()
        path.write_bytes(b"of another vault")
        with pytest.raises(ConfigError, match="of another vault's campaign"):
            parts.keystore.create_campaign(CAMPAIGN)
        assert path.read_bytes() == b"of another vault"
        path.unlink()
        parts.keystore.create_campaign(CAMPAIGN)
        assert path.read_bytes() == written

"""The keystore: root keys and campaign keys in one JSON file, every one of them wrapped.

    scope key of a campaign = HKDF-SHA256(root of the scope, salt = S, info = label, campaign, scope)

The two scopes have independent roots. Campaign keys (answer key, pseudonym key, signing key) are
drawn once and stored sealed under the campaign's key of scope answers; names and codes are sealed
under its key of scope identities, which is derived at every unlock. S is never here
(vault/campaign_secret.py).

All methods block (Argon2, fsync): call them in a thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import Field, ValidationError

from pli.config import Section, read_secret_file
from pli.errors import ConfigError, InputError, IntegrityError, VaultLocked
from pli.hpke import PrivateKey
from pli.secret import Secret
from vault.campaign_secret import SecretCopies, identify, sync_directory
from vault.config import Argon2Parameters
from vault.keyring import AnswerKeys, IdentityKeys, KeyRing
from vault.root_slots import ROOT_BYTES, RootSlot, make_slot
from vault.rows import RowCipher

FILE_NAME = "keystore.json"
FILE_MODE = 0o600
SCOPE_LABEL = b"pli/scope-key/v1\0"
PSEUDONYM_KEY_BYTES = 32
_ANSWER_KEY_BYTES = 96
_SIGNING_KEY_BYTES = 32


class Scope(StrEnum):
    """What is unlocked apart."""

    ANSWERS = "answers"
    IDENTITIES = "identities"


class CampaignEntry(Section):
    """One campaign in the file. Hex."""

    secret_id: str
    """Tells the right copy of S from another campaign's, and nothing of S itself."""
    sealed: str
    """Answer key (96 bytes), pseudonym key (32), signing key (32)."""


class KeystoreFile(Section):
    """The whole file."""

    version: int = 1
    roots: dict[Scope, RootSlot] = Field(default_factory=dict)
    campaigns: dict[str, CampaignEntry] = Field(default_factory=dict)


class Keystore:
    """Fills and empties a KeyRing. Locked at start."""

    def __init__(
        self,
        directory: Path,
        secrets: SecretCopies,
        keyring: KeyRing,
        *,
        public_dir: Path,
        key_files: Mapping[Scope, Path],
        argon2: Argon2Parameters,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._path = directory / FILE_NAME
        self._secrets = secrets
        self._keyring = keyring
        self._public_dir = public_dir
        self._key_files = dict(key_files)
        self._argon2 = argon2
        self._random_bytes = random_bytes
        self._roots: dict[Scope, Secret] = {}
        self._turn = threading.RLock()
        self.closed_campaigns: dict[str, str] = {}
        """Campaigns that an unlock could not open, each with what a person should do."""
        self._file = self._read()

    def campaigns(self) -> frozenset[str]:
        """Campaigns whose keys are here, opened or not."""
        return frozenset(self._file.campaigns)

    def unlocked(self) -> tuple[Scope, ...]:
        """Scopes that are unlocked now."""
        return tuple(scope for scope in Scope if scope in self._roots)

    def unlock(self, scope: Scope, passphrase: Secret | None = None) -> None:
        """Loads the scope's keys of every campaign into the ring.

        The first unlock of a scope draws its root key and wraps it by the key file or, where none is
        configured, by this passphrase. A campaign whose S is missing stays closed
        (`closed_campaigns`); the others open.

        Raises:
            Forbidden: passphrase or key file do not open the scope.
            InputError: a passphrase is missing, superfluous or too short.
            ConfigError: the key file is missing or open to others.
        """
        with self._turn:
            wrapping = self._wrapping(scope, passphrase)
            slot = self._file.roots.get(scope)
            if slot is None:
                root = Secret(self._random_bytes(ROOT_BYTES))
                argon2 = None if scope in self._key_files else self._argon2
                slot = make_slot(scope, root, wrapping, argon2, self._random_bytes)
                self._write(self._file.model_copy(update={"roots": {**self._file.roots, scope: slot}}))
            else:
                root = slot.open(scope, wrapping)
            self._roots[scope] = root
            self.closed_campaigns = {}
            for campaign_id in self._file.campaigns:
                try:
                    self._open(scope, campaign_id)
                except (ConfigError, IntegrityError) as error:
                    self.closed_campaigns[campaign_id] = error.message

    def lock(self, scope: Scope) -> None:
        """Forgets root and keys of the scope. Harmless when it is locked already."""
        with self._turn:
            root = self._roots.pop(scope, None)
            if root is not None:
                root.wipe()
            if scope is Scope.ANSWERS:
                self._keyring.forget_answers()
            else:
                self._keyring.forget_identities()

    def create_campaign(self, campaign_id: str) -> None:
        """Draws S and the campaign's keys, stores them, and writes the signing key's public part.

        Repeated, or after a crash in the middle, it completes what is missing and draws nothing anew.

        Raises:
            VaultLocked: scope answers is locked.
            ConfigError: a directory cannot be written.
        """
        with self._turn:
            if Scope.ANSWERS not in self._roots:
                raise VaultLocked("scope answers is locked; unlock it to make a campaign: KeyService.Unlock")
            if campaign_id not in self._file.campaigns:
                secret = self._secrets.create(campaign_id)
                rows = _cipher(
                    campaign_id, self._scope_key(Scope.ANSWERS, campaign_id, secret), b"keystore", self._random_bytes
                )
                signing = Ed25519PrivateKey.generate().private_bytes_raw()
                drawn = PrivateKey.generate().raw().reveal() + self._random_bytes(PSEUDONYM_KEY_BYTES) + signing
                entry = CampaignEntry(
                    secret_id=identify(secret), sealed=rows.seal("keystore", b"campaign", drawn).hex()
                )
                self._write(self._file.model_copy(update={"campaigns": {**self._file.campaigns, campaign_id: entry}}))
            for scope in self.unlocked():
                self._open(scope, campaign_id)
            self._publish_signing_key(self._keyring.answers(campaign_id))

    def _open(self, scope: Scope, campaign_id: str) -> None:
        entry = self._file.campaigns[campaign_id]
        secret = self._secrets.find(campaign_id, entry.secret_id)
        key = self._scope_key(scope, campaign_id, secret)
        rows = _cipher(campaign_id, key, b"rows", self._random_bytes)
        if scope is Scope.IDENTITIES:
            self._keyring.put_identities(IdentityKeys(campaign_id, rows))
            return
        stored = _cipher(campaign_id, key, b"keystore", self._random_bytes)
        raw = stored.open("keystore", b"campaign", bytes.fromhex(entry.sealed))
        if len(raw) != _ANSWER_KEY_BYTES + PSEUDONYM_KEY_BYTES + _SIGNING_KEY_BYTES:
            raise IntegrityError(f"the keys of campaign {campaign_id} have a wrong length; restore the keystore")
        self._keyring.put_answers(
            AnswerKeys(
                campaign_id,
                answer=PrivateKey(Secret(raw[:_ANSWER_KEY_BYTES])),
                pseudonym=Secret(raw[_ANSWER_KEY_BYTES:-_SIGNING_KEY_BYTES]),
                signing=Ed25519PrivateKey.from_private_bytes(raw[-_SIGNING_KEY_BYTES:]),
                rows=rows,
            )
        )

    def _scope_key(self, scope: Scope, campaign_id: str, secret: Secret) -> Secret:
        info = SCOPE_LABEL + campaign_id.encode() + b"\0" + scope.encode()
        kdf = HKDF(SHA256(), 32, salt=secret.reveal(), info=info)
        return Secret(kdf.derive(self._roots[scope].reveal()))

    def _wrapping(self, scope: Scope, passphrase: Secret | None) -> Secret:
        path = self._key_files.get(scope)
        slot = self._file.roots.get(scope)
        by_file = path is not None if slot is None else slot.wrapped_by == "key-file"
        if by_file and passphrase is not None:
            raise InputError(f"scope {scope} opens by its key file; give no passphrase")
        if by_file and path is None:
            raise ConfigError(f"scope {scope} opens by a key file; set {scope}_key_file in the configuration")
        if by_file and path is not None:
            return read_secret_file(path)
        if passphrase is None:
            raise InputError(f"scope {scope} opens by its passphrase; give it")
        return passphrase

    def _publish_signing_key(self, keys: AnswerKeys) -> None:
        pem = keys.signing.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        path = self._public_dir / f"vault-signing-{keys.campaign_id}.pub"
        try:
            self._public_dir.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.read_bytes() != pem:
                raise ConfigError(
                    f"{path} holds the key of another vault's campaign of this name; move it away and repeat"
                )
            path.write_bytes(pem)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error

    def _read(self) -> KeystoreFile:
        if not self._path.exists():
            return KeystoreFile()
        content = read_secret_file(self._path).reveal()
        try:
            return KeystoreFile.model_validate_json(content)
        except ValidationError:
            # The validation error quotes the content, which stays out of every message.
            raise ConfigError(f"keystore {self._path} is damaged; restore it from a backup") from None

    def _write(self, file: KeystoreFile) -> None:
        """Replaces the file whole: temporary file, fsync, rename, fsync of the directory."""
        directory = self._path.parent
        temporary = self._path.with_suffix(".new")
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
            with os.fdopen(descriptor, "w") as out:
                out.write(file.model_dump_json(indent=1, exclude_none=True))
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(self._path)
            sync_directory(directory)
        except OSError as error:
            raise ConfigError(f"keystore {self._path} cannot be written: {error.strerror}") from error
        self._file = file


def _cipher(campaign_id: str, scope_key: Secret, use: bytes, random_bytes: Callable[[int], bytes]) -> RowCipher:
    """One subkey per use, so that no two kinds of ciphertext share a key."""
    key = HKDFExpand(SHA256(), 32, info=b"pli/scope-use/v1\0" + use).derive(scope_key.reveal())
    return RowCipher(campaign_id, Secret(key), random_bytes)

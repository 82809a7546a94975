"""Slots of the keystore: the random root key of one scope, wrapped by a passphrase or a key file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from argon2.low_level import Type, hash_secret_raw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pli.config import Section
from pli.errors import Forbidden, InputError
from pli.secret import Secret
from vault.config import Argon2Parameters

ROOT_BYTES = 32
KEY_FILE_BYTES = 32
SALT_BYTES = 16
NONCE_BYTES = 12
SLOT_LABEL = b"pli/root-slot/v1\0"

MIN_PASSPHRASE_BYTES = 15
"""NIST SP 800-63B-4, 3.1.1.2: at least 15 characters where nothing else protects."""


class RootSlot(Section):
    """One wrapped root key, as it stands in the keystore file. Byte fields are hex."""

    wrapped_by: Literal["passphrase", "key-file"]
    salt: str
    sealed: str
    argon2: Argon2Parameters | None = None
    """How the passphrase was stretched; absent for key files, which are random already."""

    def open(self, scope: str, wrapping: Secret) -> Secret:
        """The root key. `wrapping` is the passphrase or the key file's content. Slow on purpose.

        Raises:
            Forbidden: it does not open this slot; why is not said.
        """
        key = _wrapping_key(self.argon2, wrapping, bytes.fromhex(self.salt))
        sealed = bytes.fromhex(self.sealed)
        try:
            root = AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], SLOT_LABEL + scope.encode())
        except InvalidTag as error:
            raise Forbidden(
                f"scope {scope} stays locked: this {self.wrapped_by.replace('-', ' ')} does not open it; "
                "try again, or ask its holder"
            ) from error
        return Secret(root)


def make_slot(
    scope: str, root: Secret, wrapping: Secret, argon2: Argon2Parameters | None, random_bytes: Callable[[int], bytes]
) -> RootSlot:
    """Wraps a root key: by passphrase when `argon2` is given, else by a key file's content.

    Raises:
        InputError: passphrase or key file too short.
    """
    if argon2 is not None and len(wrapping) < MIN_PASSPHRASE_BYTES:
        raise InputError(f"a passphrase has at least {MIN_PASSPHRASE_BYTES} bytes; choose a longer one")
    if argon2 is None and len(wrapping) < KEY_FILE_BYTES:
        raise InputError(f"a root key file has at least {KEY_FILE_BYTES} random bytes; make a new one")
    salt, nonce = random_bytes(SALT_BYTES), random_bytes(NONCE_BYTES)
    key = _wrapping_key(argon2, wrapping, salt)
    sealed = nonce + AESGCM(key).encrypt(nonce, root.reveal(), SLOT_LABEL + scope.encode())
    return RootSlot(
        wrapped_by="key-file" if argon2 is None else "passphrase",
        salt=salt.hex(),
        sealed=sealed.hex(),
        argon2=argon2,
    )


def _wrapping_key(argon2: Argon2Parameters | None, wrapping: Secret, salt: bytes) -> bytes:
    if argon2 is None:
        return HKDF(SHA256(), 32, salt=salt, info=SLOT_LABEL).derive(wrapping.reveal())
    return hash_secret_raw(
        wrapping.reveal(), salt, argon2.time_cost, argon2.memory_kib, argon2.parallelism, 32, Type.ID
    )

"""HPKE (RFC 9180) with the hybrid post-quantum KEM MLKEM768_X25519 (X-Wing, KEM id 0x647A).

Single-shot and without additional data, so that all context goes into `info`. It authenticates no
sender: whatever must be genuine is signed beside it (pli/signing.py).
"""

from __future__ import annotations

from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from pli.errors import IntegrityError
from pli.secret import Secret

SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
SUITE_NAME = b"MLKEM768_X25519,HKDF_SHA256,AES_256_GCM"

_MLKEM_SEED_BYTES = 64
_MLKEM_PUBLIC_BYTES = 1184
PUBLIC_KEY_BYTES = _MLKEM_PUBLIC_BYTES + 32
PRIVATE_KEY_BYTES = _MLKEM_SEED_BYTES + 32
OVERHEAD_BYTES = 1_136
"""How much longer a ciphertext is than its plaintext."""

KEY_ID_BYTES = 16


class PrivateKey:
    """An HPKE private key; raw form: ML-KEM seed (64 bytes) ‖ X25519 private key (32 bytes).

    Raises IntegrityError for bytes of another length.
    """

    __slots__ = ("_key", "_raw", "public_raw")

    def __init__(self, raw: Secret) -> None:
        if len(raw) != PRIVATE_KEY_BYTES:
            raise IntegrityError(f"an HPKE private key has {PRIVATE_KEY_BYTES} bytes, this one {len(raw)}")
        content = raw.reveal()
        seed, scalar = content[:_MLKEM_SEED_BYTES], content[_MLKEM_SEED_BYTES:]
        first = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed)
        second = x25519.X25519PrivateKey.from_private_bytes(scalar)
        self._raw = raw
        self._key = MLKEM768X25519PrivateKey(first, second)
        self.public_raw = first.public_key().public_bytes_raw() + second.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> PrivateKey:
        """Draws a key pair from the operating system's generator."""
        seed = mlkem.MLKEM768PrivateKey.generate().private_bytes_raw()
        scalar = x25519.X25519PrivateKey.generate().private_bytes_raw()
        return cls(Secret(seed + scalar))

    def raw(self) -> Secret:
        """The key for storage under another key, or for a child process over a pipe."""
        return self._raw

    def decrypt(self, ciphertext: bytes, info: bytes) -> bytes:
        """The plaintext.

        Raises:
            IntegrityError: sealed to another key, under another `info`, or altered.
        """
        try:
            return SUITE.decrypt(ciphertext, self._key, info)
        except (InvalidTag, ValueError) as error:
            raise IntegrityError("an HPKE ciphertext does not open: other key, context or content") from error

    def __repr__(self) -> str:
        return f"PrivateKey({key_id(self.public_raw).hex()[:8]}…)"


class PublicKey:
    """An HPKE public key; raw form: ML-KEM public key (1 184 bytes) ‖ X25519 public key (32 bytes).

    Raises IntegrityError for bytes that are no such key: they come from another machine.
    """

    __slots__ = ("_key", "key_id", "raw")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != PUBLIC_KEY_BYTES:
            raise IntegrityError(f"an HPKE public key has {PUBLIC_KEY_BYTES} bytes, this one {len(raw)}")
        self.raw = raw
        self.key_id = key_id(raw)
        try:
            self._key = MLKEM768X25519PublicKey(
                mlkem.MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC_BYTES]),
                x25519.X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC_BYTES:]),
            )
        except ValueError as error:
            raise IntegrityError("an HPKE public key is not one that can be sealed to") from error

    def encrypt(self, plaintext: bytes, info: bytes) -> bytes:
        """The ciphertext (`OVERHEAD_BYTES` longer), bound to `info`.

        Raises:
            IntegrityError: the key is a point of low order, to which nothing can be sealed (RFC 7748, 6.1).
        """
        try:
            return SUITE.encrypt(plaintext, self._key, info)
        except ValueError as error:
            raise IntegrityError("an HPKE public key is not one that can be sealed to") from error


def key_id(public_raw: bytes) -> bytes:
    """First 16 bytes of SHA-256 over the raw public key."""
    return sha256(public_raw).digest()[:KEY_ID_BYTES]

"""An authority that issues certificates as wrong as a test wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH


@dataclass
class Issuer:
    """Valid from a day before `now`; what it issues ends a day after, unless told otherwise."""

    now: datetime
    common_name: str = "node authority"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    valid_days: int = 30
    is_authority: bool = True

    def __post_init__(self) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.common_name)])
        lifetime = (self.now - DAY, self.now + self.valid_days * DAY)
        self.certificate = self._certificate(self.name, self.key, [], None, lifetime, is_authority=self.is_authority)

    def issue(
        self,
        key: ec.EllipticCurvePrivateKey,
        *uris: str,
        usages: Sequence[x509.ObjectIdentifier] | None = (CLIENT,),
        begins: datetime | None = None,
        ends: datetime | None = None,
        is_authority: bool = False,
        extension: x509.ExtensionType | None = None,
    ) -> x509.Certificate:
        """A certificate with these URI SANs, and one more extension if a test wants it."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
        lifetime = (begins or self.now - DAY, ends or self.now + DAY)
        return self._certificate(subject, key, list(uris), usages, lifetime, extension, is_authority=is_authority)

    def _certificate(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        uris: list[str],
        usages: Sequence[x509.ObjectIdentifier] | None,
        lifetime: tuple[datetime, datetime],
        extension: x509.ExtensionType | None = None,
        *,
        is_authority: bool,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(lifetime[0])
            .not_valid_after(lifetime[1])
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, is_authority, is_authority, False, False), critical=True
            )
        )
        if uris:
            names = [x509.UniformResourceIdentifier(uri) for uri in uris]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if extension is not None:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, hashes.SHA256())

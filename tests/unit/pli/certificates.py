"""Certificates of every kind that the development authority never issues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pli.config import write_secret_file
from pli.tls import TlsFiles

DAY = timedelta(days=1)


def uris(*values: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(value) for value in values]


@dataclass
class Authority:
    """Signs whatever it is asked to."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls, common_name: str = "an authority") -> Authority:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(name, name, key, timedelta())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return cls(name, key, builder.sign(key, hashes.SHA256()))

    def issue(
        self,
        names: Sequence[x509.GeneralName] | None,
        *,
        shifted: timedelta = timedelta(),
        usages: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH),
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """A leaf with these SANs (None: no extension), valid for a day around now, shifted."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
        builder = _builder(subject, self.name, key, shifted)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if names is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256()), key

    def files(
        self,
        directory: Path,
        names: Sequence[x509.GeneralName] | None,
        *,
        shifted: timedelta = timedelta(),
        usages: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH),
    ) -> TlsFiles:
        """The same, written as a process expects it."""
        certificate, key = self.issue(names, shifted=shifted, usages=usages)
        directory.mkdir(parents=True, exist_ok=True)
        files = TlsFiles(
            certificate_file=directory / "leaf.pem",
            key_file=directory / "leaf.key",
            authority_file=directory / "ca.pem",
        )
        files.certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
        write_secret_file(files.key_file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        files.authority_file.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        return files


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, shifted: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC) + shifted
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY / 2)
        .not_valid_after(now + DAY / 2)
    )

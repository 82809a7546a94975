"""The node's own keys: the certificate's key that signs, and the key in memory that receives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from pli.config import read_secret_file
from pli.epochs import node_key_id
from pli.errors import ConfigError, Forbidden
from pli.hpke import PrivateKey
from pli.identity import Peer, identity_of
from pli.ingest.v1.ingest_pb2 import Receipt, ReceiptBody
from pli.pseudonym import PREFIX_BYTES
from pli.rpc.roles import INGEST
from pli.signing import ENROLMENT, RECEIPT, sign_as_node
from pli.tls import TlsFiles, read_file
from pli.vault.v1.bundle_pb2 import NodeEnrolment, SignedEnrolment


def certificate_of(files: TlsFiles, role: str) -> tuple[x509.Certificate, Peer]:
    """A process's own certificate, and who it says the process is.

    Raises:
        ConfigError: unreadable, or of another role.
    """
    try:
        certificate = x509.load_pem_x509_certificate(read_file(files.certificate_file))
        peer = identity_of(certificate)
    except ValueError as error:
        raise ConfigError(f"{files.certificate_file} is not a readable PEM certificate") from error
    except Forbidden as error:
        raise ConfigError(f"{files.certificate_file}: {error.message}") from error
    if peer.role != role:
        raise ConfigError(f"{files.certificate_file} has role {peer.role}; this process needs role {role}")
    return certificate, peer


@dataclass(frozen=True, slots=True, repr=False)
class NodeIdentity:
    """Who this node is. The signing key is its certificate's; the receiving key lives in memory only."""

    name: str
    certificate_der: bytes
    signing_key: ec.EllipticCurvePrivateKey
    receiving_key: PrivateKey
    key_id: bytes

    @classmethod
    def load(cls, files: TlsFiles, receiving_key: PrivateKey) -> NodeIdentity:
        """Reads certificate and key.

        Raises:
            ConfigError: unreadable, not ECDSA, not a pair, or not of role ingest.
        """
        certificate, peer = certificate_of(files, INGEST)
        try:
            key = load_pem_private_key(read_secret_file(files.key_file).reveal(), None)
        except ValueError as error:
            raise ConfigError(f"{files.key_file} is not a readable PEM key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{files.key_file} must hold an ECDSA P-256 key")
        if key.public_key() != certificate.public_key():
            raise ConfigError(f"{files.key_file} is not the key of {files.certificate_file}")
        return cls(
            peer.name,
            certificate.public_bytes(Encoding.DER),
            key,
            receiving_key,
            node_key_id(certificate),
        )

    def enrolment(self, campaign_id: str, now_ms: int) -> SignedEnrolment:
        """What the node asks of the vault, through spool and relay."""
        body = NodeEnrolment(
            campaign_id=campaign_id,
            node_name=self.name,
            node_public_key=self.receiving_key.public_raw,
            requested_at_ms=now_ms,
        ).SerializeToString()
        return SignedEnrolment(
            body=body,
            signature=sign_as_node(self.signing_key, ENROLMENT, body),
            certificate=self.certificate_der,
        )

    def receipt(
        self, campaign_id: str, pseudonym: bytes, last_seq: int, count: int, clock_ms: Callable[[], int]
    ) -> Receipt:
        """The signed receipt of a finished session."""
        body = ReceiptBody(
            campaign_id=campaign_id,
            pseudonym_prefix=pseudonym[:PREFIX_BYTES],
            last_seq=last_seq,
            count=count,
            finished_at_ms=clock_ms(),
        ).SerializeToString()
        return Receipt(
            body=body,
            signature=sign_as_node(self.signing_key, RECEIPT, body),
            certificate=self.certificate_der,
        )

    def __repr__(self) -> str:
        return f"NodeIdentity({self.name})"

"""The node's own keys: the certificate's key that signs, and the key in memory that receives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from pli.config import read_secret_file
from pli.epochs import node_key_id
from pli.errors import ConfigError
from pli.hpke import PrivateKey
from pli.ingest.v1.ingest_pb2 import Receipt, ReceiptBody
from pli.pseudonym import PREFIX_BYTES
from pli.rpc.roles import INGEST
from pli.signing import ENROLMENT, RECEIPT, sign_as_node
from pli.tls import TlsFiles
from pli.vault.v1.bundle_pb2 import NodeEnrolment, SignedEnrolment
from server.certificates import certificate_of


@dataclass(slots=True, repr=False)
class NodeIdentity:
    """Who this node is. The signing key is its certificate's; the receiving key lives in memory only.

    Nothing but `take` changes it: epochs and receipts are signed under the certificate of their moment.
    """

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

    def take(self, renewed: NodeIdentity) -> None:
        """Signs with a renewed certificate from now on; the receiving key, which the vault knows, stays.

        Raises:
            ConfigError: it is another node's.
        """
        if renewed.name != self.name:
            raise ConfigError(f"the new certificate is for node {renewed.name}, this is {self.name}")
        self.certificate_der = renewed.certificate_der
        self.signing_key = renewed.signing_key
        self.key_id = renewed.key_id

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

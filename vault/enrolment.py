"""Enrolment of ingest nodes: whose certificates are trusted, and how a node gets the pseudonym key.

A security decision in numbered steps:

1. the certificate was issued by an authority enrolled for this campaign (signature, issuer, validity,
   basicConstraints, key usages: RFC 5280, 6.1, without intermediates);
2. it may be used by a client, and names exactly one identity, of role ingest;
3. the request was signed with the certificate's key, for the purpose of enrolment;
4. it names the certificate's own node, and this campaign;
5. the pseudonym key is sealed to the key in the request, and to nothing else.

An old request played again gets an answer that only the node of that time can open.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from google.protobuf.message import DecodeError
from sqlalchemy import Connection

from pli.errors import Forbidden, IntegrityError
from pli.hpke import PublicKey
from pli.identity import identity_of
from pli.rpc.roles import INGEST
from pli.signing import ENROLLED, ENROLMENT, read_certificate, sign, verify_node
from pli.vault.v1.bundle_pb2 import Enrolled, NodeEnrolment, Signed, SignedEnrolment
from vault.campaigns import find
from vault.keyring import KeyRing
from vault.pseudonym_key import pseudonym_key

PSEUDONYM_KEY_LABEL = b"pli/pseudonym-key/v1"

_NO_INTERMEDIATES = 0
"""Only the node's own certificate travels; an authority that is not the root is enrolled itself."""


def verify_node_certificate(
    certificate: x509.Certificate, authorities: Sequence[x509.Certificate], moment: datetime
) -> None:
    """Steps 1 and 2, at this moment (aware, or naive UTC).

    Raises:
        Forbidden: not a certificate of an ingest node that these authorities have issued, or not valid.
        IntegrityError: its extensions are not readable.
    """
    if not authorities:
        raise Forbidden("no authority of nodes is enrolled for this campaign")
    policy = PolicyBuilder().store(Store(list(authorities))).time(moment).max_chain_depth(_NO_INTERMEDIATES)
    try:
        policy.build_client_verifier().verify(certificate, [])
        _check_usage(certificate)
        role = identity_of(certificate).role
    except VerificationError as error:
        raise Forbidden(
            "a node's certificate is not valid at this time, or not issued by an authority enrolled for this campaign"
        ) from error
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise IntegrityError("a node's certificate has extensions that are not readable") from error
    if role != INGEST:
        raise Forbidden(f"a node's certificate has role {role}; only role {INGEST} collects")


def _check_usage(certificate: x509.Certificate) -> None:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as error:
        raise Forbidden("a node's certificate does not say what it is for (extended key usage)") from error
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        raise Forbidden("a node's certificate may not be used by a client (extended key usage)")


def enrol(connection: Connection, keyring: KeyRing, request: SignedEnrolment, moment: datetime) -> Signed:
    """The campaign's pseudonym key for the node that asks, signed (pli.vault.v1.Enrolled).

    Raises:
        NotFound: there is no such campaign.
        VaultLocked: its answers are locked.
        Forbidden: the certificate is not trusted, or the request names another node.
        IntegrityError: unreadable, or a wrong signature.
    """
    try:
        certificate = read_certificate(request.certificate)
        body = NodeEnrolment.FromString(request.body)
    except (ValueError, DecodeError) as error:
        raise IntegrityError("a node's enrolment is not readable; start the node again") from error
    authorities = find(connection, body.campaign_id).node_authorities
    keys = keyring.answers(body.campaign_id)
    verify_node_certificate(certificate, authorities, moment)
    verify_node(certificate, ENROLMENT, request.body, request.signature)
    if identity_of(certificate).name != body.node_name:
        raise Forbidden("a node's enrolment names another node than its certificate")
    answer = _sealed(keyring, body)
    return sign(keys.signing, ENROLLED, answer.SerializeToString(deterministic=True))


def _sealed(keyring: KeyRing, body: NodeEnrolment) -> Enrolled:
    """Step 5. The context is what server/campaign_store.py expects and bundle.proto fixes."""
    key = pseudonym_key(keyring, body.campaign_id)
    try:
        receiver = PublicKey(body.node_public_key)
        info = b"\0".join((PSEUDONYM_KEY_LABEL, body.campaign_id.encode(), receiver.key_id))
        sealed = receiver.encrypt(key.reveal(), info)
    finally:
        key.wipe()
    return Enrolled(campaign_id=body.campaign_id, node_key_id=receiver.key_id, sealed_pseudonym_key=sealed)

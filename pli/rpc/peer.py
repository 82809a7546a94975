"""The caller of an RPC, from its certificate."""

from __future__ import annotations

from typing import Any

import grpc

from pli.identity import ANONYMOUS, Peer, identity_of_pem

__all__ = ["ANONYMOUS", "Peer", "peer_of"]


def peer_of(context: grpc.aio.ServicerContext[Any, Any]) -> Peer:
    """Role and name of the caller; `ANONYMOUS` on the listener that asks for no certificate.

    Raises:
        Forbidden: a certificate that names no single role.
    """
    certificate = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
    return ANONYMOUS if certificate is None else identity_of_pem(bytes(certificate))

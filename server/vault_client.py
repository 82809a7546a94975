"""The relay's side of `DepositService`: calls as typed errors, statements only under the pinned key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeVar

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError, Message

from pli.errors import IntegrityError
from pli.rpc.client import typed
from pli.signing import verify
from pli.vault.v1.bundle_pb2 import Signed, SignedEnrolment
from pli.vault.v1.deposit_pb2 import (
    DepositRequest,
    EnrolNodeRequest,
    FetchBundleRequest,
    FetchBundleResponse,
    SyncRequest,
    SyncResponse,
)
from pli.vault.v1.deposit_pb2_grpc import DepositServiceStub

M = TypeVar("M", bound=Message)


class VaultClient:
    """Calls the vault. Every call raises the PliError that the vault answered, or one of its family."""

    def __init__(self, stub: DepositServiceStub, vault_key: Ed25519PublicKey, timeout_ms: int) -> None:
        self._stub: Any = stub
        self._vault_key = vault_key
        self._timeout_seconds = timeout_ms / 1000

    def use(self, stub: DepositServiceStub) -> None:
        """Makes the next calls on another channel: a certificate was renewed."""
        self._stub = stub

    async def deposit(self, request: DepositRequest) -> Signed:
        """The signed receipt; not verified yet."""
        signed: Signed = (await self._ask(self._stub.Deposit, request)).receipt
        return signed

    async def sync(self, request: SyncRequest) -> SyncResponse:
        """What the vault wants."""
        response: SyncResponse = await self._ask(self._stub.Sync, request)
        return response

    async def enrol(self, enrolment: SignedEnrolment) -> Signed:
        """The vault's answer for a node, which the node itself verifies."""
        signed: Signed = (await self._ask(self._stub.EnrolNode, EnrolNodeRequest(enrolment=enrolment))).enrolled
        return signed

    async def fetch_bundle(self, campaign_id: str) -> AsyncIterator[FetchBundleResponse]:
        """The parts of the current bundle, in order."""
        stream = self._stub.FetchBundle(FetchBundleRequest(campaign_id=campaign_id), timeout=self._timeout_seconds)
        try:
            async for part in stream:
                yield part
        except grpc.aio.AioRpcError as error:
            raise typed(error) from error

    def says(self, message: M, label: bytes, signed: Signed) -> M:
        """The body of a statement, read into `message`.

        Raises:
            IntegrityError: the pinned key did not sign it for this purpose, or it is not readable.
        """
        return read(message, verify(self._vault_key, label, signed), f"a vault statement ({label.decode()})")

    async def _ask(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise typed(error) from error


def read(message: M, raw: bytes, what: str) -> M:
    """`raw` parsed into `message`.

    Raises:
        IntegrityError: `what` is not readable.
    """
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise IntegrityError(f"{what} is not readable") from error
    return message

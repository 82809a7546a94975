"""DepositService: how sealed blocks reach the vault, and what relays carry back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pli.errors import Forbidden, VaultLocked, VaultUnavailable
from pli.rpc.peer import peer_of
from pli.rpc.server import Context
from pli.vault.v1.deposit_pb2 import (
    DepositRequest,
    DepositResponse,
    EnrolNodeRequest,
    EnrolNodeResponse,
    FetchBundleRequest,
    FetchBundleResponse,
    SyncRequest,
    SyncResponse,
)
from pli.vault.v1.deposit_pb2_grpc import DepositServiceServicer
from vault.campaigns import find
from vault.enrolment import enrol
from vault.keyring import KeyRing
from vault.landing import Landing
from vault.publication import bundle_parts
from vault.store.database import Database
from vault.sync import synchronise


class DepositService(DepositServiceServicer):
    """Spoken by relays. While the answers are locked every call is UNAVAILABLE: keep and retry."""

    def __init__(self, database: Database, keyring: KeyRing, landing: Landing, clock_ms: Callable[[], int]) -> None:
        self._database = database
        self._keyring = keyring
        self._landing = landing
        self._clock_ms = clock_ms

    async def Deposit(self, request: DepositRequest, context: Context) -> DepositResponse:
        """Takes blocks; the receipt leaves after they are on disk."""
        _check_name(request.relay, context)
        await self._check_unlocked(request.campaign_id)
        with _keep_and_retry():
            return await self._landing.deposit(request)

    async def Sync(self, request: SyncRequest, context: Context) -> SyncResponse:
        """Exchanges state."""
        _check_name(request.relay, context)
        await self._check_unlocked(request.campaign_id)
        return await self._database.write(lambda connection: synchronise(connection, request, self._clock_ms()))

    async def FetchBundle(self, request: FetchBundleRequest, context: Context) -> AsyncIterator[FetchBundleResponse]:
        """The bundle, then the registry: about 20 bytes a code are in memory while they stream."""
        await self._check_unlocked(request.campaign_id)
        for part in await self._database.read(lambda connection: list(bundle_parts(connection, request.campaign_id))):
            yield part

    async def EnrolNode(self, request: EnrolNodeRequest, context: Context) -> EnrolNodeResponse:
        """Seals the pseudonym key to a node of an enrolled authority."""
        moment = datetime.fromtimestamp(self._clock_ms() / 1000, UTC)
        with _keep_and_retry():
            signed = await self._database.read(
                lambda connection: enrol(connection, self._keyring, request.enrolment, moment)
            )
        return EnrolNodeResponse(enrolled=signed)

    async def _check_unlocked(self, campaign_id: str) -> None:
        """Tells a campaign that does not exist from one whose keys are not in memory."""
        try:
            with _keep_and_retry():
                self._keyring.answers(campaign_id)
        except VaultUnavailable:
            await self._database.read(lambda connection: find(connection, campaign_id))
            raise


@contextmanager
def _keep_and_retry() -> Iterator[None]:
    """People are told to unlock; a relay is told that what it has must stay where it is."""
    try:
        yield
    except VaultLocked as error:
        raise VaultUnavailable(f"{error.message}; until then keep what you have, and retry") from error


def _check_name(relay: str, context: Context) -> None:
    name = peer_of(context).name
    if name != relay:
        raise Forbidden(f"this relay's certificate names {name}, its message another one; correct `name`")

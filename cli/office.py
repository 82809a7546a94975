"""The office's side of a campaign: calls to the vault, each as the person whose role it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import stamina

from cli.profiles import Profile, read_profile
from pli.errors import ConfigError, Unavailable
from pli.rpc.client import typed
from pli.secret import Secret
from pli.vault.v1 import campaign_pb2 as campaign
from pli.vault.v1 import export_pb2 as export
from pli.vault.v1 import rehearsal_pb2 as rehearsal
from pli.vault.v1.campaign_pb2_grpc import CampaignServiceStub
from pli.vault.v1.export_pb2_grpc import ExportServiceStub
from pli.vault.v1.rehearsal_pb2_grpc import RehearsalServiceStub

T = TypeVar("T")

CHUNK_BYTES = 256 * 1024
RETRY_SECONDS = 30.0
"""A vault that is being restarted is back in some seconds."""

POLL_SECONDS = 0.1
"""The vault's life cycle moves once a second at most; ten looks a second waste nobody's time."""


class Office:
    """One campaign at one vault, with the certificates of campaign-admin and reporter."""

    def __init__(self, admin: Path, reporter: Path | None = None) -> None:
        self._admin = read_profile(admin)
        self._reporter: Profile | None = None if reporter is None else read_profile(reporter)
        self._channels: list[grpc.aio.Channel] = []
        self.campaign_id = self._admin.campaign_id

    async def __aenter__(self) -> Self:
        """Makes the channels; nothing is connected before the first call."""
        self._channels.append(self._admin.channel())
        self._campaigns: Any = CampaignServiceStub(self._channels[0])
        self._rehearsals: Any = RehearsalServiceStub(self._channels[0])
        if self._reporter is not None:
            self._channels.append(self._reporter.channel())
            self._exports: Any = ExportServiceStub(self._channels[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            await channel.close()

    async def create(self, title: str, authority_pem: str, shards: int = 1) -> None:
        """Makes the rehearsal campaign, or finds it made."""
        await _asked(
            lambda: self._campaigns.CreateCampaign(
                campaign.CreateCampaignRequest(
                    campaign_id=self.campaign_id,
                    title=title,
                    rehearsal=True,
                    shards=shards,
                    node_authorities_pem=[authority_pem],
                )
            )
        )

    async def import_roster(self, content: bytes, file_name: str) -> campaign.ImportRosterResponse:
        """Hands in a roster whole."""
        first = campaign.ImportRosterRequest(campaign_id=self.campaign_id, file_name=file_name)

        def sent() -> AsyncIterator[campaign.ImportRosterRequest]:
            return _sent([first], (campaign.ImportRosterRequest(chunk=chunk) for chunk in _chunks(content)))

        return await _asked(lambda: self._campaigns.ImportRoster(sent()))

    async def put_instrument(self, content: bytes, file_name: str) -> campaign.PutInstrumentResponse:
        """Hands in an instrument whole."""
        request = campaign.PutInstrumentRequest(campaign_id=self.campaign_id, file_name=file_name, toml=content)
        return await _asked(lambda: self._campaigns.PutInstrument(request))

    async def issue_codes(self) -> campaign.IssueCodesResponse:
        """One code for each pupil who has none."""
        return await _asked(
            lambda: self._campaigns.IssueCodes(campaign.IssueCodesRequest(campaign_id=self.campaign_id))
        )

    async def publish(self) -> None:
        """Signs the bundle for the platform."""
        await _asked(lambda: self._campaigns.Publish(campaign.PublishRequest(campaign_id=self.campaign_id)))

    async def open_window(self) -> None:
        """Opens the window."""
        await _asked(lambda: self._campaigns.OpenWindow(campaign.OpenWindowRequest(campaign_id=self.campaign_id)))

    async def close_window(self, grace_ms: int = 0) -> None:
        """Closes the window."""
        request = campaign.CloseWindowRequest(campaign_id=self.campaign_id, grace_ms=grace_ms)
        await _asked(lambda: self._campaigns.CloseWindow(request))

    async def find(self) -> campaign.GetCampaignResponse:
        """State and counts."""
        return await _asked(
            lambda: self._campaigns.GetCampaign(campaign.GetCampaignRequest(campaign_id=self.campaign_id))
        )

    async def settle(self) -> campaign.CampaignCounts:
        """Settles and scores what has landed."""
        response = await _asked(lambda: self._campaigns.Settle(campaign.SettleRequest(campaign_id=self.campaign_id)))
        counts: campaign.CampaignCounts = response.counts
        return counts

    async def until(
        self, reached: Callable[[campaign.GetCampaignResponse], bool], seconds: float
    ) -> campaign.GetCampaignResponse:
        """Asks until `reached` says so or the time is over; the last answer is returned either way."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            found = await self.find()
            if reached(found) or loop.time() > deadline:
                return found
            await asyncio.sleep(POLL_SECONDS)

    async def export(self, kind: export.ExportKind.ValueType, purpose: str) -> bytes:
        """A named file. The vault has written its audit entry before the first byte comes."""
        request = export.ExportRequest(campaign_id=self.campaign_id, kind=kind, purpose=purpose)
        parts: list[bytes] = []
        try:
            async for part in self._exports.Export(request):
                parts.append(part.chunk)  # noqa: PERF401  # an async comprehension would hide the error's place
        except grpc.aio.AioRpcError as error:
            raise typed(error) from error
        return b"".join(parts)

    async def verify(self, ledger: Path, key: Secret) -> rehearsal.VerifyLedgerResponse:
        """Has the vault compare a ledger with what it holds."""
        try:
            content = await asyncio.to_thread(ledger.read_bytes)
        except OSError as error:
            raise ConfigError(f"ledger {ledger} cannot be read: {error.strerror}") from error
        first = rehearsal.VerifyLedgerRequest(campaign_id=self.campaign_id, ledger_key=key.reveal())

        def sent() -> AsyncIterator[rehearsal.VerifyLedgerRequest]:
            return _sent([first], (rehearsal.VerifyLedgerRequest(chunk=chunk) for chunk in _chunks(content)))

        return await _asked(lambda: self._rehearsals.VerifyLedger(sent()))


async def _asked(call: Callable[[], Awaitable[T]]) -> T:
    """Makes a call, again while the vault cannot be reached: every call of the office is idempotent."""
    async for attempt in stamina.retry_context(on=Unavailable, attempts=None, timeout=RETRY_SECONDS, wait_max=2.0):
        with attempt:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                raise typed(error) from error
    raise Unavailable("the vault was not asked")


def _chunks(content: bytes) -> Iterable[bytes]:
    return (content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES))


async def _sent(*parts: Iterable[T]) -> AsyncIterator[T]:
    for some in parts:
        for part in some:
            yield part

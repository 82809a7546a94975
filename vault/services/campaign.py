"""CampaignService: what a campaign administrator does, step by step, each with its audit note.

Each call refuses early and says why: the campaign first, then the keys it needs, then what it was
given. Publication and window belong to the life cycle, which writes their notes itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime

from pli.csv_input import MAX_FILE_BYTES
from pli.errors import StateError, VaultLocked
from pli.identity import Peer
from pli.rpc.peer import peer_of
from pli.rpc.server import Context
from pli.vault.v1.campaign_pb2 import (
    CampaignCounts,
    CloseWindowRequest,
    CloseWindowResponse,
    CreateCampaignRequest,
    CreateCampaignResponse,
    GetCampaignRequest,
    GetCampaignResponse,
    ImportRosterRequest,
    ImportRosterResponse,
    IssueCodesRequest,
    IssueCodesResponse,
    OpenWindowRequest,
    OpenWindowResponse,
    PublishRequest,
    PublishResponse,
    PutInstrumentRequest,
    PutInstrumentResponse,
    SettleRequest,
    SettleResponse,
)
from pli.vault.v1.campaign_pb2_grpc import CampaignServiceServicer
from vault.audit import Audit
from vault.campaigns import Campaign, CampaignTerms, create_campaign, find, make_terms
from vault.code_issue import Issued, count_codes, issue_codes
from vault.counts import campaign_counts
from vault.instrument import Instrument, parse_instrument
from vault.instrument_store import put_instrument
from vault.keyring import KeyRing
from vault.keystore import Keystore, Scope
from vault.life_cycle import LifeCycle
from vault.roster_store import RosterFile, RosterSize, read_roster, roster_size, store_roster
from vault.services.acts import Acts
from vault.services.roster_upload import STALLED_SECONDS, RosterUpload
from vault.services.uploads import checked_file_name, chunks_for_thread, confirm_whole
from vault.settlement import Settlement
from vault.states import State
from vault.store.database import Database

IMPORTS_AT_ONCE = 2
"""A roster of a whole level takes some hundred megabytes while it is read."""

_BEFORE_OPEN = frozenset({State.DRAFT, State.READY})


class CampaignService(CampaignServiceServicer):
    """`random_bits(k)` returns k random bits: `secrets.randbits` in production."""

    def __init__(
        self,
        database: Database,
        keyring: KeyRing,
        keystore: Keystore,
        audit: Audit,
        life_cycle: LifeCycle,
        settlement: Settlement,
        *,
        clock_ms: Callable[[], int],
        random_bits: Callable[[int], int],
        auto_unlock: bool = False,
        max_roster_bytes: int = MAX_FILE_BYTES,
        stalled_seconds: float = STALLED_SECONDS,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._keystore = keystore
        self._audit = audit
        self._life_cycle = life_cycle
        self._settlement = settlement
        self._clock_ms = clock_ms
        self._random_bits = random_bits
        self._auto_unlock = auto_unlock
        self._max_roster_bytes = max_roster_bytes
        self._stalled_seconds = stalled_seconds
        self._imports = ThreadPoolExecutor(IMPORTS_AT_ONCE, thread_name_prefix="vault-import")
        self._issuing = asyncio.Lock()
        self._acts = Acts()

    async def finish(self) -> None:
        """Waits for acts under way; called after the server stopped and before the database closes."""
        await self._acts.finish()
        self._imports.shutdown(wait=False, cancel_futures=True)

    # Making

    async def CreateCampaign(self, request: CreateCampaignRequest, context: Context) -> CreateCampaignResponse:
        """Keys and S first, then the row."""
        terms = make_terms(
            request.campaign_id,
            request.title,
            request.shards,
            request.node_authorities_pem,
            rehearsal=request.rehearsal,
        )
        campaign = await self._acts.run(self._create(peer_of(context), terms))
        return CreateCampaignResponse(state=campaign.state)

    async def ImportRoster(
        self, request_iterator: AsyncIterator[ImportRosterRequest], context: Context
    ) -> ImportRosterResponse:
        """Parsed in a thread while it arrives, stored once all of it is there and clean."""
        upload = RosterUpload(request_iterator, self._stalled_seconds)
        campaign_id, name = await upload.begin()
        await self._need(campaign_id, Scope.IDENTITIES)
        chunks = chunks_for_thread(upload.next_chunk)
        file = await asyncio.get_running_loop().run_in_executor(
            self._imports, lambda: read_roster(chunks, name, self._today(), max_bytes=self._max_roster_bytes)
        )
        await confirm_whole(context)
        size = await self._acts.run(self._import(peer_of(context), campaign_id, file))
        return ImportRosterResponse(pupils=size.pupils, classes=size.classes, schools=size.schools)

    async def PutInstrument(self, request: PutInstrumentRequest, context: Context) -> PutInstrumentResponse:
        """Parsed in a thread, then stored."""
        await self._need(request.campaign_id, Scope.ANSWERS)
        name = checked_file_name(request.file_name, "instrument.toml")
        instrument = await asyncio.to_thread(parse_instrument, request.toml, name)
        await self._acts.run(self._put(peer_of(context), request.campaign_id, instrument, request.toml, name))
        return PutInstrumentResponse(items=len(instrument.items), max_score=format(instrument.max_score, "f"))

    async def IssueCodes(self, request: IssueCodesRequest, context: Context) -> IssueCodesResponse:
        """One code per pupil who has none."""
        await self._need(request.campaign_id, Scope.ANSWERS, Scope.IDENTITIES)
        issued = await self._acts.run(self._issue(peer_of(context), request.campaign_id))
        return IssueCodesResponse(issued=issued.issued, total=issued.total)

    # Leading

    async def Publish(self, request: PublishRequest, context: Context) -> PublishResponse:
        """Signs the bundle."""
        await self._need(request.campaign_id, Scope.ANSWERS)
        act = self._life_cycle.publish(request.campaign_id, peer_of(context))
        return PublishResponse(bundle_version=await self._acts.run(act))

    async def OpenWindow(self, request: OpenWindowRequest, context: Context) -> OpenWindowResponse:
        """READY to OPEN."""
        await self._need(request.campaign_id, Scope.ANSWERS)
        act = self._life_cycle.open(request.campaign_id, request.closes_at_ms, peer_of(context))
        return OpenWindowResponse(window_version=await self._acts.run(act))

    async def CloseWindow(self, request: CloseWindowRequest, context: Context) -> CloseWindowResponse:
        """OPEN to CLOSING."""
        await self._need(request.campaign_id, Scope.ANSWERS)
        act = self._life_cycle.close(request.campaign_id, request.grace_ms, peer_of(context))
        return CloseWindowResponse(window_version=await self._acts.run(act))

    async def Settle(self, request: SettleRequest, context: Context) -> SettleResponse:
        """Settles and scores what has landed. Cut off, it goes on where it was when called again."""
        campaign = await self._need(request.campaign_id, Scope.ANSWERS)
        if campaign.state in _BEFORE_OPEN:
            raise StateError(
                f"campaign {campaign.campaign_id} is {campaign.state}: nothing can have landed; open its window first"
            )
        await self._audit.note(peer_of(context), "settle", campaign.campaign_id)
        await self._settlement.settle(campaign.campaign_id)
        return SettleResponse(counts=await self._counts(campaign.campaign_id))

    # Watching

    async def GetCampaign(self, request: GetCampaignRequest, context: Context) -> GetCampaignResponse:
        """State and counts; needs no keys."""
        campaign = await self._database.read(lambda connection: find(connection, request.campaign_id))
        status = await self._life_cycle.status(campaign.campaign_id)
        closed = self._keystore.closed_campaigns.get(campaign.campaign_id)
        return GetCampaignResponse(
            state=status.state,
            title=campaign.title,
            rehearsal=campaign.rehearsal,
            window=status.window,
            counts=await self._counts(campaign.campaign_id, spool_left=status.spool_left),
            waiting_for=[*status.waiting_for, *([closed] if closed else [])],
            unlocked=[str(scope) for scope in self._keystore.unlocked()],
            auto_unlock=self._auto_unlock,
        )

    async def _counts(self, campaign_id: str, spool_left: int | None = None) -> CampaignCounts:
        if spool_left is None:
            spool_left = (await self._life_cycle.status(campaign_id)).spool_left
        counts, size, codes = await self._database.read(
            lambda connection: (
                campaign_counts(connection, campaign_id),
                roster_size(connection, campaign_id),
                count_codes(connection, campaign_id),
            )
        )
        counts.pupils, counts.codes, counts.spool_left = size.pupils if size else 0, codes, spool_left
        return counts

    # Acts, each with its note

    async def _create(self, actor: Peer, terms: CampaignTerms) -> Campaign:
        campaign = await create_campaign(self._database, self._keystore, terms, self._clock_ms())
        await self._audit.note(actor, "create-campaign", terms.campaign_id)
        return campaign

    async def _import(self, actor: Peer, campaign_id: str, file: RosterFile) -> RosterSize:
        # Asked again: the scope may have been locked while the file was on its way.
        keys = self._keyring.identities(campaign_id)
        size = await self._database.write(lambda connection: store_roster(connection, keys, file))
        await self._audit.note(actor, "import-roster", campaign_id, count=size.pupils)
        return size

    async def _put(self, actor: Peer, campaign_id: str, instrument: Instrument, content: bytes, name: str) -> None:
        keys = self._keyring.answers(campaign_id)
        await self._database.write(lambda connection: put_instrument(connection, keys, instrument, content, name))
        await self._audit.note(actor, "put-instrument", campaign_id, count=len(instrument.items))

    async def _issue(self, actor: Peer, campaign_id: str) -> Issued:
        async with self._issuing:
            issued = await issue_codes(self._database, self._keyring, campaign_id, self._random_bits)
        await self._audit.note(actor, "issue-codes", campaign_id, count=issued.issued)
        return issued

    async def _need(self, campaign_id: str, *scopes: Scope) -> Campaign:
        """The campaign, if it exists and its keys of these scopes are in memory.

        Raises:
            NotFound: there is no such campaign.
            VaultLocked: a scope is locked, or the campaign's secret was not found when it was unlocked.
        """
        campaign = await self._database.read(lambda connection: find(connection, campaign_id))
        find_keys = {Scope.ANSWERS: self._keyring.answers, Scope.IDENTITIES: self._keyring.identities}
        for scope in scopes:
            try:
                find_keys[scope](campaign_id)
            except VaultLocked as error:
                closed = self._keystore.closed_campaigns.get(campaign_id)
                if closed and scope in self._keystore.unlocked():
                    raise VaultLocked(closed) from error
                raise
        return campaign

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock_ms() / 1000, UTC).date()

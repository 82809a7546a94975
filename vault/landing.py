"""Deposits: blocks are authenticated, appended to the landing log, and receipted.

Per deposit: steps 1 to 5 of opening (vault/opening.py) in a thread and outside any transaction; then
one transaction that stores headers, blocks, closings, the log's Merkle head and the signed receipt.
The receipt leaves after that transaction is on disk: the relay may then forget the blocks (I9).

For every deposit new + duplicate + conflict + quarantined (+ retry) = received (I10): whatever a block
holds, it gets one verdict and never stops the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cryptography import x509
from sqlalchemy import Connection, insert, select, update

from pli.blocks import BlockContext, block_hash, read_fixed
from pli.epochs import EpochHeader, epoch_id
from pli.errors import InputError, IntegrityError, PliError
from pli.signing import DEPOSIT_RECEIPT, sign
from pli.vault.v1.bundle_pb2 import Signed
from pli.vault.v1.deposit_pb2 import BlockVerdict, DepositReceipt, DepositRequest, DepositResponse, Verdict
from vault.authorities import load_authorities
from vault.closings import take_closing
from vault.epochs import MAX_STORED_NUMBER, OpenEpochs, accept_header
from vault.keyring import AnswerKeys, KeyRing
from vault.landing_log import Landed, LandingLog
from vault.opening import OpeningEpoch
from vault.quarantine import BLOCK, HEADER, quarantine
from vault.store.database import Database
from vault.store.landing_tables import DEPOSIT_RECEIPTS, EPOCH_HEADERS, RECEIPT_COUNTER

DEPOSITS_AT_ONCE = 4
"""Deposits (8 MB each at most) in memory; more wait. One is opened while another is written."""


@dataclass(slots=True, repr=False)
class _Examined:
    """One block after its opening: authentic unless `reason` says otherwise; `retry` without a header."""

    raw: bytes
    digest: bytes
    context: BlockContext | None = None
    records: int = 0
    reason: str = ""
    retry: bool = False


@dataclass(slots=True, repr=False)
class _Examination:
    """A whole deposit after its opening."""

    headers: dict[bytes, tuple[EpochHeader, bytes]] = field(default_factory=dict)
    epochs: dict[bytes, OpeningEpoch] = field(default_factory=dict)
    refused: dict[bytes, tuple[bytes, str]] = field(default_factory=dict)
    blocks: list[_Examined] = field(default_factory=list)


class Landing:
    """Takes deposits. One per vault process."""

    def __init__(
        self,
        database: Database,
        keyring: KeyRing,
        clock_ms: Callable[[], int],
        epochs: OpenEpochs | None = None,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._clock_ms = clock_ms
        self._epochs = epochs if epochs is not None else OpenEpochs()
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="vault-open")
        self._places = asyncio.Semaphore(DEPOSITS_AT_ONCE)

    async def deposit(self, request: DepositRequest) -> DepositResponse:
        """Takes the blocks of one request; what it returns is on disk.

        The caller has checked that the relay's name is the one in its certificate.

        Raises:
            VaultLocked: the answers of this campaign are locked.
            NotFound: there is no such campaign.
            InputError: the campaign has no such shard.
        """
        async with self._places:
            keys = self._keyring.answers(request.campaign_id)
            loop = asyncio.get_running_loop()
            try:
                examined = await loop.run_in_executor(self._opener, self._examine, request, keys)
                receipt = await self._database.write(
                    lambda connection: self._store(connection, request, examined, keys)
                )
                # Only now are the headers on disk: a key kept earlier would let blocks land without theirs.
                for epoch in examined.epochs.values():
                    self._epochs.put(keys, epoch)
            finally:
                self._epochs.forget_if_locked(self._keyring, keys)
        return DepositResponse(receipt=receipt)

    def close(self) -> None:
        """Ends the opening thread, after the work it has."""
        self._opener.shutdown(wait=True)

    # Opening

    def _examine(self, request: DepositRequest, keys: AnswerKeys) -> _Examination:
        return self._database.read_now(lambda connection: self._open_all(connection, request, keys))

    def _open_all(self, connection: Connection, request: DepositRequest, keys: AnswerKeys) -> _Examination:
        shards, authorities = load_authorities(connection, request.campaign_id)
        if request.shard >= shards:
            raise InputError(f"campaign {request.campaign_id} has {shards} shards; there is no shard {request.shard}")
        examination = _Examination()
        for raw in request.headers:
            self._open_header(connection, raw, request, keys, authorities, examination)
        log = LandingLog(connection, request.campaign_id)
        for raw in request.blocks:
            block = _Examined(raw, block_hash(raw))
            examination.blocks.append(block)
            try:
                self._open_block(connection, block, request, keys, examination, log)
            except IntegrityError as error:
                block.reason = error.message
        return examination

    def _open_header(
        self,
        connection: Connection,
        raw: bytes,
        request: DepositRequest,
        keys: AnswerKeys,
        authorities: Sequence[x509.Certificate],
        examination: _Examination,
    ) -> None:
        name = epoch_id(raw)
        if name in examination.epochs or self._epochs.find(connection, keys, name) is not None:
            return
        try:
            header, epoch = accept_header(raw, request.campaign_id, request.shard, keys, authorities, self._clock_ms())
        except PliError as error:
            examination.refused[name] = raw, error.message
        else:
            examination.headers[name] = header, raw
            examination.epochs[name] = epoch

    def _open_block(
        self,
        connection: Connection,
        block: _Examined,
        request: DepositRequest,
        keys: AnswerKeys,
        examination: _Examination,
        log: LandingLog,
    ) -> None:
        context, _, block.records, _ = read_fixed(block.raw)
        if context.campaign_id != request.campaign_id or context.shard != request.shard:
            raise IntegrityError("a block was made for another campaign or shard")
        if not 1 <= context.number <= MAX_STORED_NUMBER:
            raise IntegrityError("a block has an impossible number")
        block.context = context
        if log.digest_at(context.epoch_id, context.number) == block.digest:
            return  # The same bytes were authenticated when they landed.
        if context.epoch_id in examination.refused:
            raise IntegrityError(f"its epoch header is refused: {examination.refused[context.epoch_id][1]}")
        epoch = examination.epochs.get(context.epoch_id) or self._epochs.find(connection, keys, context.epoch_id)
        if epoch is None:
            block.retry = True
        else:
            epoch.authenticate(block.raw)

    # Storing

    def _store(
        self, connection: Connection, request: DepositRequest, examined: _Examination, keys: AnswerKeys
    ) -> Signed:
        campaign_id, shard, now_ms = request.campaign_id, request.shard, self._clock_ms()
        for header, raw in examined.headers.values():
            _store_header(connection, header, raw)
        for raw, reason in examined.refused.values():
            quarantine(connection, campaign_id, shard, HEADER, raw, reason, now_ms)
        log = LandingLog(connection, campaign_id)
        verdicts = [_land(connection, log, campaign_id, shard, block, now_ms) for block in examined.blocks]
        head = log.flush()
        closings = [take_closing(connection, campaign_id, shard, raw, now_ms) for raw in request.closings]
        number = _next_number(connection)
        receipt = DepositReceipt(
            number=number,
            campaign_id=campaign_id,
            shard=shard,
            blocks=verdicts,
            log_size=head.size,
            log_root=head.root(),
            issued_at_ms=now_ms,
            closings=closings,
        )
        signed = sign(keys.signing, DEPOSIT_RECEIPT, receipt.SerializeToString(deterministic=True))
        connection.execute(
            insert(DEPOSIT_RECEIPTS),
            {"campaign_id": campaign_id, "number": number, "body": signed.body, "signature": signed.signature},
        )
        return signed


def _land(
    connection: Connection, log: LandingLog, campaign_id: str, shard: int, block: _Examined, now_ms: int
) -> BlockVerdict:
    verdict = Verdict.VERDICT_QUARANTINED
    if block.retry:
        verdict = Verdict.VERDICT_RETRY
    elif block.reason or block.context is None:
        quarantine(connection, campaign_id, shard, BLOCK, block.raw, block.reason, now_ms)
    else:
        verdict = log.take(Landed(block.context, block.digest, block.records, block.raw))
    return BlockVerdict(digest=block.digest, verdict=verdict, records=block.records)


def _store_header(connection: Connection, header: EpochHeader, raw: bytes) -> None:
    context = header.context
    place = (
        EPOCH_HEADERS.c.campaign_id == context.campaign_id,
        EPOCH_HEADERS.c.epoch_id == header.epoch_id,
    )
    if connection.execute(select(EPOCH_HEADERS.c.shard).where(*place)).one_or_none() is not None:
        return
    connection.execute(
        insert(EPOCH_HEADERS),
        {
            "campaign_id": context.campaign_id,
            "epoch_id": header.epoch_id,
            "shard": context.shard,
            "process_id": context.process_id,
            "previous_epoch": context.previous_epoch,
            "previous_last": context.previous_last,
            "started_at_ms": context.started_at_ms,
            "header": raw,
        },
    )


def _next_number(connection: Connection) -> int:
    last: int | None = connection.execute(select(RECEIPT_COUNTER.c.last)).scalar_one_or_none()
    if last is None:
        connection.execute(insert(RECEIPT_COUNTER), {"id": 1, "last": 1})
        return 1
    connection.execute(update(RECEIPT_COUNTER).values(last=last + 1))
    return last + 1

"""Epoch keys that the vault has accepted: steps 1 to 3 of opening, and a small store of open ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from threading import Lock

from cryptography import x509
from sqlalchemy import Connection, select

from pli.epochs import EpochHeader, read_header
from pli.errors import IntegrityError, PliError, VaultLocked
from pli.hpke import key_id
from vault.enrolment import verify_node_certificate
from vault.keyring import AnswerKeys, KeyRing
from vault.opening import OpeningEpoch
from vault.store.landing_tables import EPOCH_HEADERS

MAX_OPEN_EPOCHS = 512
"""A node has one epoch a minute and shard: what is on its way at one moment fits, and a settlement goes
through epochs one after another."""

MAX_STORED_NUMBER = (1 << 62) - 1
"""What fits into a database's signed integers with room to count on; no honest number comes near."""


def accept_header(
    raw: bytes, campaign_id: str, shard: int, keys: AnswerKeys, authorities: Sequence[x509.Certificate], now_ms: int
) -> tuple[EpochHeader, OpeningEpoch]:
    """Steps 1 to 3.

    The certificate must be valid now, or have been at the start of the epoch: blocks may wait for hours
    while the vault is down, and certificates are short-lived.

    Raises:
        IntegrityError: not a genuine header for this campaign and shard.
    """
    header = read_header(raw)
    context = header.context
    if context.campaign_id != campaign_id or context.shard != shard:
        raise IntegrityError("an epoch header was made for another campaign or shard")
    if context.answer_key_id != key_id(keys.answer.public_raw):
        raise IntegrityError("an epoch header was made for another answer key")
    if max(context.started_at_ms, context.previous_last) > MAX_STORED_NUMBER:
        raise IntegrityError("an epoch header names a time or a block that cannot be")
    certificate = header.verify_signature()
    _verify_certificate(certificate, authorities, (now_ms, context.started_at_ms))
    return header, OpeningEpoch.from_header(header, keys.answer)


def _verify_certificate(
    certificate: x509.Certificate, authorities: Sequence[x509.Certificate], moments_ms: tuple[int, int]
) -> None:
    try:
        verify_node_certificate(certificate, authorities, _moment(moments_ms[0]))
    except PliError:
        verify_node_certificate(certificate, authorities, _moment(moments_ms[1]))


def _moment(unix_ms: int) -> datetime:
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise IntegrityError("an epoch header names a time that no calendar has") from error


class OpenEpochs:
    """The epoch keys used last, per set of unlocked keys. Safe for several threads.

    Bound to the `AnswerKeys` it was filled under: after locking and unlocking nothing old is served.
    """

    def __init__(self, capacity: int = MAX_OPEN_EPOCHS) -> None:
        self._capacity = capacity
        self._keys: AnswerKeys | None = None
        self._epochs: OrderedDict[bytes, OpeningEpoch] = OrderedDict()
        self._lock = Lock()

    def put(self, keys: AnswerKeys, epoch: OpeningEpoch) -> None:
        """Keeps an epoch that `accept_header` opened."""
        with self._lock:
            self._bind(keys)
            self._epochs[epoch.epoch_id] = epoch
            while len(self._epochs) > self._capacity:
                self._epochs.popitem(last=False)

    def find(self, connection: Connection, keys: AnswerKeys, epoch_id: bytes) -> OpeningEpoch | None:
        """The epoch, from memory or from its stored header; None if no header was ever accepted.

        Raises:
            IntegrityError: the stored header was altered.
        """
        with self._lock:
            self._bind(keys)
            known = self._epochs.get(epoch_id)
            if known is not None:
                self._epochs.move_to_end(epoch_id)
                return known
        raw = connection.execute(
            select(EPOCH_HEADERS.c.header).where(
                EPOCH_HEADERS.c.campaign_id == keys.campaign_id, EPOCH_HEADERS.c.epoch_id == epoch_id
            )
        ).scalar_one_or_none()
        if raw is None:
            return None
        header = read_header(raw)
        if header.epoch_id != epoch_id:
            raise IntegrityError("a stored epoch header was altered; restore the vault's database")
        epoch = OpeningEpoch.from_header(header, keys.answer)
        self.put(keys, epoch)
        return epoch

    def forget(self) -> None:
        """Lets go of every key; called when the answers are locked."""
        with self._lock:
            self._keys = None
            self._epochs.clear()

    def forget_if_locked(self, keyring: KeyRing, keys: AnswerKeys) -> None:
        """`forget`, unless these keys are unlocked still: called by work that has put epochs here.

        Whatever was under way while the answers were locked may have put some after `forget`.
        """
        try:
            unlocked = keyring.answers(keys.campaign_id) is keys
        except VaultLocked:
            unlocked = False
        if not unlocked:
            self.forget()

    def _bind(self, keys: AnswerKeys) -> None:
        # One campaign's keys at a time: a vault that serves several interleaves them rarely.
        if self._keys is not keys:
            self._keys = keys
            self._epochs.clear()

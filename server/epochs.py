"""Key epochs of one process and shard: fresh keys, one after another, each naming the one before."""

from __future__ import annotations

from collections.abc import Callable

from pli.epochs import EPOCH_KEY_BYTES, NO_EPOCH, EpochContext, epoch_id, make_header
from pli.hpke import PublicKey
from pli.sealing import SealingEpoch
from pli.secret import Secret
from server.identity import NodeIdentity


class EpochSource:
    """Makes the epochs of one process and shard."""

    def __init__(
        self,
        campaign_id: str,
        shard: int,
        process_id: bytes,
        answer_key: PublicKey,
        identity: NodeIdentity,
        clock_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._campaign_id = campaign_id
        self._shard = shard
        self._process_id = process_id
        self._answer_key = answer_key
        self._identity = identity
        self._clock_ms = clock_ms
        self._random_bytes = random_bytes

    def next(self, previous_epoch: bytes = NO_EPOCH, previous_last: int = 0) -> SealingEpoch:
        """A new epoch. `previous_last` is the last block number the previous one committed."""
        key = Secret(self._random_bytes(EPOCH_KEY_BYTES))
        context = EpochContext(
            campaign_id=self._campaign_id,
            shard=self._shard,
            answer_key_id=self._answer_key.key_id,
            node_key_id=self._identity.key_id,
            process_id=self._process_id,
            started_at_ms=self._clock_ms(),
            previous_epoch=previous_epoch,
            previous_last=previous_last,
        )
        header = make_header(
            context, key.reveal(), self._answer_key, self._identity.signing_key, self._identity.certificate_der
        )
        return SealingEpoch(self._campaign_id, self._shard, key, header, epoch_id(header))

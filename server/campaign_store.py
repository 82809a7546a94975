"""What the relay has put into the spool for nodes: bundle, pseudonym key, window; read and verified."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError
from redis.asyncio import Redis

from pli.errors import IntegrityError
from pli.hpke import key_id
from pli.secret import Secret
from pli.signing import BUNDLE, ENROLLED, verify
from pli.vault.v1.bundle_pb2 import Bundle, Enrolled, Signed
from server.identity import NodeIdentity
from server.store.keys import ShardKeys
from server.store.spool import asked

PSEUDONYM_KEY_LABEL = b"pli/pseudonym-key/v1"


class CampaignStore:
    """Reads one campaign's signed statements. Nothing in the spool is believed without the vault's key."""

    def __init__(self, redis: Redis, campaign_id: str, vault_key: Ed25519PublicKey) -> None:
        self._call = cast(Callable[..., Awaitable[Any]], redis.execute_command)
        self._campaign_id = campaign_id
        self._vault_key = vault_key
        self._first = ShardKeys(campaign_id, 0)

    async def bundle(self) -> Bundle | None:
        """The bundle, once its registry is loaded in every shard; else None.

        Raises:
            IntegrityError: not signed by the pinned key, or for another campaign.
        """
        raw = await asked(self._call("GET", self._first.bundle))
        if not raw:
            return None
        bundle = Bundle()
        try:
            bundle.ParseFromString(verify(self._vault_key, BUNDLE, Signed.FromString(raw)))
        except DecodeError as error:
            raise IntegrityError("the bundle in the spool is not readable; the relay must load it again") from error
        if bundle.campaign_id != self._campaign_id:
            raise IntegrityError("the bundle in the spool is for another campaign; check campaign_id and url")
        for shard in range(bundle.shards):
            if await self.loaded_version(shard) != bundle.version:
                return None
        return bundle

    async def loaded_version(self, shard: int = 0) -> int:
        """Version of the bundle that is loaded in a shard; 0 when none."""
        return int(await asked(self._call("GET", ShardKeys(self._campaign_id, shard).loaded)) or 0)

    async def pseudonym_key(self, identity: NodeIdentity, now_ms: int) -> Secret | None:
        """The campaign's pseudonym key, once the vault has answered; else asks for it and gives None.

        Raises:
            IntegrityError: the answer is not the vault's, or not for this node.
        """
        receiving_id = key_id(identity.receiving_key.public_raw)
        raw = await asked(self._call("HGET", self._first.enrolled, receiving_id))
        if not raw:
            request = identity.enrolment(self._campaign_id, now_ms).SerializeToString()
            await asked(self._call("HSET", self._first.enrolments, receiving_id, request))
            return None
        enrolled = Enrolled()
        try:
            enrolled.ParseFromString(verify(self._vault_key, ENROLLED, Signed.FromString(raw)))
        except DecodeError as error:
            raise IntegrityError("the vault's enrolment in the spool is not readable") from error
        if enrolled.campaign_id != self._campaign_id or enrolled.node_key_id != receiving_id:
            raise IntegrityError("the vault's enrolment in the spool is for another node or campaign")
        info = b"\0".join((PSEUDONYM_KEY_LABEL, self._campaign_id.encode(), receiving_id))
        return Secret(identity.receiving_key.decrypt(enrolled.sealed_pseudonym_key, info))

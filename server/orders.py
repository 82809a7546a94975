"""Orders in: the store's identity, the bundle with its registry, the window, and the keys of nodes."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import structlog

from pli.errors import IntegrityError, PliError, SpoolUnsafe, Unavailable
from pli.pseudonym import PSEUDONYM_BYTES, shard_of
from pli.signing import BUNDLE, WINDOW
from pli.vault.v1.bundle_pb2 import Bundle, Signed, SignedEnrolment, WindowOrder, WindowPhase
from pli.vault.v1.deposit_pb2 import ShardState, SyncRequest
from server.config import RelaySettings
from server.store.relay_spool import RelaySpool
from server.vault_client import VaultClient, read

log = structlog.get_logger()

ENTRY_BYTES = PSEUDONYM_BYTES + 4
MARKER_BYTES = 16
ASK_AGAIN_SECONDS = 10.0
"""Between two requests for a node that the vault refused."""


class Orders:
    """Exchanges state with the vault and does what it wants, over all shards.

    `adopted` says per shard whether its store is the one that the vault knows, with Functions loaded;
    nothing is carried from another.
    """

    def __init__(
        self,
        settings: RelaySettings,
        shards: list[RelaySpool],
        vault: VaultClient,
        monotonic: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._settings = settings
        self._shards = shards
        self._vault = vault
        self._monotonic = monotonic
        self._random_bytes = random_bytes
        self._refused_nodes: dict[bytes, float] = {}
        self.adopted = [False] * len(shards)

    async def exchange(self) -> None:
        """One round."""
        facts = [await spool.facts() for spool in self._shards]
        loaded = min([await spool.loaded_version() for spool in self._shards])
        states = [
            ShardState(
                marker=fact.marker,
                window_version=fact.window_version,
                blocks_waiting=fact.waiting,
                closed=fact.closed,
            )
            for fact in facts
        ]
        request = SyncRequest(
            campaign_id=self._settings.campaign_id, relay=self._settings.name, bundle_version=loaded, shards=states
        )
        response = await self._vault.sync(request)
        for shard in range(len(self._shards)):
            await self._adopt(shard, response.markers[shard] if shard < len(response.markers) else b"")
        if response.bundle_version > loaded:
            await self._load_bundle(loaded)
        if response.HasField("window"):
            await self._apply_window(response.window)
        await self._enrol_nodes()

    async def _adopt(self, shard: int, known: bytes) -> None:
        """Makes sure that a shard's store is the one that the vault knows; a new one gets an identity.

        Raises:
            SpoolUnsafe: it is another one, or empty.
        """
        spool = self._shards[shard]
        held = (await spool.facts()).marker
        if known and held != known:
            self.adopted[shard] = False
            what = "another one than" if held else "empty, not the one that"
            raise SpoolUnsafe(
                f"the store of shard {shard} is {what} the vault knows for this campaign; "
                "restore the right one: it is not adopted"
            )
        if not held:
            await spool.adopt(self._random_bytes(MARKER_BYTES))
        if not self.adopted[shard]:
            await spool.load_functions()
            self.adopted[shard] = True

    async def _load_bundle(self, loaded: int) -> None:
        """Fetches bundle and registry, and loads them shard by shard; the last step marks it loaded.

        Raises:
            IntegrityError: signature, campaign, version, count or digest do not fit.
        """
        signed, bundle = None, Bundle()
        digest, count = sha256(), 0
        async for part in self._vault.fetch_bundle(self._settings.campaign_id):
            if part.WhichOneof("part") == "bundle":
                signed = part.bundle
                bundle = self._checked(signed, loaded)
            else:
                digest.update(part.registry.entries)
                count += len(part.registry.entries) // ENTRY_BYTES
                await self._put_registry(part.registry.entries)
        if signed is None or count != bundle.registry_count or digest.digest() != bundle.registry_digest:
            raise IntegrityError("the registry arrived incomplete or altered; it is fetched again")
        for spool in self._shards:
            await spool.put_bundle(signed.SerializeToString(), bundle.version)
        log.info("bundle_loaded", version=bundle.version, count=count)

    def _checked(self, signed: Signed, loaded: int) -> Bundle:
        bundle = self._vault.says(Bundle(), BUNDLE, signed)
        if bundle.campaign_id != self._settings.campaign_id:
            raise IntegrityError("the vault's bundle is for another campaign")
        if bundle.version <= loaded:
            raise IntegrityError("the vault's bundle is older than the one that is loaded")
        if bundle.shards != len(self._shards):
            raise IntegrityError(
                f"the campaign has {bundle.shards} shards, this relay is configured for "
                f"{len(self._shards)}; correct `shards`"
            )
        return bundle

    async def _put_registry(self, entries: bytes) -> None:
        rows: list[list[bytes]] = [[] for _ in self._shards]
        for at in range(0, len(entries), ENTRY_BYTES):
            entry = entries[at : at + ENTRY_BYTES]
            rows[shard_of(entry[:PSEUDONYM_BYTES], len(self._shards))].append(entry)
        for spool, shard_rows in zip(self._shards, rows, strict=True):
            if shard_rows:
                await spool.put_registry(shard_rows)

    async def _apply_window(self, signed: Signed) -> None:
        order = self._vault.says(WindowOrder(), WINDOW, signed)
        if order.campaign_id != self._settings.campaign_id:
            raise IntegrityError("the vault's order about the window is for another campaign")
        for spool in self._shards:
            facts = await spool.facts()
            if facts.closed or facts.window_version >= order.version:
                continue
            if order.phase == WindowPhase.WINDOW_PHASE_CLOSED:
                await spool.close_window(order.version)
                log.info("window_closed", shard=spool.keys.shard, version=order.version)
            else:
                await spool.set_window(
                    order.version, order.phase, order.opens_at_ms, order.closes_at_ms, order.grace_ms
                )
                log.info("window_set", shard=spool.keys.shard, version=order.version, state=int(order.phase))

    async def _enrol_nodes(self) -> None:
        spool = self._shards[0]
        now = self._monotonic()
        for key_id, raw in (await spool.enrolments()).items():
            if now < self._refused_nodes.get(key_id, 0.0):
                continue
            try:
                signed = await self._vault.enrol(read(SignedEnrolment(), raw, "a node's request in the spool"))
            except Unavailable:
                raise
            except PliError as error:
                # One refused node must not keep the others waiting; it is asked for, and logged, again later.
                log.error("node_refused", reason=error.reason, why=error.message)
                self._refused_nodes[key_id] = now + ASK_AGAIN_SECONDS
                continue
            await spool.put_enrolled(key_id, signed.SerializeToString())

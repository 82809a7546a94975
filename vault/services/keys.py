"""KeyService: unlocking and locking the two scopes, one attempt at a time, each with its audit note."""

from __future__ import annotations

import asyncio

import structlog

from pli.errors import InputError, PliError
from pli.identity import Peer
from pli.rpc.peer import peer_of
from pli.rpc.server import Context
from pli.secret import Secret
from pli.vault.v1.keys_pb2 import (
    GetLockStateRequest,
    GetLockStateResponse,
    KeyScope,
    LockRequest,
    LockResponse,
    UnlockRequest,
    UnlockResponse,
)
from pli.vault.v1.keys_pb2_grpc import KeyServiceServicer
from vault.audit import WHOLE_VAULT, Audit
from vault.epochs import OpenEpochs
from vault.keystore import Keystore, Scope
from vault.services.acts import Acts

log = structlog.get_logger()

_SCOPES = {KeyScope.KEY_SCOPE_ANSWERS: Scope.ANSWERS, KeyScope.KEY_SCOPE_IDENTITIES: Scope.IDENTITIES}
_ON_THE_WIRE = {scope: number for number, scope in _SCOPES.items()}


class KeyService(KeyServiceServicer):
    """`epochs` is what deposits and settlement share: locking the answers empties it."""

    def __init__(self, keystore: Keystore, audit: Audit, epochs: OpenEpochs, *, auto_unlock: bool = False) -> None:
        self._keystore = keystore
        self._audit = audit
        self._epochs = epochs
        self._auto_unlock = auto_unlock
        # Each attempt takes Argon2's memory and time; side by side they would be cheaper to guess with.
        self._turn = asyncio.Lock()
        self._acts = Acts()

    async def Unlock(self, request: UnlockRequest, context: Context) -> UnlockResponse:
        """Loads a scope's keys. An attempt is finished and noted even when its caller hangs up."""
        scope = _scope(request.scope)
        passphrase = Secret(request.passphrase) if request.passphrase else None
        await self._acts.run(self._unlock(peer_of(context), scope, passphrase))
        return UnlockResponse(unlocked=self._unlocked())

    async def Lock(self, request: LockRequest, context: Context) -> LockResponse:
        """Forgets a scope's keys; what is under way with them ends with VAULT_LOCKED."""
        scope = _scope(request.scope)
        await self._acts.run(self._lock(peer_of(context), scope))
        return LockResponse(unlocked=self._unlocked())

    async def GetLockState(self, request: GetLockStateRequest, context: Context) -> GetLockStateResponse:
        """What is unlocked."""
        return GetLockStateResponse(unlocked=self._unlocked(), auto_unlock=self._auto_unlock)

    async def finish(self) -> None:
        """Waits for attempts under way."""
        await self._acts.finish()

    async def _unlock(self, actor: Peer, scope: Scope, passphrase: Secret | None) -> None:
        async with self._turn:
            try:
                await asyncio.to_thread(self._keystore.unlock, scope, passphrase)
            except PliError as error:
                log.warning("unlock_refused", scope=str(scope), reason=error.reason)
                await self._audit.note(actor, f"unlock-{scope}-refused", WHOLE_VAULT)
                raise
            finally:
                if passphrase is not None:
                    passphrase.wipe()
            for campaign_id, why in self._keystore.closed_campaigns.items():
                log.error("campaign_stays_closed", campaign=campaign_id, why=why)
            log.info("unlocked", scope=str(scope))
            await self._audit.note(actor, f"unlock-{scope}", WHOLE_VAULT)

    async def _lock(self, actor: Peer, scope: Scope) -> None:
        async with self._turn:
            await asyncio.to_thread(self._keystore.lock, scope)
            if scope is Scope.ANSWERS:
                self._epochs.forget()
            log.info("locked", scope=str(scope))
            await self._audit.note(actor, f"lock-{scope}", WHOLE_VAULT)

    def _unlocked(self) -> list[KeyScope.ValueType]:
        return [_ON_THE_WIRE[scope] for scope in self._keystore.unlocked()]


def _scope(number: KeyScope.ValueType) -> Scope:
    if number not in _SCOPES:
        raise InputError("name a scope: answers or identities")
    return _SCOPES[number]

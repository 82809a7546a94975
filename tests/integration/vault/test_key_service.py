"""KeyService over real mTLS: scopes apart, one attempt at a time, every attempt in the audit log."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from pli.errors import ConfigError, Forbidden, InputError, VaultLocked
from pli.vault.v1.campaign_pb2 import GetCampaignRequest, SettleRequest
from pli.vault.v1.keys_pb2 import GetLockStateRequest, KeyScope, LockRequest, UnlockRequest
from tests.support.vault_parts import CAMPAIGN
from tests.support.vault_server import Knobs, VaultServer, refusal, vault_server
from tests.support.waiting import until
from vault.keystore import Scope
from vault.opening import OpeningEpoch

ANSWERS, IDENTITIES = KeyScope.KEY_SCOPE_ANSWERS, KeyScope.KEY_SCOPE_IDENTITIES
PASSPHRASE = b"a passphrase of the custodian"
WRONG = b"a passphrase of somebody else"


@pytest_asyncio.fixture
async def vault(tmp_path: Path) -> AsyncIterator[VaultServer]:
    """A locked vault whose scopes open by passphrases, which were set."""
    async with vault_server(tmp_path, Knobs(key_files=False)) as running:
        stub = await running.keys(name="founder")
        for scope in (ANSWERS, IDENTITIES):
            await stub.Unlock(UnlockRequest(scope=scope, passphrase=PASSPHRASE))
        await running.create()
        for scope in (ANSWERS, IDENTITIES):
            await stub.Lock(LockRequest(scope=scope))
        yield running


def noted_since(vault: VaultServer, before: int) -> list[tuple[str, str, str]]:
    return vault.audited()[before:]


async def test_the_vault_starts_locked(tmp_path: Path) -> None:
    async with vault_server(tmp_path) as vault:
        state = await (await vault.keys()).GetLockState(GetLockStateRequest())
        assert (list(state.unlocked), state.auto_unlock) == ([], False)


async def test_scopes_are_unlocked_and_locked_apart(vault: VaultServer) -> None:
    stub = await vault.keys()
    assert list((await stub.Unlock(UnlockRequest(scope=ANSWERS, passphrase=PASSPHRASE))).unlocked) == [ANSWERS]
    assert vault.parts.answers.campaign_id == CAMPAIGN
    with pytest.raises(VaultLocked):
        _ = vault.parts.identities
    both = await stub.Unlock(UnlockRequest(scope=IDENTITIES, passphrase=PASSPHRASE))
    assert list(both.unlocked) == [ANSWERS, IDENTITIES]
    assert list((await stub.Lock(LockRequest(scope=ANSWERS))).unlocked) == [IDENTITIES]
    assert list((await stub.GetLockState(GetLockStateRequest())).unlocked) == [IDENTITIES]
    with pytest.raises(VaultLocked):
        _ = vault.parts.answers


async def test_a_wrong_passphrase_is_forbidden_and_noted(vault: VaultServer) -> None:
    before = len(vault.audited())
    error = await refusal((await vault.keys()).Unlock(UnlockRequest(scope=IDENTITIES, passphrase=WRONG)))
    assert isinstance(error, Forbidden)
    assert "somebody" not in error.message
    assert vault.parts.keystore.unlocked() == ()
    assert noted_since(vault, before) == [("unlock-identities-refused", "custodian", "carol")]


async def test_every_unlock_and_lock_is_noted_with_the_custodians_name(vault: VaultServer) -> None:
    before, stub = len(vault.audited()), await vault.keys(name="erin")
    for scope in (ANSWERS, IDENTITIES):
        await stub.Unlock(UnlockRequest(scope=scope, passphrase=PASSPHRASE))
        await stub.Lock(LockRequest(scope=scope))
    assert noted_since(vault, before) == [
        (f"{act}-{scope}", "custodian", "erin") for scope in ("answers", "identities") for act in ("unlock", "lock")
    ]
    assert await vault.parts.audit.check()


async def test_no_passphrase_reaches_the_audit_log(vault: VaultServer) -> None:
    stub = await vault.keys()
    await refusal(stub.Unlock(UnlockRequest(scope=ANSWERS, passphrase=WRONG)))
    await stub.Unlock(UnlockRequest(scope=ANSWERS, passphrase=PASSPHRASE))
    log = b"".join(vault.parts.audit_entries())
    assert b"unlock-answers-refused" in log
    for passphrase in (PASSPHRASE, WRONG):
        assert passphrase not in log
        assert passphrase.hex().encode() not in log


@pytest.mark.parametrize(
    ("request_", "rule"),
    [
        (UnlockRequest(passphrase=PASSPHRASE), "name a scope"),
        (UnlockRequest(scope=7, passphrase=PASSPHRASE), "name a scope"),  # type: ignore[arg-type]  # no such scope
        (UnlockRequest(scope=ANSWERS), "opens by its passphrase; give it"),
    ],
)
async def test_a_wrong_request_says_what_to_give(vault: VaultServer, request_: UnlockRequest, rule: str) -> None:
    error = await refusal((await vault.keys()).Unlock(request_))
    assert isinstance(error, InputError)
    assert rule in error.message
    assert isinstance(await refusal((await vault.keys()).Lock(LockRequest())), InputError)


async def test_the_first_passphrase_of_a_scope_must_be_long(tmp_path: Path) -> None:
    async with vault_server(tmp_path, Knobs(key_files=False)) as vault:
        error = await refusal((await vault.keys()).Unlock(UnlockRequest(scope=ANSWERS, passphrase=b"too short")))
        assert isinstance(error, InputError)
        assert "at least 15 bytes" in error.message
        assert vault.parts.keystore.unlocked() == ()


async def test_key_files_unlock_without_a_passphrase_and_must_be_private(tmp_path: Path) -> None:
    async with vault_server(tmp_path) as vault:
        stub = await vault.keys()
        vault.parts.key_files[Scope.ANSWERS].chmod(0o444)
        error = await refusal(stub.Unlock(UnlockRequest(scope=ANSWERS)))
        assert isinstance(error, ConfigError)
        assert "chmod 0400" in error.message
        vault.parts.key_files[Scope.ANSWERS].chmod(0o400)
        assert list((await stub.Unlock(UnlockRequest(scope=ANSWERS))).unlocked) == [ANSWERS]


async def test_locking_answers_empties_the_epoch_keys_in_memory(vault: VaultServer) -> None:
    stub = await vault.keys()
    await stub.Unlock(UnlockRequest(scope=ANSWERS, passphrase=PASSPHRASE))
    keys = vault.parts.answers
    epoch = OpeningEpoch(CAMPAIGN, b"e" * 16, os.urandom(32))
    vault.epochs.put(keys, epoch)

    def find() -> OpeningEpoch | None:
        return vault.parts.database.read_now(lambda connection: vault.epochs.find(connection, keys, epoch.epoch_id))

    assert find() is epoch
    await stub.Lock(LockRequest(scope=IDENTITIES))
    assert find() is epoch
    await stub.Lock(LockRequest(scope=ANSWERS))
    assert find() is None


async def test_locking_twice_and_unlocking_twice_are_harmless(vault: VaultServer) -> None:
    stub = await vault.keys()
    for _ in range(2):
        await stub.Unlock(UnlockRequest(scope=ANSWERS, passphrase=PASSPHRASE))
    for _ in range(2):
        assert list((await stub.Lock(LockRequest(scope=ANSWERS))).unlocked) == []


async def test_attempts_run_one_after_another_and_the_vault_answers_meanwhile(vault: VaultServer) -> None:
    stub, watcher = await vault.keys(), await vault.campaigns()
    given = [WRONG, PASSPHRASE, WRONG, PASSPHRASE]
    before = len(vault.audited())
    attempts = [asyncio.ensure_future(stub.Unlock(UnlockRequest(scope=ANSWERS, passphrase=each))) for each in given]
    assert (await watcher.GetCampaign(GetCampaignRequest(campaign_id=CAMPAIGN))).state == "DRAFT"
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert [isinstance(outcome, Exception) for outcome in outcomes] == [True, False, True, False]
    acts = sorted(action for action, _, _ in noted_since(vault, before))
    assert acts == ["unlock-answers"] * 2 + ["unlock-answers-refused"] * 2


async def test_an_attempt_is_noted_even_when_its_caller_hangs_up(vault: VaultServer) -> None:
    stub, before = await vault.keys(), len(vault.audited())

    async def under_way() -> bool:
        return len(vault.key_service._acts._running) == 2

    # The lock of the keystore is held, so that the attempts are under way for as long as this test wants.
    with vault.parts.keystore._turn:
        attempts = [
            asyncio.ensure_future(stub.Unlock(UnlockRequest(scope=IDENTITIES, passphrase=passphrase)))
            for passphrase in (PASSPHRASE, WRONG)
        ]
        await until(under_way, "both attempts")
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)

    async def noted() -> bool:
        return len(noted_since(vault, before)) == 2

    await until(noted, "both notes")
    assert {action for action, _, _ in noted_since(vault, before)} == {"unlock-identities", "unlock-identities-refused"}


async def test_a_call_that_needs_keys_works_again_after_unlocking(vault: VaultServer) -> None:
    stub = await vault.campaigns()
    assert isinstance(await refusal(stub.Settle(SettleRequest(campaign_id=CAMPAIGN))), VaultLocked)
    await (await vault.keys()).Unlock(UnlockRequest(scope=ANSWERS, passphrase=PASSPHRASE))
    assert not isinstance(await refusal(stub.Settle(SettleRequest(campaign_id=CAMPAIGN))), VaultLocked)


async def test_what_is_unlocked_may_be_asked_by_those_who_watch_and_changed_by_custodians_alone(
    vault: VaultServer,
) -> None:
    for role in ("campaign-admin", "operator", "observer"):
        stub = await vault.keys(role)
        assert list((await stub.GetLockState(GetLockStateRequest())).unlocked) == []
        before = len(vault.audited())
        for call in (
            stub.Unlock(UnlockRequest(scope=ANSWERS, passphrase=PASSPHRASE)),
            stub.Lock(LockRequest(scope=ANSWERS)),
        ):
            assert isinstance(await refusal(call), Forbidden)
        assert len(vault.audited()) == before
    assert vault.parts.keystore.unlocked() == ()


async def test_entries_say_what_was_done_and_hold_no_subject(vault: VaultServer) -> None:
    entry = json.loads(vault.parts.audit_entries()[0])
    assert entry == {
        "action": "unlock-answers",
        "actor": "founder",
        "campaign": "",
        "count": 0,
        "purpose": "",
        "role": "custodian",
        "time_ms": vault.parts.now_ms,
    }

"""VerifyLedger over real mTLS: verdicts from settled scripts, for rehearsals alone, and no content."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from struct import pack
from typing import Any

import grpc
import pytest
import pytest_asyncio
from sqlalchemy import delete, update

from pli.codes import Code, new_code
from pli.errors import InputError, IntegrityError, NotFound, PliError, StateError, StreamViolation, VaultLocked
from pli.ledger import LedgerWriter
from pli.rpc.client import typed
from pli.sealing import NewRecord
from pli.secret import Secret
from pli.vault.v1.rehearsal_pb2 import LedgerVerdict, VerifyLedgerRequest, VerifyLedgerResponse
from tests.support.sealing_node import Section, Writer
from tests.support.settled_vault import SettledVault, Stubs, served, settled_vault
from tests.support.vault_parts import CAMPAIGN
from vault.keystore import Scope
from vault.store.campaign_tables import CAMPAIGNS
from vault.store.landing_tables import RESULTS, SCRIPTS

KEY = Secret(b"k" * 32)
CHUNK = 1 << 10


@dataclass
class Clients:
    """Pupils of one run: what they send is in a real ledger, and lands unless a test keeps it back."""

    vault: SettledVault
    ledger: Path
    stubs: Stubs
    writers: dict[str, Writer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = LedgerWriter(self.ledger, CAMPAIGN, KEY)

    def gives(self, pupil_id: str, item: str, option: str = "A") -> Section:
        """A pupil's next answer, written down as sent and acknowledged."""
        pseudonym, code = self.vault.codes[pupil_id]
        if pupil_id not in self.writers:
            self.writers[pupil_id] = Writer(pseudonym)
            self.log.opened(self.writers[pupil_id].writer, code)
        writer = self.writers[pupil_id]
        record = self.vault.answers(writer, [(item, option)])[0]
        self.sent(writer, record)
        self.log.acked(writer.writer, record[0])
        return writer.sends(record)

    def finishes(self, pupil_id: str) -> Section:
        """The end of a session, acknowledged."""
        writer = self.writers[pupil_id]
        record = writer.finish()
        self.sent(writer, record)
        self.log.acked(writer.writer, record[0])
        return writer.sends(record)

    def sent(self, writer: Writer, record: NewRecord) -> None:
        seq, _, kind, payload = record
        self.log.sent(writer.writer, seq, kind, payload)

    async def verified(self) -> VerifyLedgerResponse:
        """What the vault says of the ledger as it is now."""
        return await verify(self.stubs, ledger_requests(self.ledger.read_bytes()))


def ledger_requests(content: bytes, key: bytes = KEY.reveal()) -> list[VerifyLedgerRequest]:
    first = VerifyLedgerRequest(campaign_id=CAMPAIGN, ledger_key=key)
    return [first, *(VerifyLedgerRequest(chunk=content[at : at + CHUNK]) for at in range(0, len(content), CHUNK))]


async def verify(stubs: Stubs, requests: Iterable[VerifyLedgerRequest]) -> VerifyLedgerResponse:
    try:
        response: VerifyLedgerResponse = await stubs.rehearsals.VerifyLedger(iter(requests))
    except grpc.aio.AioRpcError as error:
        raise typed(error) from error
    return response


@pytest_asyncio.fixture
async def clients(tmp_path: Path) -> AsyncIterator[Clients]:
    async with settled_vault(tmp_path) as vault, served(vault, tmp_path / "certificates") as stubs:
        clients = Clients(vault, tmp_path / "ledger.txt", stubs)
        yield clients
        clients.log.close()


def bad(outcome: VerifyLedgerResponse) -> dict[str, int]:
    names = ("lost", "duplicated", "unexpected", "recovered")
    return {name: getattr(outcome, name) for name in names if getattr(outcome, name)}


def verdicts(outcome: VerifyLedgerResponse) -> list[Any]:
    return [line.verdict for line in outcome.lines]


async def test_a_run_in_which_nothing_went_wrong(clients: Clients) -> None:
    sections = [clients.gives(f"E{number:02}", "fra-01") for number in range(1, 13)]
    sections += [clients.gives("E01", "fra-01", "B"), clients.finishes("E01")]
    for section in sections:
        await clients.vault.land(section)
    await clients.vault.settle()
    outcome = await clients.verified()
    assert bad(outcome) == {}
    assert (outcome.sessions, outcome.sent, outcome.acknowledged, outcome.in_vault) == (12, 13, 13, 13)
    assert (list(outcome.lines), outcome.codes_compared) == ([], True)


async def test_a_dropped_block_is_a_loss(clients: Clients) -> None:
    await clients.vault.land(clients.gives("E01", "fra-01"))
    clients.gives("E01", "fra-02", "sujet")
    await clients.vault.settle()
    outcome = await clients.verified()
    assert bad(outcome) == {"lost": 1}
    assert [(line.writer, line.seq) for line in outcome.lines] == [(clients.writers["E01"].writer, 2)]


async def test_a_block_that_landed_twice_is_no_duplicate(clients: Clients) -> None:
    section = clients.gives("E01", "fra-01")
    for _ in range(2):
        await clients.vault.land(section)
    await clients.vault.settle()
    assert bad(await clients.verified()) == {}


async def test_a_record_that_a_node_altered_is_lost_and_unexpected(clients: Clients) -> None:
    pseudonym, writer, opening, records = clients.gives("E01", "fra-01", "A")
    ((seq, seat, kind, payload),) = records
    await clients.vault.land((pseudonym, writer, opening, [(seq, seat, kind, payload.replace(b"A", b"D"))]))
    await clients.vault.settle()
    outcome = await clients.verified()
    assert bad(outcome) == {"lost": 1, "unexpected": 1}
    assert verdicts(outcome) == [LedgerVerdict.LEDGER_VERDICT_ALTERED]


async def test_a_conflict_that_kept_the_other_content_is_found(clients: Clients) -> None:
    pseudonym, writer, opening, records = clients.gives("E01", "fra-01", "A")
    ((seq, seat, kind, payload),) = records
    contents = [payload.replace(b"A", bytes([option])) for option in b"ABCDEFGHIJ"]
    smallest = min(contents, key=lambda content: sha256(pack(">HB", seat, kind) + content).digest())
    assert smallest != payload, "the content that stays is another than the one that was given"
    await clients.vault.land((pseudonym, writer, opening, records))
    await clients.vault.settle()
    assert bad(await clients.verified()) == {}
    await clients.vault.land((pseudonym, writer, opening, [(seq, seat, kind, smallest)]))
    await clients.vault.settle()
    assert bad(await clients.verified()) == {"lost": 1, "unexpected": 1}


async def test_an_answer_that_a_node_made_up_is_unexpected(clients: Clients) -> None:
    await clients.vault.land(clients.gives("E01", "fra-01"))
    forger = Writer(clients.vault.codes["E02"][0])
    await clients.vault.land(forger.sends(*clients.vault.answers(forger, [("fra-01", "A")])))
    await clients.vault.settle()
    outcome = await clients.verified()
    assert bad(outcome) == {"unexpected": 1}
    assert outcome.in_vault == 2


async def test_a_rejection_that_was_lost_is_found(clients: Clients) -> None:
    await clients.vault.land(clients.gives("E01", "fra-01"))
    clients.log.rejected(clients.writers["E01"].writer, 1, 3)
    await clients.vault.settle()
    outcome = await clients.verified()
    assert bad(outcome) == {"unexpected": 1}
    assert outcome.rejected == 1


async def test_an_answer_of_unknown_fate_that_is_there_is_recovered(clients: Clients) -> None:
    await clients.vault.land(clients.gives("E01", "fra-01"))
    writer = clients.writers["E01"]
    record = clients.vault.answers(writer, [("fra-01", "B")])[0]
    clients.sent(writer, record)
    await clients.vault.land(writer.sends(record))
    await clients.vault.settle()
    assert bad(await clients.verified()) == {"recovered": 1}


async def test_answers_given_to_another_pupil_are_found_with_identities_unlocked(clients: Clients) -> None:
    _, writer, opening, records = clients.gives("E01", "fra-01")
    await clients.vault.land((clients.vault.codes["E02"][0], writer, opening, records))
    await clients.vault.settle()
    outcome = await clients.verified()
    assert bad(outcome) == {"unexpected": 1}
    assert verdicts(outcome) == [LedgerVerdict.LEDGER_VERDICT_WRONG_CODE]
    clients.vault.parts.keystore.lock(Scope.IDENTITIES)
    blind = await clients.verified()
    assert (bad(blind), blind.codes_compared) == ({}, False)


async def test_an_answer_in_two_scripts_is_duplicated(clients: Clients) -> None:
    pseudonym, writer, opening, records = clients.gives("E01", "fra-01")
    for name in (pseudonym, clients.vault.codes["E02"][0]):
        await clients.vault.land((name, writer, opening, records))
    await clients.vault.settle()
    outcome = await clients.verified()
    assert outcome.duplicated == 1
    assert outcome.in_vault == 1


async def test_a_code_that_the_vault_never_issued_is_a_wrong_one(clients: Clients) -> None:
    writer = Writer(clients.vault.codes["E01"][0])
    clients.log.opened(writer.writer, new_code(lambda _bits: 12_345))
    record = clients.vault.answers(writer, [("fra-01", "A")])[0]
    clients.sent(writer, record)
    clients.log.acked(writer.writer, 1)
    await clients.vault.land(writer.sends(record))
    await clients.vault.settle()
    assert verdicts(await clients.verified()) == [LedgerVerdict.LEDGER_VERDICT_WRONG_CODE]


async def test_no_content_comes_back(clients: Clients) -> None:
    await clients.vault.land(clients.gives("E01", "fra-05", "MARKER-OF-AN-ANSWER"))
    clients.gives("E02", "fra-05", "MARKER-OF-ANOTHER")
    await clients.vault.settle()
    said = (await clients.verified()).SerializeToString()
    assert b"MARKER" not in said
    codes: list[Code] = [code for _, code in clients.vault.codes.values()]
    assert not any(code.reveal().encode() in said for code in codes)
    assert not any(pseudonym in said for pseudonym, _ in clients.vault.codes.values())


# Refused


async def test_a_campaign_of_real_pupils_is_never_compared(clients: Clients) -> None:
    await clients.vault.land(clients.gives("E01", "fra-01"))
    await clients.vault.settle()
    clients.vault.execute(update(CAMPAIGNS).values(rehearsal=False))
    with pytest.raises(StateError, match="real pupils"):
        await clients.verified()


async def test_what_is_not_settled_is_settled_first(clients: Clients) -> None:
    section = clients.gives("E01", "fra-01")
    await clients.vault.land(section)
    with pytest.raises(StateError, match="settle it first"):
        await clients.verified()
    await clients.vault.settle()
    assert bad(await clients.verified()) == {}
    clients.vault.execute(delete(RESULTS))
    with pytest.raises(StateError, match="settle it first"):
        await clients.verified()


async def test_a_script_that_is_gone_stops_the_comparison(clients: Clients) -> None:
    await clients.vault.land(clients.gives("E01", "fra-01"))
    await clients.vault.settle()
    clients.vault.execute(delete(SCRIPTS))
    with pytest.raises(StateError, match="settle it first"):
        await clients.verified()


async def test_a_script_that_was_altered_stops_the_comparison(clients: Clients) -> None:
    await clients.vault.land(clients.gives("E01", "fra-01"))
    await clients.vault.settle()
    clients.vault.execute(update(SCRIPTS).values(sealed=b"x" * 80))
    with pytest.raises(IntegrityError, match="scripts"):
        await clients.verified()


async def test_locked_answers_are_not_compared(clients: Clients) -> None:
    clients.gives("E01", "fra-01")
    clients.vault.parts.keystore.lock(Scope.ANSWERS)
    with pytest.raises(VaultLocked):
        await clients.verified()


LEDGER = f"pli-ledger 1 {CAMPAIGN}\n".encode()


@pytest.mark.parametrize(
    ("requests", "error"),
    [
        ([], StreamViolation),
        ([VerifyLedgerRequest(chunk=LEDGER)], StreamViolation),
        ([VerifyLedgerRequest(campaign_id=CAMPAIGN, ledger_key=b"short", chunk=LEDGER)], StreamViolation),
        ([VerifyLedgerRequest(campaign_id="eval-2027", ledger_key=KEY.reveal(), chunk=LEDGER)], NotFound),
        (ledger_requests(b""), InputError),
        (ledger_requests(b"pli-ledger 1 eval-2027\n"), InputError),
        (ledger_requests(LEDGER + b"x MARKER\n"), InputError),
        ([*ledger_requests(LEDGER), VerifyLedgerRequest(campaign_id=CAMPAIGN)], StreamViolation),
        ([*ledger_requests(LEDGER), VerifyLedgerRequest(ledger_key=KEY.reveal())], StreamViolation),
        ([*ledger_requests(LEDGER), VerifyLedgerRequest(chunk=b"\n" * ((1 << 20) + 1))], StreamViolation),
    ],
    ids=[
        "nothing", "no campaign", "short key", "unknown campaign", "no header", "another campaign", "broken line",
        "campaign twice", "key twice", "large chunk",
    ],
)  # fmt: skip
async def test_a_wrong_question_is_told_so(
    clients: Clients, requests: list[VerifyLedgerRequest], error: type[PliError]
) -> None:
    with pytest.raises(error) as caught:
        await verify(clients.stubs, requests)
    assert "MARKER" not in caught.value.message


async def test_an_empty_ledger_of_an_empty_campaign_is_right(clients: Clients) -> None:
    outcome = await verify(clients.stubs, ledger_requests(LEDGER))
    assert (outcome.sessions, outcome.sent, outcome.in_vault, bad(outcome)) == (0, 0, 0, {})

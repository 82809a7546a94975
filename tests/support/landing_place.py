"""The vault's landing side in this process: a real database, one opened campaign, no names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection, Table, func, insert, select

from pli.development_ca import DevelopmentAuthority
from pli.hpke import PrivateKey
from pli.ingest.v1.ingest_pb2 import Answer
from pli.secret import Secret
from pli.signing import DEPOSIT_RECEIPT, verify
from pli.vault.v1.campaign_pb2 import CampaignCounts
from pli.vault.v1.deposit_pb2 import DepositReceipt, DepositRequest, Verdict
from tests.support.sealing_node import SealingNode
from vault.counts import campaign_counts
from vault.instrument import parse_instrument
from vault.instrument_store import put_instrument
from vault.keyring import AnswerKeys, KeyRing
from vault.landing import Landing
from vault.registry import CLASS, LIVE, PUPIL
from vault.rows import RowCipher
from vault.script_store import StoredScript, load_script, load_scripts
from vault.scripts import final_answers
from vault.settlement import Settlement
from vault.store.campaign_tables import CAMPAIGNS, REGISTRY
from vault.store.database import Database, sqlite_engine
from vault.store.migrate import upgrade

NOW_MS = 1_790_000_000_000
NOW = datetime.fromtimestamp(NOW_MS / 1000, UTC)
INSTRUMENT = b"""
id = "landing"
title = "Three choices"
version = "1"
[[item]]
id = "a"
domain = "one"
type = "choice"
options = ["A", "B", "C"]
key = "A"
[[item]]
id = "b"
domain = "one"
type = "choice"
options = ["A", "B", "C"]
scores = { "B" = 2, "C" = 0.5 }
[[item]]
id = "c"
domain = "two"
type = "choice"
options = ["A", "B", "C"]
key = "C"
"""


class LandingPlace:
    """A database, a keyring, and an authority for nodes. Campaigns are made in it one after another."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = DevelopmentAuthority(directory / "authority", NOW)
        self.database = Database(sqlite_engine(directory / "vault.sqlite3"))
        upgrade(self.database.engine)
        self.keyring = KeyRing()
        self._landings: list[Landing] = []

    def campaign(
        self, campaign_id: str = "c-1", *, pupils: int = 4, classes: Sequence[int] = (), shards: int = 1
    ) -> LandingCampaign:
        """A campaign of its own keys. `classes` gives the seats of each class code."""
        return LandingCampaign(self, campaign_id, pupils, classes, shards)

    def landing(self) -> Landing:
        """A process's part that takes deposits; closed with the place."""
        self._landings.append(Landing(self.database, self.keyring, lambda: NOW_MS))
        return self._landings[-1]

    def close(self) -> None:
        """Ends every thread, then closes the database."""
        for landing in self._landings:
            landing.close()
        self.database.close()

    def rows_in(self, table: Table) -> int:
        """How many rows a table has."""
        return self.database.read_now(
            lambda connection: connection.execute(select(func.count()).select_from(table)).scalar_one()
        )


class LandingCampaign:
    """One campaign: what lands in it and what comes of it."""

    def __init__(self, place: LandingPlace, campaign_id: str, pupils: int, classes: Sequence[int], shards: int) -> None:
        self.place = place
        self.database, self.keyring = place.database, place.keyring
        self.campaign_id = campaign_id
        self.keys = AnswerKeys(
            campaign_id,
            PrivateKey.generate(),
            Secret(os.urandom(32)),
            Ed25519PrivateKey.generate(),
            RowCipher(campaign_id, Secret(os.urandom(32)), os.urandom),
        )
        self.unlock()
        self.pupils = sorted(os.urandom(16) for _ in range(pupils))
        self.classes = sorted(os.urandom(16) for _ in classes)
        entries = [(pseudonym, PUPIL, 0) for pseudonym in self.pupils]
        entries += [(pseudonym, CLASS, seats) for pseudonym, seats in zip(self.classes, classes, strict=True)]
        self._insert(entries, shards)
        self.landing = place.landing()

    def unlock(self) -> None:
        """The answers of this campaign."""
        self.keyring.put_answers(self.keys)

    def node(self) -> SealingNode:
        """A node that collects for this campaign."""
        return SealingNode(self.campaign_id, self.keys.answer.public_raw, self.place.authority, NOW_MS)

    def request(
        self, *blocks: bytes, headers: Iterable[bytes] = (), closings: Iterable[bytes] = (), shard: int = 0
    ) -> DepositRequest:
        """A deposit as a relay makes it."""
        return DepositRequest(
            campaign_id=self.campaign_id, shard=shard, relay="r", headers=headers, blocks=blocks, closings=closings
        )

    async def deposit(
        self, *blocks: bytes, headers: Iterable[bytes] = (), closings: Iterable[bytes] = (), shard: int = 0
    ) -> DepositReceipt:
        """Deposits, and returns what the vault has signed."""
        request = self.request(*blocks, headers=headers, closings=closings, shard=shard)
        response = await self.landing.deposit(request)
        return DepositReceipt.FromString(verify(self.keys.signing.public_key(), DEPOSIT_RECEIPT, response.receipt))

    async def verdicts(self, *blocks: bytes, headers: Iterable[bytes] = (), shard: int = 0) -> list[Verdict.ValueType]:
        """What became of each block."""
        return [block.verdict for block in (await self.deposit(*blocks, headers=headers, shard=shard)).blocks]

    async def settle(self, **options: Any) -> CampaignCounts:
        """Settles with a new Settlement, and returns the counts afterwards."""
        await Settlement(self.database, self.keyring, **options).settle(self.campaign_id)
        return self.counts()

    def counts(self) -> CampaignCounts:
        """What landing and settlement count."""
        return self.database.read_now(lambda connection: campaign_counts(connection, self.campaign_id))

    def stored(self, pseudonym: bytes) -> StoredScript:
        """The script of a pseudonym, which must be there."""
        found = self.database.read_now(lambda connection: load_script(connection, self.keys, pseudonym))
        assert found is not None
        return found

    def final(self, pseudonym: bytes) -> dict[str, str]:
        """Item → option that was chosen last."""
        answers = final_answers(self.stored(pseudonym).script.kept).answers
        return {item: chosen(answer) for item, answer in answers.items()}

    def scripts(self) -> dict[bytes, tuple[list[bytes], list[bytes]]]:
        """Everything that settlement keeps, opened: pseudonym → records, losers of conflicts."""
        names = [*self.pupils, *self.classes]
        found = self.database.read_now(lambda connection: load_scripts(connection, self.keys, names))
        return {name: (stored.script.kept, stored.script.losers) for name, stored in found.items()}

    def _insert(self, entries: Sequence[tuple[bytes, int, int]], shards: int) -> None:
        row = {
            "campaign_id": self.campaign_id,
            "title": "landing",
            "rehearsal": True,
            "shards": shards,
            "state": "OPEN",
            "node_authorities_pem": self.place.authority.certificate.public_bytes(Encoding.PEM).decode(),
            "created_at_ms": NOW_MS,
            "bundle_version": 0,
            "bundle": b"",
            "bundle_loaded": 0,
            "window_version": 0,
            "window_order": b"",
        }
        registry = [
            {"campaign_id": self.campaign_id, "pseudonym": name, "kind": kind, "seats": seats, "status": LIVE}
            for name, kind, seats in entries
        ]
        instrument = parse_instrument(INSTRUMENT, "instrument.toml")

        def insert_all(connection: Connection) -> None:
            connection.execute(insert(CAMPAIGNS), row)
            connection.execute(insert(REGISTRY), registry)
            put_instrument(connection, self.keys, instrument, INSTRUMENT, "instrument.toml")

        self.database.write_now(insert_all)


def chosen(answer: Answer) -> str:
    """The one option of an answer."""
    (option,) = answer.choices.options
    return option


@contextmanager
def landing_place(directory: Path) -> Iterator[LandingPlace]:
    """A place that is closed at the end of the test."""
    place = LandingPlace(directory)
    try:
        yield place
    finally:
        place.close()

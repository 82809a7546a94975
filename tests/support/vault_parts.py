"""A vault's parts in this process: real database, keystore and secret copies in a directory of the test."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

from sqlalchemy import Table, func, select, update

from pli.config import write_secret_file
from pli.development_ca import DevelopmentAuthority
from pli.vault.v1.bundle_pb2 import Signed
from vault.audit import Audit, read_audit
from vault.campaign_secret import SecretCopies
from vault.campaigns import Campaign, create_campaign, find, make_terms
from vault.code_issue import issue_codes
from vault.config import Argon2Parameters
from vault.instrument import parse_instrument
from vault.instrument_store import put_instrument
from vault.keyring import AnswerKeys, IdentityKeys, KeyRing
from vault.keystore import Keystore, Scope
from vault.roster_store import read_roster, store_roster
from vault.store.campaign_tables import CAMPAIGNS
from vault.store.database import Database, sqlite_engine
from vault.store.migrate import upgrade

CAMPAIGN = "eval-2026"
NOW_MS = 1_790_000_000_000
TODAY = date(2026, 9, 21)
NOW = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
SMALL = Path(__file__).parents[1] / "data" / "small"
ROSTER = (SMALL / "roster.csv").read_bytes()
INSTRUMENT = (SMALL / "instrument.toml").read_bytes()

FAST_ARGON2 = Argon2Parameters(time_cost=1, memory_kib=64, parallelism=1)
"""As weak as the parameters go: a test that tries passphrases is not to take seconds."""


class VaultParts:
    """Everything but servers. Scopes open by key files unless `key_files` is False; both start locked."""

    def __init__(self, directory: Path, *, key_files: bool = True) -> None:
        self.directory = directory
        self.now_ms = NOW_MS
        self.state_dir = directory / "state"
        self.secret_dirs = (directory / "medium-1", directory / "medium-2")
        self.public_dir = directory / "public"
        self.key_files = {scope: directory / f"{scope}.key" for scope in Scope} if key_files else {}
        self.state_dir.mkdir(exist_ok=True)
        for path in self.key_files.values():
            if not path.exists():
                write_secret_file(path, secrets.token_bytes(32))
        self.database = Database(sqlite_engine(self.state_dir / "vault.sqlite3"))
        upgrade(self.database.engine)
        self.keyring = KeyRing()
        self.audit = Audit(self.database, self.keyring, self.clock_ms)
        self.keystore = Keystore(
            self.state_dir / "keystore",
            SecretCopies(self.secret_dirs, os.urandom),
            self.keyring,
            public_dir=self.public_dir,
            key_files=self.key_files,
            argon2=FAST_ARGON2,
            random_bytes=os.urandom,
        )

    def clock_ms(self) -> int:
        """The time that the test set."""
        return self.now_ms

    def unlock(self) -> None:
        """Both scopes, by their key files."""
        for scope in Scope:
            self.keystore.unlock(scope)

    @property
    def answers(self) -> AnswerKeys:
        """The campaign's keys of scope answers."""
        return self.keyring.answers(CAMPAIGN)

    @property
    def identities(self) -> IdentityKeys:
        """The campaign's keys of scope identities."""
        return self.keyring.identities(CAMPAIGN)

    async def create(self, authority: DevelopmentAuthority | None = None, *, shards: int = 1) -> Campaign:
        """Unlocks both scopes and makes the campaign."""
        self.unlock()
        pem = (authority or DevelopmentAuthority(self.directory / "authority", NOW)).authority_file.read_text()
        terms = make_terms(CAMPAIGN, "Évaluation de rentrée", shards, [pem], rehearsal=True)
        return await create_campaign(self.database, self.keystore, terms, NOW_MS)

    def import_roster(self, content: bytes = ROSTER) -> None:
        """Imports a roster whole."""
        file = read_roster([content], "roster.csv", TODAY)
        self.database.write_now(lambda connection: store_roster(connection, self.identities, file))

    def put_instrument(self, content: bytes = INSTRUMENT) -> None:
        """Puts an instrument in force."""
        instrument = parse_instrument(content, "instrument.toml")
        self.database.write_now(
            lambda connection: put_instrument(connection, self.answers, instrument, content, "instrument.toml")
        )

    async def fill(self) -> None:
        """Roster, instrument and codes: all that publication needs."""
        self.import_roster()
        self.put_instrument()
        await issue_codes(self.database, self.keyring, CAMPAIGN, secrets.randbits)

    def campaign(self) -> Campaign:
        """The campaign's row now."""
        return self.database.read_now(lambda connection: find(connection, CAMPAIGN))

    def store_bundle(self, signed: Signed, version: int) -> None:
        """Marks the campaign as published: what the life cycle stores when it is."""
        self.database.write_now(
            lambda connection: connection.execute(
                update(CAMPAIGNS).values(bundle_version=version, bundle=signed.SerializeToString())
            )
        )

    def rows_in(self, table: Table) -> int:
        """How many rows a table has."""
        return self.database.read_now(
            lambda connection: connection.execute(select(func.count()).select_from(table)).scalar_one()
        )

    def audit_entries(self) -> list[bytes]:
        """The audit log as canonical JSON."""
        return self.database.read_now(lambda connection: list(read_audit(connection)))

    def close(self) -> None:
        """Closes the database."""
        self.database.close()


@contextmanager
def vault_parts(directory: Path, *, key_files: bool = True) -> Iterator[VaultParts]:
    """Parts that are closed at the end of the test."""
    parts = VaultParts(directory, key_files=key_files)
    try:
        yield parts
    finally:
        parts.close()

"""How fast the vault takes deposits and settles them: `python -m bench.vault [--json]`.

Real sealed blocks as a busy node makes them (many sessions, one answer of each in a block), a
real SQLite file with synchronous = FULL, one vault process, no network. CPU seconds are of all threads
of this process and of nothing else; the machine's other work shows in the wall seconds only. The best
of several runs counts, because noise only ever adds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from sqlalchemy import Connection, insert

from pli.blocks import NO_HASH, block_hash
from pli.canonical import FinishDigest, canonical
from pli.config import read_secret_file
from pli.development_ca import DevelopmentAuthority
from pli.epochs import NO_EPOCH, EpochContext, epoch_id, make_header, node_key_id
from pli.hpke import PrivateKey, PublicKey
from pli.ingest.v1.ingest_pb2 import Answer, Choices, Finish
from pli.records import RecordKind
from pli.rpc.roles import INGEST
from pli.sealing import NewRecord, SealingEpoch
from pli.secret import Secret
from pli.vault.v1.deposit_pb2 import DepositRequest
from vault.counts import campaign_counts
from vault.instrument import parse_instrument
from vault.instrument_store import put_instrument
from vault.keyring import AnswerKeys, KeyRing
from vault.landing import Landing
from vault.registry import LIVE, PUPIL
from vault.rows import RowCipher
from vault.settlement import Settlement
from vault.store.campaign_tables import CAMPAIGNS, REGISTRY
from vault.store.database import Database, sqlite_engine
from vault.store.migrate import upgrade

CAMPAIGN = "bench"
OPTIONS = "ABCDE"
_RELAY_BYTES = 6_000_000
"""What a relay puts into one deposit (server/config.py, read_max_bytes)."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is measured with."""

    answers: int = 400_000
    items: int = 32
    """Answers of each pupil; a finish follows them."""
    block_records: int = 300
    records_per_session: int = 1
    """Records of one session that one commit takes: 1 at the pace of pupils, more in a replay."""
    epochs: int = 8

    @property
    def pupils(self) -> int:
        """Sessions."""
        return max(1, self.answers // self.items)


@dataclass(frozen=True, slots=True)
class Rate:
    """One measured stretch of work."""

    answers: int
    cpu_seconds: float
    wall_seconds: float
    per_cpu_second: int = field(init=False)
    per_wall_second: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_cpu_second", round(self.answers / self.cpu_seconds))
        object.__setattr__(self, "per_wall_second", round(self.answers / self.wall_seconds))


@dataclass(frozen=True, slots=True)
class SettlementRate:
    """What one call of `Settlement.settle` takes, by the steps of DESIGN 3.

    `settlement` (step 9): records opened, merged, scripts stored. `scoring` (step 10): scripts opened,
    results stored, and the sums checked. `settlement_and_scoring`: the whole call.
    """

    settlement: Rate
    scoring: Rate
    settlement_and_scoring: Rate


class Stopwatch:
    """CPU seconds of this process and wall seconds since it was made or last asked."""

    def __init__(self) -> None:
        self._since = self._now()

    def lap(self, answers: int) -> Rate:
        """The stretch since the last lap."""
        now, since = self._now(), self._since
        self._since = now
        return Rate(answers, now[0] - since[0], now[1] - since[1])

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.process_time(), time.perf_counter()


class BenchVault:
    """An unlocked vault in a directory, with one campaign, its instrument and its registry."""

    def __init__(self, directory: Path, load: Load, authority: DevelopmentAuthority) -> None:
        engine = sqlite_engine(directory / "vault.sqlite3")
        upgrade(engine)
        self.database = Database(engine)
        self.keys = AnswerKeys(
            CAMPAIGN,
            PrivateKey.generate(),
            Secret(os.urandom(32)),
            Ed25519PrivateKey.generate(),
            RowCipher(CAMPAIGN, Secret(os.urandom(32)), os.urandom),
        )
        self.keyring = KeyRing()
        self.keyring.put_answers(self.keys)
        self.pseudonyms = sorted(os.urandom(16) for _ in range(load.pupils))
        self.database.write_now(lambda connection: self._fill(connection, load, authority))

    def _fill(self, connection: Connection, load: Load, authority: DevelopmentAuthority) -> None:
        campaign = {
            "campaign_id": CAMPAIGN,
            "title": "benchmark",
            "rehearsal": True,
            "shards": 1,
            "state": "OPEN",
            "node_authorities_pem": authority.certificate.public_bytes(Encoding.PEM).decode(),
            "created_at_ms": 0,
            "bundle_version": 0,
            "bundle": b"",
            "bundle_loaded": 0,
            "window_version": 0,
            "window_order": b"",
        }
        connection.execute(insert(CAMPAIGNS), campaign)
        toml = _instrument(load)
        put_instrument(connection, self.keys, parse_instrument(toml, "bench.toml"), toml, "bench.toml")
        entry = {"campaign_id": CAMPAIGN, "kind": PUPIL, "seats": 0, "status": LIVE}
        connection.execute(insert(REGISTRY), [{**entry, "pseudonym": pseudonym} for pseudonym in self.pseudonyms])


def _item(number: int) -> str:
    return f"sciences-{number:02}"


def _instrument(load: Load) -> bytes:
    items = (
        f'[[item]]\nid = "{_item(number)}"\ndomain = "d{number % 4}"\ntype = "choice"\n'
        f'options = {json.dumps(list(OPTIONS))}\nkey = "{OPTIONS[number % len(OPTIONS)]}"\n'
        for number in range(load.items)
    )
    return ('id = "bench"\ntitle = "benchmark"\nversion = "1"\n' + "".join(items)).encode()


def sealed_deposits(vault: BenchVault, load: Load, authority: DevelopmentAuthority) -> list[DepositRequest]:
    """Everything that all pupils send, sealed by one node and portioned as a relay does."""
    files = authority.issue(INGEST, f"bench-{os.urandom(4).hex()}")
    certificate = x509.load_pem_x509_certificate(files.certificate_file.read_bytes())
    signing_key = load_pem_private_key(read_secret_file(files.key_file).reveal(), None)
    assert isinstance(signing_key, ec.EllipticCurvePrivateKey)
    public_key = PublicKey(vault.keys.answer.public_raw)
    blocks = list(_sections(vault, load))
    per_epoch = -(-len(blocks) // load.epochs)
    deposits = [DepositRequest(campaign_id=CAMPAIGN, relay="bench")]
    size = 0
    for start in range(0, len(blocks), per_epoch):
        key = os.urandom(32)
        context = EpochContext(
            CAMPAIGN,
            0,
            public_key.key_id,
            node_key_id(certificate),
            bytes(16),
            time.time_ns() // 1_000_000,
            NO_EPOCH,
            0,
        )
        header = make_header(context, key, public_key, signing_key, certificate.public_bytes(Encoding.DER))
        epoch = SealingEpoch(CAMPAIGN, 0, Secret(key), header, epoch_id(header))
        deposits[-1].headers.append(header)
        previous = NO_HASH
        for number, sections in enumerate(blocks[start : start + per_epoch], start=1):
            sealed = [epoch.seal_section(*section) for section in sections]
            raw = epoch.seal_block(number, previous, sealed, sum(len(section[3]) for section in sections))
            previous = block_hash(raw)
            if size + len(raw) > _RELAY_BYTES:
                deposits.append(DepositRequest(campaign_id=CAMPAIGN, relay="bench", headers=[header]))
                size = 0
            deposits[-1].blocks.append(raw)
            size += len(raw)
    return deposits


_Section = tuple[bytes, bytes, int, list[NewRecord]]


def _sections(vault: BenchVault, load: Load) -> Iterator[list[_Section]]:
    """Blocks before sealing: all pupils work through the items side by side."""
    pupils = [(pseudonym, os.urandom(16), _records(load, pseudonym)) for pseudonym in vault.pseudonyms]
    together = max(1, load.block_records // load.records_per_session)
    for start in range(0, len(pupils), together):
        some = pupils[start : start + together]
        for at in range(0, load.items + 1, load.records_per_session):
            yield [
                (pseudonym, writer, 1, records[at : at + load.records_per_session])
                for pseudonym, writer, records in some
            ]


def _records(load: Load, pseudonym: bytes) -> list[NewRecord]:
    chosen = sha256(pseudonym).digest()
    digest = FinishDigest()
    records: list[NewRecord] = []
    for number in range(load.items):
        option = OPTIONS[chosen[number % 32] % len(OPTIONS)]
        answer = Answer(
            item_id=_item(number), choices=Choices(options=[option]), opening=1, elapsed_ms=200 * chosen[-number % 32]
        )
        payload = canonical(answer)
        digest.add(number + 1, payload)
        records.append((number + 1, 0, RecordKind.ANSWER, payload))
    finish = Finish(seq=load.items + 1, count=load.items, digest=digest.digest(), opening=1)
    records.append((load.items + 1, 0, RecordKind.FINISH, canonical(finish)))
    return records


@contextmanager
def _vault(load: Load) -> Iterator[tuple[BenchVault, list[DepositRequest]]]:
    with tempfile.TemporaryDirectory(prefix="pli-bench-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        authority = DevelopmentAuthority(directory / "certificates")
        vault = BenchVault(directory, load, authority)
        try:
            yield vault, sealed_deposits(vault, load, authority)
        finally:
            vault.database.close()


async def _deposit(vault: BenchVault, requests: list[DepositRequest]) -> None:
    landing = Landing(vault.database, vault.keyring, lambda: time.time_ns() // 1_000_000)
    try:
        for request in requests:
            await landing.deposit(request)
    finally:
        landing.close()


def deposits(load: Load) -> Rate:
    """Landing: every record authenticated, every block on disk, a signed receipt per deposit."""
    with _vault(load) as (vault, requests):
        watch = Stopwatch()
        asyncio.run(_deposit(vault, requests))
        rate = watch.lap(load.pupils * load.items)
        landed = vault.database.read_now(lambda connection: campaign_counts(connection, CAMPAIGN)).landed
    _must_be(landed, load.pupils * (load.items + 1), "landed")
    return rate


def settlement(load: Load) -> SettlementRate:
    """Settlement of all that has landed, and scoring after it."""
    answers = load.pupils * load.items
    with _vault(load) as (vault, requests):
        asyncio.run(_deposit(vault, requests))
        requests.clear()
        watch = Stopwatch()
        laps: list[Rate] = []
        settling = Settlement(
            vault.database, vault.keyring, on_stored=lambda _campaign, _partition: laps.append(watch.lap(answers))
        )
        asyncio.run(settling.settle(CAMPAIGN))
        scoring = watch.lap(answers)
        counts = vault.database.read_now(lambda connection: campaign_counts(connection, CAMPAIGN))
    _must_be(counts.answers, answers, "answers in scripts")
    _must_be(counts.digests_agree, load.pupils, "digests that agree")
    settled = _sum(answers, laps)
    return SettlementRate(settled, scoring, _sum(answers, [settled, scoring]))


def _sum(answers: int, rates: list[Rate]) -> Rate:
    return Rate(answers, sum(rate.cpu_seconds for rate in rates), sum(rate.wall_seconds for rate in rates))


def _must_be(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise AssertionError(f"{found} {what} instead of {expected}: what was measured is not what was meant")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.vault", description=__doc__)
    usual = Load()
    parser.add_argument("--answers", type=int, default=usual.answers, help="answers in all (default %(default)s)")
    parser.add_argument("--items", type=int, default=usual.items, help="answers of each pupil (default %(default)s)")
    parser.add_argument("--block-records", type=int, default=usual.block_records, help="records in a block")
    parser.add_argument("--per-session", type=int, default=usual.records_per_session, help="of them of one session")
    parser.add_argument("--runs", type=int, default=3, help="the best counts (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    load = Load(options.answers, options.items, options.block_records, options.per_session)
    landed = max((deposits(load) for _ in range(options.runs)), key=lambda rate: rate.per_cpu_second)
    settled = max((settlement(load) for _ in range(options.runs)), key=lambda rate: rate.settlement.per_cpu_second)
    rates = {"deposits": asdict(landed), **asdict(settled)}
    if options.json:
        print(json.dumps({"load": asdict(load), **rates}))
        return
    for name, rate in rates.items():
        print(
            f"{name.replace('_', ' '):24} {rate['per_cpu_second']:>9,} answers per CPU second, "
            f"{rate['per_wall_second']:>9,} per second"
        )


if __name__ == "__main__":
    main()

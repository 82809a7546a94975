"""A whole campaign on this machine: the same services, the same calls, the same sessions as in earnest.

Enrol, issue codes, open, answer, close, drain, settle, score, and compare what every client was told
with what the vault holds.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog

from cli.deployment import Addresses, Deployment, make_socket_dir
from cli.office import Office
from cli.pupils import Attendance, Classroom, Mishaps
from cli.services import Services, free_address
from cli.simulation import CampaignFiles, read_answers
from pli.client import ClientOptions
from pli.config import write_secret_file
from pli.errors import ConfigError, InputError, StateError
from pli.instrument import read_public_part
from pli.ledger import LEDGER_KEY_BYTES, LedgerWriter
from pli.process import exclusive
from pli.responses import parse_codes
from pli.secret import Secret
from pli.vault.v1.campaign_pb2 import CampaignCounts, GetCampaignResponse
from pli.vault.v1.export_pb2 import ExportKind
from pli.vault.v1.rehearsal_pb2 import VerifyLedgerResponse

log = structlog.get_logger()

DRAINED = "DRAINED"
READY_SECONDS = 60.0
MAX_MEMORY_MB = 1_024
PURPOSE = "rehearsal on one machine"
LOCAL_BACKOFF_MS = 2_000
"""A service of this machine is back within seconds: pupils of a rehearsal need not wait longer to look."""


@dataclass(frozen=True, slots=True)
class RehearsalOptions:
    """What to rehearse, and where."""

    out: Path
    campaign_id: str
    files: CampaignFiles
    names: Mapping[str, str]
    """roster, instrument, responses → what to call the file in messages."""
    mishaps: Mishaps
    seed: int
    pace_ms: float = 0.0
    workers: int = 1
    drain_seconds: float = 60.0
    modules: Mapping[str, str] = field(default_factory=dict)
    """Services to run as another module: a test seeds a fault with it."""


@dataclass(slots=True)
class Outcome:
    """What a rehearsal came to; the fields of `pli demo --json`, in order."""

    pupils: int = 0
    sessions: int = 0
    answers_sent: int = 0
    acknowledged: int = 0
    in_vault: int = 0
    lost: int = 0
    duplicated: int = 0
    unexpected: int = 0
    quarantined: int = 0
    spool_left: int = 0
    seconds: float = 0.0
    results: str | None = None
    reports: list[str] = field(default_factory=list)
    state: str = ""
    waiting_for: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    concurrent: int = 0
    rejected: int = 0
    recovered: int = 0
    second_devices: int = 0
    digests_agree: int = 0
    digests_differ: int = 0
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Nothing lost, duplicated, unexpected, quarantined or left; drained; every session finished."""
        bad = self.lost + self.duplicated + self.unexpected + self.quarantined + self.spool_left
        return bad == 0 and self.state == DRAINED and not self.failures and self.digests_differ == 0

    def as_json(self) -> dict[str, object]:
        """The object that `--json` prints."""
        return asdict(self)


class CountingLedger(LedgerWriter):
    """A ledger that knows how far all its writers have come."""

    def __init__(self, path: Path, campaign_id: str, key: Secret) -> None:
        super().__init__(path, campaign_id, key)
        self._durable: dict[bytes, int] = {}
        self.settled = 0
        """Messages that the platform said are settled, over all writers."""

    def acked(self, writer: bytes, durable_seq: int) -> None:
        """Writes the line, then counts."""
        super().acked(writer, durable_seq)
        before = self._durable.get(writer, 0)
        if durable_seq > before:
            self._durable[writer] = durable_seq
            self.settled += durable_seq - before


class Rehearsal:
    """One run. `run` does everything; `during_sessions` lets a test strike while answers are on their way."""

    def __init__(
        self,
        options: RehearsalOptions,
        on_phase: Callable[[str], None],
        on_progress: Callable[[Attendance, int], None],
        on_trouble: Callable[[str], None],
        during_sessions: Callable[[Rehearsal], Awaitable[None]] | None = None,
    ) -> None:
        self._options = options
        self._on_phase = on_phase
        self._on_progress = on_progress
        self._on_trouble = on_trouble
        self._during_sessions = during_sessions
        self._started = 0.0
        self._phase: tuple[str, float] | None = None
        self.outcome = Outcome()
        self.services: Services | None = None
        self.deployment: Deployment | None = None
        self.ledger: CountingLedger | None = None
        self.answers_expected = 0

    async def run(self) -> Outcome:
        """Runs the campaign from the roster to the results.

        Raises:
            InputError: a file is wrong; nothing of it was taken.
            ConfigError: the directory is in use, or a service did not start.
        """
        options = self._options
        self._started = time.monotonic()
        self._begin("read")
        answers = await asyncio.to_thread(read_answers, options.files, options.names)
        refuse_used(options.out)
        with exclusive(options.out, "another rehearsal"):
            try:
                async with self._running() as office:
                    await watched(self._campaign(office, answers), self._services().failed)
            except InputError:
                # The vault refused a file: with nothing left of this run, the same command works once it is corrected.
                await asyncio.to_thread(empty, options.out)
                raise
        self._end_phase()
        self.outcome.seconds = round(time.monotonic() - self._started, 3)
        return self.outcome

    def pid(self, service: str) -> int:
        """The process id of a running service."""
        return self._services().pid(service)

    def _services(self) -> Services:
        if self.services is None:
            raise StateError("the services of this rehearsal do not run now")
        return self.services

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[Office]:
        """Services up; on the way out all of them stopped, whatever happened."""
        options = self._options
        self._begin("start")
        socket_dir = make_socket_dir(options.out.resolve())
        addresses = Addresses(free_address(), free_address(), free_address())
        self.deployment = deployment = Deployment(options.out.resolve(), options.campaign_id, addresses, socket_dir)
        self.services = services = Services(deployment.root / "logs", self._on_trouble, options.modules)
        try:
            deployment.prepare(workers=options.workers, max_memory_mb=MAX_MEMORY_MB)
            async with office_of(deployment) as office:
                await start_services(services, deployment, office)
                yield office
                self._begin("stop")
        finally:
            await asyncio.shield(services.stop())
            shutil.rmtree(socket_dir, ignore_errors=True)

    async def _campaign(self, office: Office, answers: Mapping[str, list[tuple[str, str]]]) -> None:
        self._begin("enrol")
        codes = await enrol(office, self._options.files, self._options.names)
        self._begin("open")
        await open_campaign(office)
        self._begin("answer")
        key = Secret(os.urandom(LEDGER_KEY_BYTES))
        write_secret_file(self._options.out / "ledger.key", key.reveal())
        attendance = await self._answer(answers, codes, key)
        self._begin("close")
        await office.close_window()
        closed = await office.until(lambda found: found.state == DRAINED, self._options.drain_seconds)
        self._begin("settle")
        counts = await office.settle()
        self._begin("compare")
        verdict = await office.verify(self._options.out / "ledger.txt", key)
        await self._judge(office, attendance, closed, counts, verdict)

    async def _answer(
        self, answers: Mapping[str, list[tuple[str, str]]], codes: Mapping[str, str], key: Secret
    ) -> Attendance:
        options = self._options
        if self.deployment is None:
            raise StateError("this rehearsal has no platform yet")
        self.answers_expected = sum(map(len, answers.values()))
        self.ledger = ledger = CountingLedger(options.out / "ledger.txt", options.campaign_id, key)
        classroom = Classroom(
            client_options(self.deployment),
            read_public_part(options.files.instrument, options.names["instrument"]),
            ledger,
            options.mishaps,
            options.pace_ms,
            options.seed,
            lambda attendance: self._on_progress(attendance, len(answers)),
        )
        try:
            async with asyncio.TaskGroup() as group:
                playing = group.create_task(classroom.play(answers, codes))
                if self._during_sessions is not None:
                    group.create_task(_shaped(self._during_sessions(self)))
        finally:
            ledger.close()
        return playing.result()

    async def _judge(
        self,
        office: Office,
        attendance: Attendance,
        closed: GetCampaignResponse,
        counts: CampaignCounts,
        verdict: VerifyLedgerResponse,
    ) -> None:
        found = await office.find()
        outcome = self.outcome
        outcome.pupils = found.counts.pupils
        outcome.sessions = attendance.opened
        outcome.concurrent = attendance.peak
        outcome.second_devices = attendance.devices_changed
        outcome.failures = sorted(set(attendance.failures))
        outcome.answers_sent = verdict.sent
        outcome.acknowledged = verdict.acknowledged
        outcome.rejected = verdict.rejected
        outcome.in_vault = verdict.in_vault
        outcome.lost = verdict.lost
        outcome.duplicated = verdict.duplicated
        outcome.unexpected = verdict.unexpected
        outcome.recovered = verdict.recovered
        outcome.quarantined = counts.quarantined + found.counts.quarantined_blocks
        outcome.spool_left = found.counts.spool_left
        outcome.digests_agree = counts.digests_agree
        outcome.digests_differ = counts.digests_differ
        outcome.state = found.state
        outcome.waiting_for = list(closed.waiting_for) if found.state != DRAINED else []
        if found.state == DRAINED:
            path = self._options.out / "results.csv"
            write_private(path, await office.export(ExportKind.EXPORT_KIND_RESULTS, PURPOSE))
            outcome.results = str(path)

    def _begin(self, phase: str) -> None:
        self._end_phase()
        self._phase = phase, time.monotonic()
        self._on_phase(phase)

    def _end_phase(self) -> None:
        if self._phase is not None:
            name, began = self._phase
            self.outcome.phases[name] = round(time.monotonic() - began, 3)
        self._phase = None


def office_of(deployment: Deployment) -> Office:
    """The office's side of a deployment."""
    return Office(deployment.profile("campaign-admin"), deployment.profile("reporter"))


def client_options(deployment: Deployment) -> ClientOptions:
    """What an application is given to reach a deployment."""
    return ClientOptions(
        address=deployment.addresses.pupils,
        campaign_id=deployment.campaign_id,
        authority=deployment.authority_file.read_bytes(),
        backoff_max_ms=LOCAL_BACKOFF_MS,
    )


async def start_services(services: Services, deployment: Deployment, office: Office) -> None:
    """The store and the vault first; relay and node need the campaign's signing key, so it is made between."""
    await asyncio.gather(
        services.start("spool", deployment.config("spool"), deployment.socket_file),
        services.start("vault", deployment.config("vault")),
    )
    await office.create("Rehearsal", deployment.authority_file.read_text())
    await asyncio.gather(
        services.start("relay", deployment.config("relay")),
        services.start("server", deployment.config("server")),
    )


async def enrol(office: Office, files: CampaignFiles, names: Mapping[str, str]) -> dict[str, str]:
    """Roster and instrument in, codes out: pupil id → code. Harmless when repeated with the same files."""
    await office.import_roster(files.roster, names["roster"])
    await office.put_instrument(files.instrument, names["instrument"])
    await office.issue_codes()
    return parse_codes(await office.export(ExportKind.EXPORT_KIND_CODES, PURPOSE), "codes.csv")


async def open_campaign(office: Office) -> None:
    """Publishes, waits until the platform is ready, opens, and waits until every shard lets pupils in.

    Raises:
        StateError: something is still missing after a minute; the message says what.
    """
    await office.publish()
    ready = await office.until(lambda found: found.state in ("READY", "OPEN"), READY_SECONDS)
    if ready.state not in ("READY", "OPEN"):
        raise StateError(f"the campaign did not become ready: {'; '.join(ready.waiting_for)}")
    await office.open_window()
    opened = await office.until(lambda found: not found.waiting_for, READY_SECONDS)
    if opened.waiting_for:
        raise StateError(f"the window did not open everywhere: {'; '.join(opened.waiting_for)}")


async def watched(work: Awaitable[None], failed: asyncio.Future[str]) -> None:
    """Does the work, unless a service fails for good meanwhile."""
    task = asyncio.ensure_future(work)
    waits: set[asyncio.Future[Any]] = {task, failed}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ConfigError(failed.result())
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def refuse_used(out: Path) -> None:
    """Raises ConfigError when `out` holds something: a rehearsal never mixes with an earlier one."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a directory; name a new one")
    if out.exists() and any(entry.name != "lock" for entry in out.iterdir()):
        raise ConfigError(f"{out} is not empty; name a new directory, or remove this one")


def empty(directory: Path) -> None:
    """Removes all that a directory holds, but for the lock that is held on it."""
    for entry in directory.iterdir():
        if entry.name != "lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner may read: it leads to persons."""
    path.touch(mode=0o600)
    path.write_bytes(content)


async def _shaped(work: Awaitable[None]) -> None:
    await work

"""The clients of a benchmark, one process for every server alike: `python -m bench.generator`, a job on stdin.

Raw grpc.aio streams and messages serialised beforehand, so that this side costs as little as it can.
Each stream keeps a fixed number of answers un-acknowledged and sends the next when an ack frees room:
the server is always busy, and no queue grows. The process reads the CPU clocks of the servers itself,
in the same moment in which it looks at what is acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import uvloop

from bench.machine import cpu_seconds, rss_bytes
from pli.ingest.v1.ingest_pb2 import Answer, Answers, Choices, Open, SubmitRequest, SubmitResponse
from pli.process import die_with_parent

METHOD = "/pli.ingest.v1.IngestService/Submit"
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
OPENINGS_AT_ONCE = 64
SETTLE_SECONDS = 2.0
"""Between the last opening and a look at memory: what the handshakes needed is given back by then."""

GIVE_UP_SECONDS = 60.0
"""A server that acknowledges nothing for so long is broken."""


@dataclass(frozen=True, slots=True, repr=False)
class Job:
    """What to do. `watched` maps a name to the process ids whose CPU time belongs to it."""

    address: str
    campaign_id: str
    codes: list[str]
    choices: list[tuple[str, str]]
    """(item id, option) of answers that the instrument takes."""
    watched: dict[str, list[int]]
    authority_pem: str = ""
    """With it TLS, without it none."""
    connections: int = 0
    """Shared by the streams; 0: one for each."""
    window: int = 1
    seconds: float = 0.0
    warm_up_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """What a run under load came to, over the measured seconds."""

    acknowledged: int
    acks: int
    """Messages that said so; fewer where an ack covers several answers."""
    seconds: float
    cpu_seconds: dict[str, float]
    sent: int
    """Over the whole run, warm-up and end included; all of it was acknowledged before the end."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of the processes under `server` in `Job.watched`, all sessions on connections of their own."""

    sessions: int
    before: int
    opened: int
    """All sessions open, nothing sent."""
    answered: int
    """After one answer of each, not yet finished."""


@dataclass(slots=True)
class Totals:
    """Counted by all streams together."""

    acknowledged: int = 0
    acks: int = 0
    sent: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


class Messages:
    """The answers that every stream sends, by seq, serialised once for all of them."""

    def __init__(self, choices: Sequence[tuple[str, str]]) -> None:
        self._choices = choices
        self._made: list[bytes] = [b""]

    def __getitem__(self, seq: int) -> bytes:
        while len(self._made) <= seq:
            self._made.append(self._message(len(self._made)))
        return self._made[seq]

    def _message(self, seq: int) -> bytes:
        item_id, option = self._choices[seq % len(self._choices)]
        answer = Answer(item_id=item_id, choices=Choices(options=[option]), opening=1, elapsed_ms=2_000 + seq)
        return SubmitRequest(answers=Answers(first_seq=seq, answers=[answer])).SerializeToString()


class Stream:
    """One session."""

    def __init__(self, channel: grpc.aio.Channel, campaign_id: str, code: str) -> None:
        self._call: Any = channel.stream_stream(METHOD)()
        self._open = Open(
            protocol_version=1, campaign_id=campaign_id, code=code, writer=os.urandom(16), token=os.urandom(16)
        )
        self.durable_seq = 0
        self.sent_seq = 0

    async def open(self) -> None:
        """Sends Open and waits for Opened."""
        await self._call.write(SubmitRequest(open=self._open).SerializeToString())
        response = await self._read()
        if not response.HasField("opened"):
            raise RuntimeError(f"not Opened but {response.WhichOneof('message')}")

    async def send(self, message: bytes) -> None:
        """Sends the next answer."""
        self.sent_seq += 1
        await self._call.write(message)

    async def acked(self) -> int:
        """Waits for the next ack; how many answers it covers."""
        response = await self._read()
        if not response.HasField("ack"):
            raise RuntimeError(f"not Ack but {response.WhichOneof('message')}: an answer of the benchmark is not valid")
        newly = response.ack.durable_seq - self.durable_seq
        self.durable_seq = response.ack.durable_seq
        return newly

    async def _read(self) -> SubmitResponse:
        raw = await self._call.read()
        if not isinstance(raw, bytes):
            raise RuntimeError(f"the server ended a stream: {await self._call.code()} {await self._call.details()}")
        return SubmitResponse.FromString(raw)

    async def end(self) -> None:
        """Says that nothing more comes."""
        await self._call.done_writing()

    async def keep_sending(self, messages: Messages, window: int, totals: Totals) -> None:
        """Keeps `window` answers un-acknowledged until told to stop; ends with all acknowledged."""
        stopping = totals.stopping
        while True:
            while not stopping.is_set() and self.sent_seq - self.durable_seq < window:
                await self.send(messages[self.sent_seq + 1])
            if self.sent_seq == self.durable_seq:
                break
            newly = await self.acked()
            totals.acknowledged += newly
            totals.acks += 1
        totals.sent += self.sent_seq
        await self.end()


class Clients:
    """All sessions of a job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        count = job.connections or len(job.codes)
        self._channels = [self._channel() for _ in range(count)]
        self.streams = [
            Stream(self._channels[index % count], job.campaign_id, code) for index, code in enumerate(job.codes)
        ]

    def _channel(self) -> grpc.aio.Channel:
        options = [OWN_CONNECTION]
        if not self._job.authority_pem:
            return grpc.aio.insecure_channel(self._job.address, options)
        credentials = grpc.ssl_channel_credentials(self._job.authority_pem.encode())
        return grpc.aio.secure_channel(self._job.address, credentials, options)

    async def open(self) -> None:
        """Opens all sessions, some at a time."""
        doors = asyncio.Semaphore(OPENINGS_AT_ONCE)

        async def enter(stream: Stream) -> None:
            async with doors:
                await stream.open()

        async with asyncio.TaskGroup() as group:
            for stream in self.streams:
                group.create_task(enter(stream))

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels))


async def run_load(job: Job) -> Run:
    """Opens, warms up, measures, and waits until everything sent is acknowledged."""
    clients, totals, messages = Clients(job), Totals(), Messages(job.choices)
    clock = time.monotonic  # the loop's own clock counts milliseconds
    async with asyncio.timeout(GIVE_UP_SECONDS + job.warm_up_seconds + job.seconds):
        await clients.open()
        async with asyncio.TaskGroup() as group:
            for stream in clients.streams:
                group.create_task(stream.keep_sending(messages, job.window, totals))
            await asyncio.sleep(job.warm_up_seconds)
            began, acknowledged, acks, cpu = clock(), totals.acknowledged, totals.acks, _cpu(job.watched)
            await asyncio.sleep(job.seconds)
            ended, acknowledged, acks = clock(), totals.acknowledged - acknowledged, totals.acks - acks
            spent = {name: seconds - cpu[name] for name, seconds in _cpu(job.watched).items()}
            totals.stopping.set()
        await clients.close()
    return Run(acknowledged, acks, ended - began, spent, totals.sent)


async def run_sessions(job: Job) -> Memory:
    """Opens all sessions and looks at the server's memory; then once more after one answer of each."""
    messages = Messages(job.choices)
    async with asyncio.timeout(2 * GIVE_UP_SECONDS):
        before = _resident(job)
        clients = Clients(job)
        await clients.open()
        await asyncio.sleep(SETTLE_SECONDS)
        opened = _resident(job)
        for stream in clients.streams:
            await stream.send(messages[1])
        for stream in clients.streams:
            await stream.acked()
        await asyncio.sleep(SETTLE_SECONDS)
        answered = _resident(job)
        for stream in clients.streams:
            await stream.end()
        await clients.close()
    return Memory(len(clients.streams), before, opened, answered)


def _cpu(watched: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {name: sum(map(cpu_seconds, pids)) for name, pids in watched.items()}


def _resident(job: Job) -> int:
    return sum(map(rss_bytes, job.watched["server"]))


async def _main() -> None:
    job = Job(**json.loads(sys.stdin.read()))
    result = await (run_load(job) if job.seconds else run_sessions(job))
    print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    die_with_parent()
    uvloop.run(_main())

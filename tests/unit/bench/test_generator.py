"""The benchmark's clients against the echo, which acknowledges every message it reads."""

import os

from bench.generator import Job
from bench.processes import generate, serving


async def test_clients_count_what_was_acknowledged_and_leave_nothing_unacknowledged() -> None:
    async with serving("bench.echo_server") as (address, pid):
        job = Job(
            address,
            "bench",
            ["one", "two", "three"],
            [("item", "A")],
            {"server": [pid]},
            window=4,
            seconds=0.2,
        )
        run = await generate(job)
    assert run["acknowledged"] == run["acks"] > 0
    assert run["sent"] >= run["acknowledged"], "the end of the run counts too"
    assert run["cpu_seconds"].keys() == {"server"}


async def test_a_server_is_alone_on_its_core_while_it_runs() -> None:
    ours = os.sched_getaffinity(0)
    core = frozenset((min(ours),))
    async with serving("bench.echo_server", cores=core) as (_, pid):
        assert os.sched_getaffinity(pid) == core
        assert os.sched_getaffinity(0) == ours, "whatever is started now must not land on the server's core"

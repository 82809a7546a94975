"""The benchmark's clients against the echo, which acknowledges every message it reads."""

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

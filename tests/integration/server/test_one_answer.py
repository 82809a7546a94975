"""The straight path: an answer goes in, is acknowledged, and lies sealed in the spool."""

from __future__ import annotations

from tests.support.platform import Platform


async def test_an_answer_is_acknowledged_and_lies_sealed_in_the_spool(platform: Platform) -> None:
    async with platform.session(platform.codes[0]) as session:
        opened = await session.open()
        assert (opened.opening, opened.durable_seq, opened.read_only) == (1, 0, False)
        await session.choose("B")
        await session.acked()
        await session.finish()
        assert (await session.finished()).body
        assert await session.end() is None
    answer, finish = await platform.records_of(platform.codes[0])
    assert (answer.seq, answer.opening, list(answer.answer.choices.options)) == (1, 1, ["B"])
    assert finish.finish.count == 1

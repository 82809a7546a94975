"""Figures of a benchmark: medians, and ratios that are taken within a round."""

import pytest

from bench.figures import ECHO, NAIVE, OURS, Cost, Figure, order_of, summary
from pli.errors import StateError


def cost(server_us: float) -> Cost:
    return Cost.of(1_000, 500, 2.0, server_us * 1_000 / 1e6, 0.004)


def test_cost_is_cpu_time_per_acknowledged_answer() -> None:
    found = Cost.of(acknowledged=20_000, acks=10_000, seconds=2.0, server_seconds=1.0, store_seconds=0.1)
    assert found == Cost(server_us=50.0, store_us=5.0, busy=0.5, answers_per_second=10_000.0, answers_per_ack=2.0)


@pytest.mark.parametrize(("acknowledged", "acks"), [(0, 0), (0, 1)])
def test_a_run_without_answers_is_no_figure(acknowledged: int, acks: int) -> None:
    with pytest.raises(StateError, match="nothing was acknowledged"):
        Cost.of(acknowledged, acks, 5.0, 1.0, 1.0)


def test_a_figure_is_the_median_between_its_extremes() -> None:
    assert Figure.of([3.0, 1.0, 2.004, 9.0, 2.0]) == Figure(1.0, 2.0, 9.0)
    assert Figure.of([1.0, 2.0]) == Figure(1.0, 1.5, 2.0)


def test_ratios_compare_runs_of_one_round_only() -> None:
    # The machine was twice as slow in the second round. Medians of ours and of echo give 1.5.
    rounds = [
        {OURS: cost(60), ECHO: cost(50), NAIVE: cost(120)},
        {OURS: cost(120), ECHO: cost(100), NAIVE: cost(240)},
        {OURS: cost(120), ECHO: cost(50), NAIVE: cost(480)},
    ]
    figures = summary(rounds)
    assert figures["ratio_to_echo"] == Figure(1.2, 1.2, 2.4)
    assert figures["ratio_to_naive"] == Figure(0.25, 0.5, 0.5)
    assert figures["ours_us"] == Figure(60.0, 120.0, 120.0)
    assert figures["redis_us"] == Figure(4.0, 4.0, 4.0)


def test_each_server_is_at_each_place_of_a_round_equally_often() -> None:
    orders = [order_of(number) for number in range(6)]
    for place in range(3):
        assert sorted(order[place] for order in orders) == sorted(2 * [OURS, ECHO, NAIVE])

"""The command line of the ingest benchmark, and what its JSON must hold."""

import pytest

from bench.figures import ECHO, NAIVE, OURS, Cost, summary
from bench.ingest import Options, Result, parse, printed
from bench.machine import Cores
from pli.errors import ConfigError


def result() -> Result:
    costs = {name: Cost(50.0, 5.0, 0.9, 10_000.0, 1.0) for name in (OURS, ECHO, NAIVE)}
    machine = dict.fromkeys(
        ("processor", "cores", "python", "grpcio", "fsync_p50_ms", "fsync_p99_ms", "load_average"), 1
    )
    return Result(summary([costs]), {"opened": 80.0, "answered": 82.5}, 7, 7, machine, Options())


def test_without_arguments_everything_has_its_usual_value() -> None:
    assert parse([]) == Options()


def test_arguments_as_the_command_passes_them() -> None:
    given = ["--rounds", "3", "--seconds", "0.5", "--streams", "20", "--json"]
    assert parse(given) == Options(rounds=3, seconds=0.5, streams=20, as_json=True)


@pytest.mark.parametrize(
    "wrong",
    [["--rounds", "0"], ["--streams", "-1"], ["--seconds", "0"], ["--window", "0"], ["--sessions", "x"], ["--fast"]],
)
def test_a_wrong_argument_is_refused_before_anything_starts(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_status:
        parse(wrong)
    assert exit_status.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_json_has_the_medians_at_the_top() -> None:
    top = result().as_json()
    wanted = {"ratio_to_echo", "ratio_to_naive", "ours_us", "echo_us", "naive_us", "redis_us", "rss_per_session_kb"}
    assert wanted <= top.keys()
    assert top["rss_per_session_kb"] == 82.5, "the greater of the two states"
    assert top["spread"]["ours_us"] == {"min": 50.0, "median": 50.0, "max": 50.0}


def test_text_names_every_figure_with_its_spread() -> None:
    text = printed(result())
    assert all(name in text for name in result().figures)


def test_the_server_has_a_core_that_nothing_else_uses() -> None:
    assert Cores.of({3, 1, 2}) == Cores(frozenset({1}), frozenset({2, 3}))
    with pytest.raises(ConfigError, match="two cores"):
        Cores.of({5})

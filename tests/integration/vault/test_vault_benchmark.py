"""The vault's benchmark measures what it says: small runs, no figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys

from bench.vault import Load, deposits, settlement

SMALL = Load(answers=640, items=8, block_records=20, records_per_session=2, epochs=3)


def test_deposits_count_what_landed() -> None:
    rate = deposits(SMALL)
    assert rate.answers == 640
    assert rate.per_cpu_second == round(640 / rate.cpu_seconds)


def test_settlement_and_scoring_are_measured_apart_and_add_up() -> None:
    rate = settlement(SMALL)
    assert rate.settlement.answers == rate.scoring.answers == rate.settlement_and_scoring.answers == 640
    assert rate.settlement_and_scoring.cpu_seconds == rate.settlement.cpu_seconds + rate.scoring.cpu_seconds


def test_it_prints_one_object() -> None:
    command = [
        sys.executable,
        "-m",
        "bench.vault",
        "--json",
        "--runs",
        "1",
        "--answers",
        "320",
        "--block-records",
        "50",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    figures = json.loads(done.stdout)
    assert figures["load"]["answers"] == 320
    assert figures["deposits"]["per_cpu_second"] > 0
    assert figures["settlement"]["per_wall_second"] > 0

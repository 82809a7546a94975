"""Simulated campaigns: what the vault and the node take without a word."""

from __future__ import annotations

from datetime import date
from random import Random

import pytest

from cli.simulation import CampaignFiles, read_answers, simulate
from pli.errors import InputError
from vault.instrument import parse_instrument
from vault.roster import parse_roster

NAMES = {"roster": "roster.csv", "instrument": "instrument.toml", "responses": "responses.csv"}


def test_simulated_files_are_clean_for_every_reader() -> None:
    files = simulate(250, Random(7))
    roster = parse_roster([files.roster], "roster.csv", date(2026, 9, 1))
    assert (len(roster.pupils), len(roster.classes), len(roster.schools)) == (250, 10, 3)
    answers = read_answers(files, NAMES)
    assert [pupil.pupil_id for pupil in roster.pupils] == list(answers)
    assert parse_instrument(files.instrument, "instrument.toml").max_score > 0


def test_the_same_seed_simulates_the_same_pupils() -> None:
    assert simulate(30, Random(1)).responses == simulate(30, Random(1)).responses
    assert simulate(30, Random(1)).responses != simulate(30, Random(2)).responses


def test_answers_of_a_pupil_who_is_not_in_the_roster_are_refused_with_their_line() -> None:
    files = simulate(2, Random(1))
    header = files.responses.split(b"\r\n")[0]
    strange = CampaignFiles(files.roster, files.instrument, header + b"\r\nNOBODY" + b"," * 16 + b"\r\n")
    with pytest.raises(InputError, match=r"responses\.csv, line 2, column pupil_id"):
        read_answers(strange, NAMES)


def test_a_roster_in_utf_16_is_refused_before_anything_starts() -> None:
    files = simulate(2, Random(1))
    with pytest.raises(InputError, match="UTF-16"):
        read_answers(CampaignFiles("pupil_id\nP1\n".encode("utf-16"), files.instrument, files.responses), NAMES)

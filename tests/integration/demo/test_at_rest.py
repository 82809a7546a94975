"""After a whole campaign no file of the platform holds an answer, a code or a name in clear; nor the vault's."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.office import Office
from cli.rehearsal import Rehearsal
from cli.simulation import CampaignFiles
from pli.codes import parse_code
from pli.responses import parse_codes
from pli.vault.v1.export_pb2 import ExportKind
from tests.integration.demo.rehearsals import rehearse

MARKERS = ("Zyrq", "Quixotl", "Vwxkollège", "Jmpfklasse")
ANSWERS = ("xylokarpt", "BRMBL", "4711.8472")
PUBLIC = "BRMBL"
"""An option stands in the instrument's public part, which the platform has in clear; given answers do not."""

INSTRUMENT = b"""
id = "canary"
title = "Canary"
version = "1"
[[item]]
id = "t-1"
domain = "d"
type = "text"
key = "xylokarpt"
[[item]]
id = "c-1"
domain = "d"
type = "choice"
options = ["BRMBL", "other"]
key = "BRMBL"
[[item]]
id = "n-1"
domain = "d"
type = "number"
key = 4711.8472
"""


def canary_files(pupils: int) -> CampaignFiles:
    header = "school_id,school_name,class_id,class_name,pupil_id,family_name,given_name,birth_date,sex\n"
    rows = (
        f"S1,{MARKERS[2]},C1,{MARKERS[3]},PUPIL{number:05},{MARKERS[0]}{number},{MARKERS[1]},2015-01-02,F\n"
        for number in range(pupils)
    )
    answers = (f"PUPIL{number:05},{','.join(ANSWERS)}\n" for number in range(pupils))
    return CampaignFiles(
        (header + "".join(rows)).encode(),
        INSTRUMENT,
        ("pupil_id,t-1,c-1,n-1\n" + "".join(answers)).encode(),
    )


def spellings(text: str) -> Iterator[bytes]:
    """How a text may stand in a file: as it is, in UTF-16, in hex, in base64 at any offset."""
    raw = text.encode()
    yield raw
    yield text.encode("utf-16-le")
    yield raw.hex().encode()
    for offset in range(3):
        # What a base64 of surrounding bytes would show of it, without the ends that depend on them.
        yield base64.b64encode(b"\0" * offset + raw)[4 if offset else 0 : -4]


def found_in(root: Path, texts: list[str], skipped: set[str]) -> list[tuple[str, str]]:
    hits = []
    for path in root.rglob("*"):
        if path.is_file() and str(path.relative_to(root)) not in skipped:
            content = path.read_bytes()
            hits += [
                (str(path.relative_to(root)), text)
                for text in texts
                for spelling in spellings(text)
                if len(spelling) >= 5 and spelling in content
            ]
    return hits


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*MARKERS, *(answer for answer in ANSWERS if answer != PUBLIC)]


async def test_no_file_of_a_campaign_holds_an_answer_a_code_or_a_name(tmp_path: Path, texts: list[str]) -> None:
    codes: list[str] = []

    async def note_codes(rehearsal: Rehearsal) -> None:
        if rehearsal.deployment is None:
            raise AssertionError("a rehearsal without a deployment")
        profile = rehearsal.deployment.profile
        async with Office(profile("campaign-admin"), profile("reporter")) as office:
            exported = await office.export(ExportKind.EXPORT_KIND_CODES, "canary sweep")
        for code in parse_codes(exported, "codes.csv").values():
            codes.extend((parse_code(code).reveal(), parse_code(code).printed()))

    out = tmp_path / "out"
    outcome = await rehearse(out, files=canary_files(12), pace_ms=50, during_sessions=note_codes)
    assert outcome.is_good
    assert len(codes) == 24
    assert b"PLIB\x01" in b"".join(path.read_bytes() for path in (out / "spool").rglob("*") if path.is_file()), (
        "the sweep must have seen blocks"
    )
    # results.csv is what the office asked for, with pupil ids and scores; it is written for its owner alone.
    assert found_in(out, [*texts, *codes, "PUPIL00003"], skipped={"results.csv"}) == []


def test_the_sweep_finds_what_is_there(tmp_path: Path, texts: list[str]) -> None:
    (tmp_path / "deep").mkdir()
    for index, spelling in enumerate(spellings(MARKERS[2])):
        (tmp_path / "deep" / f"{index}.log").write_bytes(b"before" + spelling + b"after")
    assert len({name for name, _ in found_in(tmp_path, texts, set())}) == 6

"""Simulated pupils for a campaign without real input: a roster, an instrument, and what each would answer.

Every pupil has an ability and every item a difficulty; the chance of a right answer follows from their
difference (Rasch model). Wrong answers are drawn from what the item offers, so they are as valid.
"""

from __future__ import annotations

import csv
import io
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from random import Random
from typing import Any

from pli.csv_input import CsvRows
from pli.faults import FaultList
from pli.instrument import read_public_part
from pli.responses import parse_responses

CLASS_SIZE = 25
CLASSES_PER_SCHOOL = 4
SKIPPED_SHARE = 0.04
"""Of all answers, as in the real data sets pli is tested with: some are left out."""

MAX_PUPILS = 20_000
"""More sessions than one process may have descriptors for; load campaigns use several processes."""

_FAMILY_NAMES = (
    "Martin", "Bernard", "Dubois", "Durand", "Leroy", "Moreau", "Girard", "Lefèvre", "N'Diaye", "Nguyễn",
    "O’Brien", "García", "Öztürk", "Haddad", "Kowalski", "Le Goff", "d'Artois", "Traoré", "Benali", "Rossi",
)  # fmt: skip
_GIVEN_NAMES = (
    "Léa", "Noé", "Zoé", "Adam", "Inès", "Malo", "Jade", "Sacha", "Lina", "Hugo", "Maëlle", "Yanis", "Anh",
    "Chloé", "Naïm", "Élise", "Gaël", "Awa", "Théo", "Ambre",
)  # fmt: skip
_WRONG_TEXTS = ("je ne sais pas", "l'hiver", "fusion", "le soleil")
_HEADER = (
    "school_id", "school_name", "class_id", "class_name", "pupil_id", "family_name", "given_name",
    "birth_date", "sex",
)  # fmt: skip


@dataclass(frozen=True, slots=True, repr=False)
class CampaignFiles:
    """The three files of a campaign, as people hand them in."""

    roster: bytes
    instrument: bytes
    responses: bytes


def simulate(pupils: int, random: Random) -> CampaignFiles:
    """Files of a campaign of so many pupils; the same random state gives the same files."""
    instrument = files("cli").joinpath("simulation.toml").read_bytes()
    items: list[dict[str, Any]] = tomllib.loads(instrument.decode())["item"]
    roster, responses = io.StringIO(), io.StringIO()
    write_pupil, write_answers = csv.writer(roster).writerow, csv.writer(responses).writerow
    write_pupil(_HEADER)
    write_answers(["pupil_id", *(item["id"] for item in items)])
    difficulties = [random.gauss(-0.3, 0.9) for _ in items]
    for number in range(pupils):
        pupil_id = f"P{number + 1:06}"
        write_pupil(_pupil(number, pupil_id, random))
        ability = random.gauss(0.0, 1.0)
        cells = (
            _cell(item, ability - difficulty, random) for item, difficulty in zip(items, difficulties, strict=True)
        )
        write_answers([pupil_id, *cells])
    return CampaignFiles(roster.getvalue().encode(), instrument, responses.getvalue().encode())


def read_answers(campaign: CampaignFiles, names: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Per pupil, (item id, cell) of what they answer. `names` are the files' names for messages.

    Raises:
        InputError: a file is wrong, with the place of every fault.
    """
    public = read_public_part(campaign.instrument, names["instrument"])
    # The vault judges the roster; here its ids are needed, and a file that is no roster at all shows at once.
    faults = FaultList(names["roster"])
    rows = CsvRows([campaign.roster], faults)
    column = rows.columns(_HEADER)[_HEADER.index("pupil_id")]
    known = {row[column] for _, row in rows}
    faults.raise_if_any()
    responses = parse_responses(campaign.responses, names["responses"], public, known)
    if not responses:
        faults = FaultList(names["responses"])
        faults.add(0, "", "", "there is no pupil in the file: a campaign without a session would prove nothing")
        faults.refuse()
    return responses


def _pupil(number: int, pupil_id: str, random: Random) -> list[str]:
    class_number, school_number = number // CLASS_SIZE, number // (CLASS_SIZE * CLASSES_PER_SCHOOL)
    return [
        f"S{school_number + 1:04}",
        f"Collège n° {school_number + 1}",
        f"C{class_number + 1:05}",
        f"6e {'ABCD'[class_number % CLASSES_PER_SCHOOL]}",
        pupil_id,
        random.choice(_FAMILY_NAMES),
        random.choice(_GIVEN_NAMES),
        f"{random.choice((2014, 2015))}-{random.randint(1, 12):02}-{random.randint(1, 28):02}",
        random.choice("FM"),
    ]


def _cell(item: Mapping[str, Any], advantage: float, random: Random) -> str:
    if random.random() < SKIPPED_SHARE:
        return ""
    if random.random() < 1 / (1 + math.exp(-advantage)):
        return _right(item, random)
    match item["type"]:
        case "choice":
            return str(random.choice(item["options"]))
        case "choices":
            chosen = random.sample(item["options"], random.randint(1, len(item["options"])))
            return ";".join(sorted(chosen))
        case "number":
            return str(random.randint(0, 40))
        case _:
            return random.choice(_WRONG_TEXTS)


def _right(item: Mapping[str, Any], random: Random) -> str:
    if "scores" in item:
        return str(max(item["scores"], key=item["scores"].__getitem__))
    key = item["key"]
    if item["type"] == "choices":
        return ";".join(key)
    return str(random.choice(key) if isinstance(key, list) else key)

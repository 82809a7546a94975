"""Results: every script scored, and stored sealed beside the version that it was scored from.

A late answer makes a new version of its script, and the result again; every other result is left
alone. (The instrument does not change once a campaign is published.) Scoring goes through the scripts
in portions, each read, scored and stored by itself: one that was cut off goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Select, and_, select, text

from vault.instrument_store import current_instrument
from vault.keyring import AnswerKeys, KeyRing
from vault.scoring import DomainScore, Result, Scorer
from vault.scripts import final_answers, split
from vault.store.database import Database
from vault.store.landing_tables import RESULTS, SCRIPTS

RESULTS_AT_ONCE = 1_000
"""Scripts (some kilobytes each) that are scored, and results that are read, at one time."""

_PUT_RESULTS = text(
    "INSERT INTO results (campaign_id, pseudonym, script_version, sealed) "
    "VALUES (:campaign_id, :pseudonym, :script_version, :sealed) "
    "ON CONFLICT (campaign_id, pseudonym) DO UPDATE SET script_version = excluded.script_version, "
    "sealed = excluded.sealed"
)


async def score_due(database: Database, keyring: KeyRing, campaign_id: str) -> None:
    """Scores every script that has no result, or one of another version.

    Raises:
        VaultLocked: the answers of this campaign are locked, or were locked meanwhile.
        StateError: there are scripts to score, and no instrument.
        IntegrityError: a stored script was altered.
    """
    pseudonyms = await database.read(lambda connection: _due(connection, campaign_id, b""))
    if not pseudonyms:
        return
    keys = keyring.answers(campaign_id)
    scorer = Scorer(await database.read(lambda connection: current_instrument(connection, keys)))
    while pseudonyms:
        pseudonyms = await _score_portion(database, keyring.answers(campaign_id), scorer, pseudonyms)


def is_scored(connection: Connection, campaign_id: str) -> bool:
    """Whether every script has the result of its last version."""
    return connection.execute(_due_query(campaign_id, b"").limit(1)).first() is None


def load_results(connection: Connection, keys: AnswerKeys, pseudonyms: Sequence[bytes]) -> dict[bytes, Result]:
    """The results of these pseudonyms (at most RESULTS_AT_ONCE), of those that have a script.

    Raises:
        IntegrityError: a stored result was altered.
    """
    results = RESULTS.c
    rows = connection.execute(
        select(results.pseudonym, results.sealed).where(
            results.campaign_id == keys.campaign_id, results.pseudonym.in_(pseudonyms)
        )
    )
    return {pseudonym: _read(keys.rows.open(RESULTS.name, pseudonym, sealed)) for pseudonym, sealed in rows}


async def _score_portion(
    database: Database, keys: AnswerKeys, scorer: Scorer, pseudonyms: Sequence[bytes]
) -> Sequence[bytes]:
    """Scores these scripts and stores their results; returns what is due next."""

    def score(connection: Connection) -> tuple[list[dict[str, Any]], Sequence[bytes]]:
        return _score(connection, keys, scorer, pseudonyms), _due(connection, keys.campaign_id, pseudonyms[-1])

    rows, next_ones = await database.read(score)
    await database.write(lambda connection: connection.execute(_PUT_RESULTS, rows))
    return next_ones


def _score(
    connection: Connection, keys: AnswerKeys, scorer: Scorer, pseudonyms: Sequence[bytes]
) -> list[dict[str, Any]]:
    scripts, cipher = SCRIPTS.c, keys.rows
    found = connection.execute(
        select(scripts.pseudonym, scripts.version, scripts.sealed).where(
            scripts.campaign_id == keys.campaign_id, scripts.pseudonym.in_(pseudonyms)
        )
    )
    rows = []
    for pseudonym, version, sealed in found:
        final = final_answers(split(cipher.open(SCRIPTS.name, pseudonym, sealed)))
        content = _written(scorer.score(final.answers, final.presence))
        rows.append(
            {
                "campaign_id": keys.campaign_id,
                "pseudonym": pseudonym,
                "script_version": version,
                "sealed": cipher.seal(RESULTS.name, pseudonym, content),
            }
        )
    return rows


def _due(connection: Connection, campaign_id: str, after: bytes) -> Sequence[bytes]:
    return connection.execute(_due_query(campaign_id, after).limit(RESULTS_AT_ONCE)).scalars().all()


def _due_query(campaign_id: str, after: bytes) -> Select[bytes]:
    # Both sides are answered from indexes alone: no script is read to see that it is not due.
    scripts, results = SCRIPTS.c, RESULTS.c
    of_this_version = and_(
        results.campaign_id == scripts.campaign_id,
        results.pseudonym == scripts.pseudonym,
        results.script_version == scripts.version,
    )
    return (
        select(scripts.pseudonym)
        .select_from(SCRIPTS)
        .outerjoin(RESULTS, of_this_version)
        .where(scripts.campaign_id == campaign_id, scripts.pseudonym > after, results.pseudonym.is_(None))
        .order_by(scripts.pseudonym)
    )


def _written(result: Result) -> bytes:
    """A result as it is sealed: JSON, numbers as decimal texts, null where there is no score."""
    content = {
        "scores": [_text(score) for score in result.scores],
        "total": _text(result.total),
        "max_score": str(result.max_score),
        "domains": [[part.domain, _text(part.score), str(part.max_score)] for part in result.domains],
        "group": result.group,
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _read(content: bytes) -> Result:
    stored = json.loads(content)
    return Result(
        scores=tuple([_number(score) for score in stored["scores"]]),
        total=_number(stored["total"]),
        max_score=Decimal(stored["max_score"]),
        domains=tuple(
            DomainScore(domain, _number(score), Decimal(max_score)) for domain, score, max_score in stored["domains"]
        ),
        group=stored["group"],
    )


def _text(number: Decimal | None) -> str | None:
    return None if number is None else str(number)


def _number(written: str | None) -> Decimal | None:
    return None if written is None else Decimal(written)

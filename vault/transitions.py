"""Transitions between states: each written with its terms before it is carried out, closed afterwards.

What a crash left open is found here and carried on (vault/life_cycle.py). A campaign has at most one
open transition.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, update

from pli.errors import StateError
from pli.identity import Peer
from vault.states import State
from vault.store.campaign_tables import CAMPAIGNS, TRANSITIONS
from vault.windows import UNSCHEDULED, Window


@dataclass(frozen=True, slots=True)
class Terms:
    """All that carrying a step out needs: who wants it, the versions it makes, and its window.

    A version is 0 where the step gives no order or publishes no bundle.
    """

    actor: Peer
    bundle_version: int = 0
    window_version: int = 0
    window: Window = UNSCHEDULED

    def to_json(self) -> str:
        """What is stored."""
        return json.dumps(
            {
                "role": self.actor.role,
                "name": self.actor.name,
                "bundle_version": self.bundle_version,
                "window_version": self.window_version,
                "opens_at_ms": self.window.opens_at_ms,
                "closes_at_ms": self.window.closes_at_ms,
                "grace_ms": self.window.grace_ms,
            }
        )

    @classmethod
    def read(cls, stored: str) -> Terms:
        """What `to_json` wrote."""
        row = json.loads(stored)
        return cls(
            Peer(row["role"], row["name"]),
            row["bundle_version"],
            row["window_version"],
            Window(row["opens_at_ms"], row["closes_at_ms"], row["grace_ms"]),
        )


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of one campaign. Numbers are 1, 2, 3 … per campaign."""

    campaign_id: str
    number: int
    from_state: State
    to_state: State
    terms: Terms


def intend(
    connection: Connection, campaign_id: str, from_state: State, to_state: State, terms: Terms, now_ms: int
) -> Transition:
    """Writes the intent.

    Raises:
        StateError: another step of this campaign is not finished.
    """
    pending = open_transition(connection, campaign_id)
    if pending is not None:
        raise StateError(
            f"campaign {campaign_id} is on its way from {pending.from_state} to {pending.to_state}; "
            "wait until it has arrived: CampaignService.GetCampaign"
        )
    columns = TRANSITIONS.c
    last = connection.execute(
        select(func.coalesce(func.max(columns.number), 0)).where(columns.campaign_id == campaign_id)
    ).scalar_one()
    connection.execute(
        insert(TRANSITIONS),
        {
            "campaign_id": campaign_id,
            "number": last + 1,
            "from_state": from_state,
            "to_state": to_state,
            "terms": terms.to_json(),
            "intended_at_ms": now_ms,
            "done_at_ms": None,
        },
    )
    return Transition(campaign_id, last + 1, from_state, to_state, terms)


def open_transition(connection: Connection, campaign_id: str) -> Transition | None:
    """The step that was begun and is not finished."""
    columns = TRANSITIONS.c
    row = connection.execute(
        select(columns.number, columns.from_state, columns.to_state, columns.terms).where(
            columns.campaign_id == campaign_id, columns.done_at_ms.is_(None)
        )
    ).one_or_none()
    if row is None:
        return None
    return Transition(campaign_id, row.number, State(row.from_state), State(row.to_state), Terms.read(row.terms))


def finish(connection: Connection, transition: Transition, now_ms: int) -> None:
    """Writes the outcome: the campaign is in its new state."""
    columns = TRANSITIONS.c
    place = (columns.campaign_id == transition.campaign_id, columns.number == transition.number)
    connection.execute(update(TRANSITIONS).where(*place).values(done_at_ms=now_ms))
    connection.execute(
        update(CAMPAIGNS)
        .where(CAMPAIGNS.c.campaign_id == transition.campaign_id)
        .values(state=str(transition.to_state))
    )

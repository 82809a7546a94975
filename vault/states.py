"""The states of a campaign, in the only order they are reached (DESIGN 8)."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What `campaigns.state` holds. vault/life_cycle.py alone changes it."""

    DRAFT = "DRAFT"
    """Roster, instrument and codes are put together."""

    READY = "READY"
    """Published, and loaded by every shard of the platform."""

    OPEN = "OPEN"
    """Openings and commits are let in."""

    CLOSING = "CLOSING"
    """Only sessions that have started, until their grace has passed."""

    CLOSED = "CLOSED"
    """Every shard has flipped: nothing is let in any more, for ever."""

    DRAINED = "DRAINED"
    """All that the platform acknowledged is in the vault, as far as the vault can prove it."""

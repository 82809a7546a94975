"""What one worker needs to take sessions: made once bundle and pseudonym key are there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pli.instrument import AnswerRules
from pli.pseudonym import shard_of
from pli.secret import Secret
from pli.vault.v1.bundle_pb2 import Bundle
from server.backlog import Backlog
from server.committer import Committer
from server.opener import Opener
from server.session import Session


@dataclass(slots=True)
class IntakeCounts:
    """Counters of one worker since its start."""

    opened: int = 0
    refused: int = 0
    displaced: int = 0
    went_back: int = 0


@dataclass(slots=True, repr=False)
class Intake:
    """The campaign as this worker serves it. A newer bundle replaces `bundle` and `rules`, nothing else."""

    bundle: Bundle
    rules: AnswerRules
    pseudonym_key: Secret
    committers: list[Committer]
    openers: list[Opener]
    backlog: Backlog
    sessions: dict[bytes, set[Session]] = field(default_factory=dict)
    live: int = 0
    counts: IntakeCounts = field(default_factory=IntakeCounts)
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while the store is nearly full and while the worker drains: nothing is read, nothing is lost."""
    closes_at_ms: int = 0
    """By the spool's window; 0 when not scheduled."""

    def shard(self, pseudonym: bytes) -> int:
        """The shard of a pseudonym."""
        return shard_of(pseudonym, len(self.committers))

    def add(self, session: Session) -> list[tuple[Session, int]]:
        """Takes a live session in. Returns whom its arrival displaces, each with the opening that won.

        Streams may come here in another order than they were opened, so the newcomer may be displaced
        itself. Of two streams under one opening (a repeated token) the one that the spool answered last
        wins: the client has given up the other.
        """
        others = self.sessions.setdefault(session.pseudonym, set())
        rivals = [other for other in others if not session.seats or other.writer == session.writer]
        others.add(session)
        self.live += 1
        newest = max(((other.opening, other.arrival) for other in rivals), default=(0, 0))
        if newest > (session.opening, session.arrival):
            return [(session, newest[0])]
        return [(other, session.opening) for other in rivals]

    def supersede(self, pseudonym: bytes, opening: int, writer: bytes) -> list[Session]:
        """The live sessions that an opening on another worker displaces."""
        return [
            session
            for session in self.sessions.get(pseudonym, ())
            if session.opening < opening and (not session.seats or session.writer == writer)
        ]

    def remove(self, session: Session) -> None:
        """The session's stream has ended."""
        others = self.sessions.get(session.pseudonym)
        if others is not None and session in others:
            others.discard(session)
            self.live -= 1
            if not others:
                del self.sessions[session.pseudonym]

    def all_sessions(self) -> list[Session]:
        """Every live session."""
        return [session for sessions in self.sessions.values() for session in sessions]

    def __repr__(self) -> str:
        return f"Intake({self.bundle.campaign_id})"

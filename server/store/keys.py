"""Names of everything in the spool, under one hash tag per shard (DESIGN 7)."""

from __future__ import annotations

from dataclasses import dataclass, field

GROUP = "relays"
"""The consumer group of every shard's Redis stream."""


@dataclass(frozen=True)
class ShardKeys:
    """The keys of one shard of one campaign. All share the hash tag, so that one call may touch all."""

    campaign_id: str
    shard: int
    spool: str = field(init=False)
    epochs: str = field(init=False)
    headers: str = field(init=False)
    cursors: str = field(init=False)
    registry: str = field(init=False)
    window: str = field(init=False)
    marker: str = field(init=False)
    calls: str = field(init=False)
    bundle: str = field(init=False)
    loaded: str = field(init=False)
    enrolments: str = field(init=False)
    enrolled: str = field(init=False)
    status: str = field(init=False)
    superseded: str = field(init=False)

    def __post_init__(self) -> None:
        tag = f"{{{self.campaign_id}.{self.shard}}}"
        for name in (
            "spool", "epochs", "headers", "cursors", "registry", "window", "marker", "calls", "bundle", "loaded",
            "enrolments", "enrolled", "status", "superseded",
        ):  # fmt: skip
            object.__setattr__(self, name, f"{tag}:{name}")

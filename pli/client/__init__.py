"""The client SDK: `PupilSession` collects one pupil's answers and survives every disconnect.

docs/protocol.md says what it does on the wire, for those who write a client in another language.
"""

from pli.client.answers import AnswerRejected
from pli.client.config import ClientOptions, ClientPorts, ClientProfile
from pli.client.events import (
    ClosingTold,
    DrainTold,
    OverloadTold,
    RejectionTold,
    SessionEvent,
    SessionInterrupted,
    SessionObserver,
    SessionOpened,
    SpoolWentBack,
    SupersededTold,
)
from pli.client.queue import Settled
from pli.client.receipt import SessionReceipt
from pli.client.session import Given, PupilSession
from pli.client.stream import open_channel

__all__ = [
    "AnswerRejected",
    "ClientOptions",
    "ClientPorts",
    "ClientProfile",
    "ClosingTold",
    "DrainTold",
    "Given",
    "OverloadTold",
    "PupilSession",
    "RejectionTold",
    "SessionEvent",
    "SessionInterrupted",
    "SessionObserver",
    "SessionOpened",
    "SessionReceipt",
    "Settled",
    "SpoolWentBack",
    "SupersededTold",
    "open_channel",
]

"""The public face of the SDK, and where it keeps the bounds of its back-off."""

from __future__ import annotations

import subprocess
import sys

import pli.client
from pli.client.backoff import Backoff


def test_the_public_face_is_exactly_this() -> None:
    assert pli.client.__all__ == [
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
    assert all(hasattr(pli.client, name) for name in pli.client.__all__)


def test_waits_are_drawn_from_zero_to_a_bound_that_doubles_and_stays_at_its_maximum() -> None:
    draws = [0.0, 0.5, 0.999, 0.5, 0.5, 0.5]
    backoff = Backoff(0.5, 3.0, iter(draws).__next__)
    assert [backoff.next() for _ in range(5)] == [0.0, 0.5, 0.999 * 2, 1.5, 1.5]
    backoff.reset()
    assert backoff.next() == 0.25


def test_an_application_gets_nothing_of_the_services_with_it() -> None:
    # Client applications run where servers do not: pli.process needs Unix.
    loaded = "import sys, pli.client; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert "pli.client" in modules
    assert {"pli.process", "pli.rpc.server", "server", "vault", "cli"} & set(modules) == set()

"""A node whose workers run another module: what every faulty worker is started by."""

from __future__ import annotations

import server.main.node as node
from server.main.common import run_command


def run_with_worker(module: str) -> None:
    """Runs the supervisor, which starts `python -m module` for each worker."""
    node.WORKER_MODULE = module
    run_command(node.main)

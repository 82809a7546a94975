"""An ingest node: supervises its workers, one process per core, and restarts the one that dies.

It holds no session and speaks to no client. It draws the node's receiving key once and hands it to
the workers over a pipe, so that a worker that comes back needs no vault.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import structlog

from pli.config import load
from pli.hpke import PrivateKey
from pli.process import (
    bound_address,
    claim_port,
    configure_logging,
    exclusive,
    exit_with_reason,
    say_ready,
    stop_event,
)
from pli.tls import server_credentials
from server.config import ServerSettings
from server.identity import NodeIdentity
from server.main.common import ConfigFile, pinned_vault_key, run_command
from server.store.spool import connect

log = structlog.get_logger()

WORKER_MODULE = "server.main.worker"

RESTART_PAUSE_SECONDS = 0.5
"""A worker that dies at once must not eat the machine; half a second is short for its pupils."""

KILL_AFTER_SECONDS = 1.5
"""On top of a worker's own drain time."""


class Supervisor:
    """Keeps `workers` processes running until it is stopped."""

    def __init__(self, settings: ServerSettings, config: Path, handover: str) -> None:
        self._settings = settings
        self._config = config
        self._handover = handover
        self._workers: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = False
        self._listening: set[int] = set()
        self.all_listen = asyncio.Event()

    async def keep(self, index: int) -> None:
        """Runs worker `index`, again and again."""
        while not self._stopping:
            worker = await asyncio.create_subprocess_exec(
                sys.executable, "-m", WORKER_MODULE, "--config", str(self._config),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            self._workers[index] = worker
            if self._stopping:
                worker.terminate()
            await self._follow(index, worker)
            status = await worker.wait()
            if self._stopping:
                return
            log.error("worker_died", worker=index, status=status)
            await asyncio.sleep(RESTART_PAUSE_SECONDS)

    async def _follow(self, index: int, worker: asyncio.subprocess.Process) -> None:
        if worker.stdin is None or worker.stdout is None:
            raise RuntimeError("a worker was started without pipes")
        try:
            worker.stdin.write(self._handover.encode() + b"\n")
            await worker.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            log.error("worker_died", worker=index, why="it ended before it took its key")
        finally:
            worker.stdin.close()
        async for _line in worker.stdout:
            self._listening.add(index)
            if len(self._listening) == self._settings.workers:
                self.all_listen.set()

    async def stop(self) -> None:
        """SIGTERM for all, and SIGKILL for those that do not drain in time."""
        self._stopping = True
        running = [worker for worker in self._workers.values() if worker.returncode is None]
        for worker in running:
            worker.send_signal(signal.SIGTERM)
        waits = [asyncio.create_task(worker.wait()) for worker in running]
        if waits:
            _, late = await asyncio.wait(waits, timeout=self._settings.drain_seconds + KILL_AFTER_SECONDS)
            if late:
                for worker in running:
                    if worker.returncode is None:
                        log.error("worker_killed", pid=worker.pid, why="it did not drain in time")
                        worker.kill()
                await asyncio.wait(late)


async def serve(settings: ServerSettings, config: Path) -> None:
    """Runs until SIGTERM."""
    stop = stop_event()
    pupils, operations = claim_port(settings.listen), claim_port(settings.listen_operations)
    with pupils, operations:
        receiving_key = PrivateKey.generate()
        # Faults of configuration show here, once, instead of in every worker for ever.
        NodeIdentity.load(settings.tls, receiving_key)
        pinned_vault_key(settings.vault_signing_key_file)
        server_credentials(settings.tls, ask_for_certificate=True)
        await connect(settings.spool, connections=1).aclose()
        addresses = {"listen": bound_address(pupils), "listen_operations": bound_address(operations)}
        key = receiving_key.raw().reveal().hex()
        handover = json.dumps({"supervisor": os.getpid(), "receiving_key": key, **addresses})
        supervisor = Supervisor(settings, config, handover)
        keepers = [asyncio.create_task(supervisor.keep(index)) for index in range(settings.workers)]
        ready = asyncio.create_task(_say_ready(supervisor, addresses))
        try:
            await stop.wait()
        finally:
            ready.cancel()
            await supervisor.stop()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(ready, *keepers, return_exceptions=True)


async def _say_ready(supervisor: Supervisor, addresses: dict[str, str]) -> None:
    await supervisor.all_listen.wait()
    say_ready("server", **addresses)


def main(config: ConfigFile) -> None:
    """Entry point."""

    def run() -> None:
        configure_logging("server")
        settings = load(ServerSettings, config)
        with exclusive(settings.state_dir, "an ingest node"):
            asyncio.run(serve(settings, config))
        log.info("stopped", pid=os.getpid())

    exit_with_reason(run)


if __name__ == "__main__":
    run_command(main)

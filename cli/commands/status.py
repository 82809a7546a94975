"""`pli status`: the platform now, in words or as JSON."""

from __future__ import annotations

import asyncio
import json as json_module
from pathlib import Path
from typing import Annotated

import grpc
import typer
from google.protobuf.json_format import MessageToDict

from cli.profiles import read_profile
from pli.ops.v1.ops_pb2 import GetStatusRequest, GetStatusResponse, WindowState
from pli.ops.v1.ops_pb2_grpc import OperationsServiceStub
from pli.rpc.client import typed

TIMEOUT_SECONDS = 10.0


def status(
    profile: Annotated[Path, typer.Option(help="Profile of an operator or observer, as `pli up` writes one.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what the platform does: window, nodes, relays, spool, alarms. Exit 1 when there are alarms."""
    found = asyncio.run(_ask(profile))
    if json:
        facts = MessageToDict(found, always_print_fields_with_no_presence=True, preserving_proto_field_name=True)
        print(json_module.dumps(facts))
    else:
        print("\n".join(in_words(found)))
    if found.alarms:
        raise typer.Exit(1)


def in_words(status: GetStatusResponse) -> list[str]:
    """The status line by line."""
    window = WindowState.Name(status.window.state).removeprefix("WINDOW_STATE_").lower()
    lines = [f"campaign {status.campaign_id}: window {window}"]
    for node in status.nodes:
        state = "ready" if node.ready else f"not ready: {node.why}"
        lines.append(
            f"node {node.node_id} (pid {node.pid}): {state}; {node.sessions} sessions, "
            f"{node.acknowledged} acknowledged, {node.rejected} rejected, {node.refused} codes refused, "
            f"commit p50 {node.commit_p50_us / 1000:.1f} ms, {node.rss_bytes / 1e6:.0f} MB"
        )
    for relay in status.relays:
        state = "vault reachable" if relay.vault_reachable else f"vault not reachable: {relay.why}"
        lines.append(
            f"relay {relay.name}: {state}; {relay.deposited} blocks deposited, {relay.quarantined} quarantined"
        )
    for shard in status.shards:
        limit = f" of {shard.memory_limit_bytes / 1e6:.0f}" if shard.memory_limit_bytes else ""
        lines.append(
            f"shard {shard.shard}: {shard.blocks_waiting} blocks waiting, the oldest for "
            f"{shard.oldest_age_ms / 1000:.1f} s; {shard.registered} codes; {shard.memory_bytes / 1e6:.0f}{limit} MB"
        )
    lines += [f"ALARM {alarm.reason}: {alarm.message}" for alarm in status.alarms] or ["no alarms"]
    return lines


async def _ask(path: Path) -> GetStatusResponse:
    async with read_profile(path).channel() as channel:
        try:
            response: GetStatusResponse = await OperationsServiceStub(channel).GetStatus(
                GetStatusRequest(), timeout=TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise typed(error) from error
        return response

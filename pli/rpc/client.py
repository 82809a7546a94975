"""Calling another pli process: channels with a certificate, statuses as typed errors."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from pli.errors import ConfigError, PliError, from_status

DETAILS = "grpc-status-details-bin"
MAX_RECEIVE_BYTES = 8 * 1024 * 1024
"""A deposit's receipt or a part of the registry stays far below."""


def channel(
    target: str, credentials: grpc.ChannelCredentials, options: Sequence[tuple[str, int | str]] = ()
) -> grpc.aio.Channel:
    """A channel between processes, or of a person."""
    return grpc.aio.secure_channel(
        target, credentials, [("grpc.max_receive_message_length", MAX_RECEIVE_BYTES), *options]
    )


def typed(error: grpc.aio.AioRpcError) -> PliError:
    """The error that the other side raised; one of the family of its code when it sent no details."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS and isinstance(value, bytes):
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                # Whoever answered does not write statuses as pli does; what it meant is in the code.
                break
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return ConfigError(
            "the service at that address has no such call: the address or profile is of another service, "
            "or the service is of another version of pli"
        )
    number = error.code().value[0]
    return from_status(status_pb2.Status(code=number, message=error.details() or error.code().name.lower()))

"""One way to build a gRPC server: limits set on purpose, roles enforced, errors mapped, health served."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn, cast

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from pli.config import Section
from pli.errors import Forbidden, PliError, to_status
from pli.rpc.client import DETAILS
from pli.rpc.peer import peer_of
from pli.rpc.roles import check_table, may_call

MAX_SHORT_CHARACTERS = 300
"""Of a message in `grpc-message`, where each byte that is not ASCII takes three."""

Context = grpc.aio.ServicerContext[Any, Any]
log = structlog.get_logger()


class Limits(Section):
    """What one server takes from its peers."""

    max_receive_bytes: int = 256 * 1024
    """64 answers of 8 kB do not fit on purpose: an SDK sends them one by one."""

    max_concurrent_streams: int = 100
    """Per connection: a client app needs one; 100 lets a test share a channel, and bounds an attack."""

    max_metadata_bytes: int = 8 * 1024
    """No pli client sends metadata worth a kilobyte."""

    handshake_timeout_ms: int = 10_000
    """A TLS handshake that takes longer is not a pupil's."""

    keepalive_time_ms: int = 60_000
    """A peer that vanished without a word frees its session after about a minute and a half."""

    keepalive_timeout_ms: int = 20_000
    """Slow school lines answer a ping within that."""

    connection_idle_ms: int = 300_000
    """A connection without a call is closed after it; far above the slot that an overloaded node gives.
    There is no greatest age: a session lasts as long as the pupil needs."""

    min_ping_interval_ms: int = 10_000
    """A client that pings more often is cut off (HTTP/2 ping flood)."""

    def options(self, *, reuse_port: bool) -> list[tuple[str, int]]:
        """The gRPC channel arguments."""
        return [
            ("grpc.max_receive_message_length", self.max_receive_bytes),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", 2 * self.max_metadata_bytes),
            ("grpc.server_handshake_timeout_ms", self.handshake_timeout_ms),
            ("grpc.keepalive_time_ms", self.keepalive_time_ms),
            ("grpc.keepalive_timeout_ms", self.keepalive_timeout_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.max_connection_idle_ms", self.connection_idle_ms),
            ("grpc.http2.min_ping_interval_without_data_ms", self.min_ping_interval_ms),
            ("grpc.http2.max_ping_strikes", 4),
            ("grpc.so_reuseport", int(reuse_port)),
        ]


class Guard(grpc.aio.ServerInterceptor):
    """Lets a call through if the role table does, and turns every PliError into a rich status."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler of one call; an unknown method stays None, which gRPC answers itself."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            inner = getattr(handler, kind)
            if inner is not None:
                make = getattr(grpc, f"{kind}_rpc_method_handler")
                wrapped = _responding(method, inner) if kind.endswith("unary") else _streaming(method, inner)
                return make(wrapped, handler.request_deserializer, handler.response_serializer)
        return None


def _responding(method: str, inner: Callable[[Any, Context], Awaitable[Any]]) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:
        try:
            _authorise(method, context)
            return await inner(request, context)
        except PliError as error:
            await refuse(context, error)
        except (grpc.aio.AbortError, grpc.RpcError):
            raise
        except Exception as error:  # noqa: BLE001  # the last net: type and place are logged, the caller gets INTERNAL
            await _fail(method, context, error)

    return call


def _streaming(method: str, inner: Callable[[Any, Context], Any]) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> None:
        try:
            _authorise(method, context)
            outcome = inner(request, context)
            if hasattr(outcome, "__aiter__"):
                async for response in outcome:
                    await context.write(response)
            else:
                await outcome
        except PliError as error:
            await refuse(context, error)
        except (grpc.aio.AbortError, grpc.RpcError):
            raise
        except Exception as error:  # noqa: BLE001  # the last net: type and place are logged, the caller gets INTERNAL
            await _fail(method, context, error)

    return call


def _authorise(method: str, context: Context) -> None:
    peer = peer_of(context)
    if not may_call(method, peer.role):
        raise Forbidden(f"role {peer.role or 'code holder'} may not call {method}")


async def refuse(context: Context, error: PliError) -> NoReturn:
    """Ends the call with the error's status, reason and details; the short text is for clients without them."""
    status = to_status(error)
    short = status.message.partition("\n")[0][:MAX_SHORT_CHARACTERS]
    await context.abort(error.status, short, ((DETAILS, status.SerializeToString()),))


async def _fail(method: str, context: Context, error: Exception) -> NoReturn:
    # The text of a foreign exception may quote content: its type and place are logged, never its words.
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{frame.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.tb_lineno}" if frame else ""
    log.error("call_failed", method=method, error=type(error).__name__, place=place)
    if isinstance(error, NotImplementedError):
        # What generated servicers raise, as the health service does for List.
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server does not have the method")
    await refuse(context, PliError("internal error; the server's log names its place"))


def methods_of(services: Sequence[ServiceDescriptor]) -> list[str]:
    """Full names of all methods, as in the role table."""
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


class Health:
    """The standard health service, NOT_SERVING until told otherwise."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()

    async def start(self) -> None:
        """Says NOT_SERVING from the first moment on."""
        await self.set(serving=False)

    async def set(self, *, serving: bool) -> None:
        """Sets the overall state."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.servicer.set("", status)


def make_server(
    limits: Limits, services: Sequence[ServiceDescriptor], health_state: Health, *, reuse_port: bool = False
) -> grpc.aio.Server:
    """A server with the guard in front and health inside; the caller adds servicers and listeners.

    Raises:
        ConfigError: a served method has no roles.
    """
    health_service = cast(ServiceDescriptor, health_pb2.DESCRIPTOR.services_by_name["Health"])
    check_table(methods_of([*services, health_service]))
    server = grpc.aio.server(
        interceptors=[Guard()],
        options=limits.options(reuse_port=reuse_port),
        compression=grpc.Compression.NoCompression,
    )
    health_pb2_grpc.add_HealthServicer_to_server(health_state.servicer, server)
    return server

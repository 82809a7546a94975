"""The guard in front of every service: roles, statuses, and nothing of a foreign error."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pli.development_ca import DevelopmentAuthority
from pli.errors import (
    CampaignClosed,
    ConfigError,
    Fault,
    Forbidden,
    InputError,
    Overloaded,
    PliError,
    VaultLocked,
    VaultUnavailable,
)
from pli.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from pli.ingest.v1.ingest_pb2 import Ack, SubmitRequest, SubmitResponse
from pli.rpc.client import DETAILS, channel, typed
from pli.rpc.server import Context, Health, Limits, make_server
from pli.tls import TlsFiles, client_credentials, server_credentials
from pli.vault.v1 import campaign_pb2, campaign_pb2_grpc, deposit_pb2, deposit_pb2_grpc
from pli.vault.v1.campaign_pb2 import GetCampaignRequest, GetCampaignResponse, ImportRosterRequest, ImportRosterResponse
from pli.vault.v1.deposit_pb2 import FetchBundleRequest, FetchBundleResponse

SERVICES: list[ServiceDescriptor] = [
    ingest_pb2.DESCRIPTOR.services_by_name["IngestService"],
    campaign_pb2.DESCRIPTOR.services_by_name["CampaignService"],
    deposit_pb2.DESCRIPTOR.services_by_name["DepositService"],
]


class Scripted(  # the stubs make every method abstract; those left out answer UNIMPLEMENTED
    ingest_pb2_grpc.IngestServiceServicer,
    campaign_pb2_grpc.CampaignServiceServicer,
    deposit_pb2_grpc.DepositServiceServicer,
):
    """One method of each of the four kinds; each raises what it is told to, or answers."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.reached: list[str] = []

    async def GetCampaign(self, request: GetCampaignRequest, context: Context) -> GetCampaignResponse:  # noqa: N802
        self._act("GetCampaign")
        return GetCampaignResponse(state="OPEN")

    async def FetchBundle(  # noqa: N802
        self, request: FetchBundleRequest, context: Context
    ) -> AsyncIterator[FetchBundleResponse]:
        yield FetchBundleResponse()
        self._act("FetchBundle")

    async def ImportRoster(  # noqa: N802
        self, request_iterator: AsyncIterator[ImportRosterRequest], context: Context
    ) -> ImportRosterResponse:
        async for _ in request_iterator:
            self._act("ImportRoster")
        return ImportRosterResponse(pupils=1)

    async def Submit(self, request_iterator: object, context: Context) -> None:  # type: ignore[override]  # noqa: N802  # coroutine style
        while isinstance(request := await context.read(), SubmitRequest):
            self._act("Submit")
            await context.write(SubmitResponse(ack=Ack(durable_seq=request.ByteSize())))

    def _act(self, method: str) -> None:
        self.reached.append(method)
        if self.error is not None:
            raise self.error


class Callers:
    """One authority for the whole module, and one certificate per role."""

    def __init__(self, directory: Path) -> None:
        self._authority = DevelopmentAuthority(directory)
        self._trusted = self._authority.authority_file.read_bytes()
        self._files: dict[str, TlsFiles] = {}
        self.server = self._authority.issue("vault", "v", ("127.0.0.1",))

    def of(self, role: str) -> tuple[bytes, TlsFiles | None]:
        if role and role not in self._files:
            self._files[role] = self._authority.issue(role, "x")
        return self._trusted, self._files.get(role)


@dataclass
class Scene:
    """A guarded server with both listeners, and what callers need."""

    service: Scripted
    health: Health
    callers: Callers
    pupils: str
    processes: str

    @asynccontextmanager
    async def calling(self, role: str = "") -> AsyncIterator[grpc.aio.Channel]:
        """A channel of this role; of a holder of a code without one."""
        credentials = client_credentials(*self.callers.of(role))
        async with channel(self.processes if role else self.pupils, credentials) as open_channel:
            yield open_channel


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Callers:
    return Callers(tmp_path_factory.mktemp("callers"))


@pytest.fixture
async def scene(callers: Callers) -> AsyncIterator[Scene]:
    health = Health()
    service = Scripted()  # type: ignore[abstract]  # see there
    await health.start()
    server = make_server(Limits(), SERVICES, health)
    ingest_pb2_grpc.add_IngestServiceServicer_to_server(service, server)
    campaign_pb2_grpc.add_CampaignServiceServicer_to_server(service, server)
    deposit_pb2_grpc.add_DepositServiceServicer_to_server(service, server)
    ports = [
        server.add_secure_port("127.0.0.1:0", server_credentials(callers.server, ask_for_certificate=ask))
        for ask in (False, True)
    ]
    await server.start()
    yield Scene(service, health, callers, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
    await server.stop(0)


@pytest.fixture
def log() -> Iterator[StringIO]:
    stream = StringIO()
    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    yield stream
    structlog.configure(**before)


async def get_campaign(open_channel: grpc.aio.Channel) -> object:
    return await campaign_pb2_grpc.CampaignServiceStub(open_channel).GetCampaign(GetCampaignRequest(), timeout=10)


async def import_roster(open_channel: grpc.aio.Channel) -> object:
    requests = iter([ImportRosterRequest()])
    return await campaign_pb2_grpc.CampaignServiceStub(open_channel).ImportRoster(requests, timeout=10)


async def fetch_bundle(open_channel: grpc.aio.Channel) -> object:
    call = deposit_pb2_grpc.DepositServiceStub(open_channel).FetchBundle(FetchBundleRequest(), timeout=10)
    return [response async for response in call]


async def submit(open_channel: grpc.aio.Channel) -> object:
    call = ingest_pb2_grpc.IngestServiceStub(open_channel).Submit(iter([SubmitRequest()]), timeout=10)
    return [response async for response in call]


Call = Callable[[grpc.aio.Channel], Awaitable[object]]
KINDS: list[tuple[str, Call]] = [
    ("campaign-admin", get_campaign), ("campaign-admin", import_roster), ("relay", fetch_bundle), ("", submit),
]  # fmt: skip
kinds = pytest.mark.parametrize(("role", "call"), KINDS, ids=["unary", "stream in", "stream out", "both"])


async def refused(scene: Scene, role: str, call: Call) -> grpc.aio.AioRpcError:
    async with scene.calling(role) as open_channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(open_channel)
    return caught.value


# Roles


@kinds
async def test_who_may_call_gets_an_answer(scene: Scene, role: str, call: Call) -> None:
    async with scene.calling(role) as open_channel:
        assert await call(open_channel)
    assert len(scene.service.reached) == 1


@kinds
async def test_who_may_not_is_refused_before_the_service_sees_it(scene: Scene, role: str, call: Call) -> None:
    for other in {"", "reporter", "ingest", "relay", "campaign-admin", "root"} - {role}:
        error = await refused(scene, other, call)
        assert isinstance(typed(error), Forbidden)
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED
    assert scene.service.reached == []


async def test_an_unknown_method_is_unimplemented(scene: Scene) -> None:
    async with scene.calling("campaign-admin") as open_channel:
        unknown: Any = open_channel.unary_unary("/pli.vault.v1.CampaignService/Steal")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_server_with_a_method_that_has_no_row_is_not_made() -> None:
    steal = ServiceWithMethod("pli.vault.v1.StealService", "Steal")
    with pytest.raises(ConfigError, match="StealService/Steal"):
        make_server(Limits(), [steal], Health())  # type: ignore[list-item]  # looks like a descriptor where it matters


class ServiceWithMethod:
    def __init__(self, full_name: str, name: str) -> None:
        self.full_name = full_name
        self.name = name
        self.methods = [self]


# Errors


@kinds
@pytest.mark.parametrize(
    "error",
    [
        CampaignClosed("the window is closed; what was acknowledged is stored …"),
        VaultLocked("unlock answers first", metadata={"scope": "answers"}),
        VaultUnavailable("the vault does not answer"),
        Overloaded("come back", retry_after_ms=1_234),
        InputError("roster.csv was refused:", (Fault("roster.csv", 7, "sex", "Ω", "must be F, M, X or empty"),), 3),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_arrives_as_it_was_raised(scene: Scene, role: str, call: Call, error: PliError) -> None:
    scene.service.error = error
    status = await refused(scene, role, call)
    received = typed(status)
    assert status.code() == error.status
    assert status.details() == error.message.partition("\n")[0], "the short text is for clients without details"
    assert type(received) is type(error)
    assert received.message == error.message
    assert received.metadata.get("scope") == error.metadata.get("scope")
    if isinstance(received, Overloaded):
        assert received.retry_after_ms == 1_234


@kinds
async def test_a_foreign_error_is_internal_without_its_words_and_is_logged_by_type_and_place(
    scene: Scene, role: str, call: Call, log: StringIO
) -> None:
    scene.service.error = ValueError("marker-7f3a")
    status = await refused(scene, role, call)
    received = typed(status)
    assert status.code() == grpc.StatusCode.INTERNAL
    assert type(received) is PliError
    assert "marker-7f3a" not in f"{status.details()} {status.trailing_metadata()} {received.message}"
    (line,) = log.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["error"]) == ("call_failed", "ValueError")
    assert entry["method"].rpartition("/")[2] == scene.service.reached[0]
    assert entry["place"].startswith("test_rpc_guard.py:")
    assert "marker-7f3a" not in line


async def test_the_faults_of_a_hostile_file_arrive_whole_however_large_they_are(scene: Scene) -> None:
    # gRPC's own limits on metadata drop such trailers at random, and the caller would learn nothing.
    faults = tuple(Fault("\U0001f469" * 60, n, "é" * 60, "\U0001f469" * 60, "rule " * 30) for n in range(20))
    scene.service.error = InputError("roster.csv was refused:", faults, 9_999)
    async with scene.calling("campaign-admin") as open_channel:
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await get_campaign(open_channel)
            received = typed(caught.value)
            assert isinstance(received, InputError)
            assert received.total == 9_999
            assert f"{faults[5]}" in received.message


async def test_a_very_long_message_arrives_cut(scene: Scene) -> None:
    scene.service.error = VaultLocked("é" * 1_000_000)
    status = await refused(scene, "campaign-admin", get_campaign)
    assert isinstance(typed(status), VaultLocked)
    assert len(status.details() or "") == 300


@pytest.mark.parametrize(
    "details", [b"\xff", b"\x08", status_pb2.Status(details=[{"type_url": "x/google.rpc.ErrorInfo", "value": b"\xff"}])]
)
def test_details_that_nobody_can_read_fall_back_to_the_code(details: bytes | status_pb2.Status) -> None:
    raw = details if isinstance(details, bytes) else details.SerializeToString()
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata((DETAILS, raw)), details="gone"
    )
    received = typed(error)
    assert received.status == grpc.StatusCode.UNAVAILABLE
    assert received.message == "gone"


# Health


async def test_health_says_not_serving_until_told_otherwise(scene: Scene) -> None:
    check = health_pb2.HealthCheckRequest()
    async with scene.calling() as open_channel:
        stub = health_pb2_grpc.HealthStub(open_channel)
        assert (await stub.Check(check)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch = stub.Watch(check)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await scene.health.set(serving=True)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await scene.health.set(serving=False)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


async def test_a_method_that_a_service_leaves_out_is_unimplemented_for_those_who_may_call_it(scene: Scene) -> None:
    async def listed(open_channel: grpc.aio.Channel) -> object:
        return await health_pb2_grpc.HealthStub(open_channel).List(health_pb2.HealthListRequest(), timeout=10)

    assert (await refused(scene, "observer", listed)).code() == grpc.StatusCode.UNIMPLEMENTED
    assert (await refused(scene, "", listed)).code() == grpc.StatusCode.PERMISSION_DENIED

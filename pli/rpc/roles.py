"""Who may call what: one table, default deny (DESIGN 9). Checked at start, enforced by one interceptor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pli.errors import ConfigError

CODE_HOLDER = ""
"""A client without certificate: whoever holds a code. The TLS listener lets nobody else in."""

INGEST, RELAY, VAULT = "ingest", "relay", "vault"
OPERATOR, OBSERVER = "operator", "observer"
CAMPAIGN_ADMIN, REPORTER, CUSTODIAN = "campaign-admin", "reporter", "custodian"
REQUESTER, APPROVER, STATISTICIAN, AUDITOR = "requester", "approver", "statistician", "auditor"

_EVERYONE = frozenset(
    {
        CODE_HOLDER,
        INGEST,
        RELAY,
        VAULT,
        OPERATOR,
        OBSERVER,
        CAMPAIGN_ADMIN,
        REPORTER,
        CUSTODIAN,
        REQUESTER,
        APPROVER,
        STATISTICIAN,
        AUDITOR,
    }
)
_ADMIN = frozenset({CAMPAIGN_ADMIN})
_WATCH = frozenset({CAMPAIGN_ADMIN, OPERATOR, OBSERVER})

TABLE: Mapping[str, frozenset[str]] = {
    "/grpc.health.v1.Health/Check": _EVERYONE,
    "/grpc.health.v1.Health/Watch": _EVERYONE,
    "/grpc.health.v1.Health/List": _WATCH,
    "/pli.ingest.v1.IngestService/Submit": frozenset({CODE_HOLDER}),
    "/pli.ops.v1.OperationsService/GetStatus": frozenset({OPERATOR, OBSERVER}),
    "/pli.vault.v1.DepositService/Deposit": frozenset({RELAY}),
    "/pli.vault.v1.DepositService/Sync": frozenset({RELAY}),
    "/pli.vault.v1.DepositService/FetchBundle": frozenset({RELAY}),
    "/pli.vault.v1.DepositService/EnrolNode": frozenset({RELAY}),
    "/pli.vault.v1.CampaignService/CreateCampaign": _ADMIN,
    "/pli.vault.v1.CampaignService/ImportRoster": _ADMIN,
    "/pli.vault.v1.CampaignService/PutInstrument": _ADMIN,
    "/pli.vault.v1.CampaignService/IssueCodes": _ADMIN,
    "/pli.vault.v1.CampaignService/Publish": _ADMIN,
    "/pli.vault.v1.CampaignService/OpenWindow": _ADMIN,
    "/pli.vault.v1.CampaignService/CloseWindow": _ADMIN,
    "/pli.vault.v1.CampaignService/GetCampaign": _WATCH,
    "/pli.vault.v1.CampaignService/Settle": _ADMIN,
    "/pli.vault.v1.KeyService/Unlock": frozenset({CUSTODIAN}),
    "/pli.vault.v1.KeyService/Lock": frozenset({CUSTODIAN}),
    "/pli.vault.v1.KeyService/GetLockState": frozenset({CUSTODIAN, CAMPAIGN_ADMIN, OBSERVER, OPERATOR}),
    "/pli.vault.v1.ExportService/Export": frozenset({REPORTER}),
    "/pli.vault.v1.RehearsalService/VerifyLedger": _ADMIN,
}
"""Full method name → roles. A method that is not here is answered PERMISSION_DENIED to everyone."""


def may_call(method: str, role: str) -> bool:
    """Whether the table lets this role call this method."""
    return role in TABLE.get(method, frozenset())


def check_table(methods: Iterable[str]) -> None:
    """Called at start with every method the process serves.

    Raises:
        ConfigError: a method without an entry, which nobody could ever call.
    """
    missing = sorted(set(methods) - TABLE.keys())
    if missing:
        raise ConfigError(f"no roles are set for {', '.join(missing)}; add them to pli/rpc/roles.py")

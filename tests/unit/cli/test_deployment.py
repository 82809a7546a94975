"""The state directory of one machine: what the services read is what is written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from cryptography import x509

from cli.deployment import Addresses, Deployment, write_toml
from cli.profiles import read_profile
from pli.config import load
from pli.errors import ConfigError
from pli.identity import identity_of
from server.config import EmbeddedSettings, RelaySettings, ServerSettings
from vault.config import VaultSettings


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    addresses = Addresses("127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003")
    made = Deployment(tmp_path / "état 1", "demo", addresses, tmp_path / "s")
    made.prepare(workers=2, max_memory_mb=64)
    return made


def test_every_service_reads_its_configuration(deployment: Deployment) -> None:
    assert load(ServerSettings, deployment.config("server"), {}).workers == 2
    assert load(RelaySettings, deployment.config("relay"), {}).vault == "127.0.0.1:1003"
    assert load(VaultSettings, deployment.config("vault"), {}).auto_unlock
    assert load(EmbeddedSettings, deployment.config("spool"), {}).max_memory_mb == 64


def test_each_role_has_a_certificate_of_its_own(deployment: Deployment) -> None:
    for role in ("campaign-admin", "reporter", "custodian", "operator", "observer"):
        profile = read_profile(deployment.profile(role))
        certificate = x509.load_pem_x509_certificate(profile.certificate_file.read_bytes())
        assert identity_of(certificate).role == role
        assert profile.key_file.stat().st_mode & 0o777 == 0o400


def test_certificates_survive_a_second_start(deployment: Deployment) -> None:
    before = deployment.authority_file.read_bytes()
    deployment.prepare(workers=1, max_memory_mb=64)
    assert deployment.authority_file.read_bytes() == before


def test_the_authority_that_issued_them_leaves_no_key(deployment: Deployment) -> None:
    keys = {path.name for path in deployment.root.rglob("*.key")}
    assert not any("authority" in name for name in keys)


def test_any_path_survives_the_way_through_toml(tmp_path: Path) -> None:
    strange = 'a "b" \\ é 漢 \t end'
    write_toml(tmp_path / "x.toml", {"path": strange, "flag": True, "table": {"n": 3}})
    assert tomllib.loads((tmp_path / "x.toml").read_text()) == {"path": strange, "flag": True, "table": {"n": 3}}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("address = 1", "address"),
        ("adress = 'x'", "unknown key"),
        ("address = ", "not TOML"),
    ],
)
def test_a_profile_that_is_wrong_is_refused_with_its_name(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "operator.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=told) as caught:
        read_profile(path)
    assert str(path) in caught.value.message

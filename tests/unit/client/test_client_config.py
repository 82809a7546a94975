"""Options and profile: what cannot be meant is refused with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pli.client import ClientOptions, ClientProfile, open_channel
from pli.development_ca import DevelopmentAuthority
from pli.errors import ConfigError

PROFILE = 'campaign_id = "spring"\naddress = "127.0.0.1:8443"\nauthority_file = "certificates/authority.pem"\n'


def profile(directory: Path, content: str) -> Path:
    path = directory / "client.toml"
    path.write_text(content, encoding="utf-8")
    return path


def test_a_profile_gives_options_and_finds_its_authority_beside_itself(tmp_path: Path) -> None:
    authority = DevelopmentAuthority(tmp_path / "certificates")
    options = ClientProfile.load(profile(tmp_path, PROFILE)).options(node_authorities=[authority.certificate])
    assert (options.campaign_id, options.address) == ("spring", "127.0.0.1:8443")
    assert options.authority == authority.authority_file.read_bytes()
    assert options.node_authorities == (authority.certificate,)
    assert "BEGIN CERTIFICATE" not in repr(options)


def test_an_absolute_authority_path_stays_as_it_is(tmp_path: Path) -> None:
    content = PROFILE.replace("certificates/authority.pem", "/etc/pli/authority.pem")
    assert ClientProfile.load(profile(tmp_path, content)).authority_file == Path("/etc/pli/authority.pem")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (PROFILE + "adress = 1\n", "adress: unknown key"),
        (PROFILE.replace("address", "adress"), "address: Field required"),
        (PROFILE.replace('"spring"', '"Spring term"'), "campaign_id"),
        (PROFILE + "=", "not TOML"),
    ],
)
def test_a_profile_with_a_fault_names_it(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ClientProfile.load(profile(tmp_path, content))


def test_a_missing_profile_or_authority_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"client\.toml cannot be read"):
        ClientProfile.load(tmp_path / "client.toml")
    with pytest.raises(ConfigError, match=r"authority\.pem cannot be read"):
        ClientProfile.load(profile(tmp_path, PROFILE)).options()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"campaign_id": ""}, "campaign_id"),
        ({"campaign_id": "é" * 33}, "64 bytes, has 66"),
        ({"address": "localhost"}, "host:port"),
        ({"address": ":8443"}, "host:port"),
        ({"address": "localhost:0"}, "host:port"),
        ({"address": "localhost:65536"}, "host:port"),
        ({"give_up_seconds": 0}, "give_up_seconds"),
        ({"open_timeout_seconds": float("nan")}, "open_timeout_seconds"),
        ({"backoff_first_ms": -1}, "backoff_first_ms"),
        ({"keepalive_time_ms": 9_999}, "nodes cut off faster pings"),
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ClientOptions(**{"campaign_id": "spring", **fields})


def test_a_channel_needs_an_address_and_an_authority() -> None:
    with pytest.raises(ConfigError, match="address and authority"):
        open_channel(ClientOptions(campaign_id="spring", address="127.0.0.1:1"))


def test_the_keepalive_of_a_client_never_outpaces_what_nodes_allow() -> None:
    from pli.client.config import MIN_KEEPALIVE_MS
    from pli.rpc.server import Limits

    assert Limits().min_ping_interval_ms <= MIN_KEEPALIVE_MS <= ClientOptions(campaign_id="spring").keepalive_time_ms

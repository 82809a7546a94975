"""The copies of a campaign's secret S."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pli.config import write_secret_file
from pli.errors import ConfigError
from pli.secret import Secret
from vault.campaign_secret import SecretCopies, identify


@pytest.fixture
def media(tmp_path: Path) -> list[Path]:
    return [tmp_path / "first", tmp_path / "second", tmp_path / "third"]


@pytest.fixture
def copies(media: list[Path]) -> SecretCopies:
    return SecretCopies(media, os.urandom)


def test_every_directory_gets_the_same_copy_that_its_owner_alone_may_read(
    copies: SecretCopies, media: list[Path]
) -> None:
    secret = copies.create("c1")
    assert len(secret) == 32
    for directory in media:
        path = directory / "c1.secret"
        assert path.read_bytes() == secret.reveal()
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_creating_again_draws_nothing_anew(copies: SecretCopies) -> None:
    assert copies.create("c1") == copies.create("c1")
    assert copies.create("c1") != copies.create("c2")


def test_a_creation_that_was_cut_short_is_completed_from_the_copy_it_left(
    copies: SecretCopies, media: list[Path]
) -> None:
    media[1].mkdir()
    write_secret_file(media[1] / "c1.secret", b"s" * 32)
    assert copies.create("c1") == Secret(b"s" * 32)
    assert [(directory / "c1.secret").read_bytes() for directory in media] == [b"s" * 32] * 3


def test_what_an_earlier_campaign_of_this_name_left_is_refused(copies: SecretCopies, media: list[Path]) -> None:
    for directory, content in zip(media, (b"a", b"b"), strict=False):
        directory.mkdir()
        write_secret_file(directory / "c1.secret", content * 32)
    with pytest.raises(ConfigError, match="another secret than the first"):
        copies.create("c1")


def test_any_one_copy_is_enough_and_a_wrong_one_is_passed_over(copies: SecretCopies, media: list[Path]) -> None:
    secret = copies.create("c1")
    (media[0] / "c1.secret").unlink()
    (media[1] / "c1.secret").unlink()
    write_secret_file(media[1] / "c1.secret", b"x" * 32)
    assert copies.find("c1", identify(secret)) == secret


def test_no_copy_at_all_says_where_to_bring_one(copies: SecretCopies, media: list[Path]) -> None:
    secret = copies.create("c1")
    for directory in media:
        (directory / "c1.secret").unlink()
    with pytest.raises(ConfigError, match=r"in none of secret_dirs .*first.*bring a copy back"):
        copies.find("c1", identify(secret))


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o420])
def test_a_copy_that_others_may_read_is_refused(copies: SecretCopies, media: list[Path], mode: int) -> None:
    secret = copies.create("c1")
    (media[0] / "c1.secret").chmod(mode)
    with pytest.raises(ConfigError, match="open to others"):
        copies.find("c1", identify(secret))


def test_a_cut_copy_is_named(copies: SecretCopies, media: list[Path]) -> None:
    media[0].mkdir()
    write_secret_file(media[0] / "c1.secret", b"s" * 31)
    with pytest.raises(ConfigError, match="31 bytes instead of 32"):
        copies.create("c1")


def test_the_id_of_a_secret_is_not_the_secret() -> None:
    secret = Secret(b"s" * 32)
    assert identify(secret) == identify(Secret(b"s" * 32)) != identify(Secret(b"t" * 32))
    assert secret.reveal().hex()[:16] not in identify(secret)

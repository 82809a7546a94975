"""Secrets: they can be used, wiped and compared, and cannot be shown."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from pli.secret import Secret

CONTENT = b"\x00\xffnobody reads this"


def shows(text: str) -> bool:
    return "nobody" in text or CONTENT.hex() in text or "\\xff" in text


def test_a_secret_prints_its_length_alone() -> None:
    secret = Secret(CONTENT)
    texts = [repr(secret), str(secret), f"{secret}", f"{secret!r:>60}", "{}".format(*[secret]), f"{[secret]}"]
    texts += [template % (secret,) for template in ("%s", "%r", "%a")]
    assert not any(map(shows, texts))
    assert all("Secret(19 bytes)" in text for text in texts)


def test_a_secret_is_not_in_a_traceback_with_its_variables() -> None:
    def fail(held: Secret) -> None:
        raise ValueError(f"about {held}")

    try:
        fail(Secret(CONTENT))
    except ValueError as error:
        text = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "held = Secret(19 bytes)" in text


def test_a_secret_is_neither_pickled_nor_copied_nor_written_as_json() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(Secret(CONTENT), protocol)
    uses: list[Callable[[Any], object]] = [copy.copy, copy.deepcopy, json.dumps, bytes, vars]
    for act in uses:
        with pytest.raises(TypeError):
            act(Secret(CONTENT))


def test_a_wiped_secret_holds_zeros() -> None:
    secret = Secret(CONTENT)
    assert secret.reveal() == CONTENT
    secret.wipe()
    assert secret.reveal() == bytes(len(CONTENT))
    assert len(secret) == len(CONTENT)


def test_a_secret_keeps_its_own_copy() -> None:
    given = bytearray(CONTENT)
    secret = Secret(given)
    given[:] = bytes(len(given))
    assert secret.reveal() == CONTENT


def test_secrets_are_equal_by_content_and_no_key_of_a_dictionary() -> None:
    assert Secret(b"a") == Secret(b"a") != Secret(b"b")
    assert Secret(b"a") != b"a"
    with pytest.raises(TypeError):
        hash(Secret(b"a"))

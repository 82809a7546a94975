"""Ledgers: what is written is read back, whatever the pieces; what is no ledger is refused unshown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.codes import new_code
from pli.errors import InputError
from pli.ledger import Ledger, LedgerWriter, code_digest, content_digest, read_ledger
from pli.secret import Secret

KEY = bytes(range(32))
WRITER, OTHER = b"w" * 16, b"v" * 16
CODE = new_code(lambda bits: 12345 % 2**bits)


def written(path: Path) -> bytes:
    ledger = LedgerWriter(path, "demo", Secret(KEY))
    ledger.opened(WRITER, CODE)
    ledger.sent(WRITER, 1, 1, b"answer one")
    ledger.sent(WRITER, 2, 1, b"answer two")
    ledger.acked(WRITER, 2)
    ledger.rejected(WRITER, 2, 3)
    ledger.sent(OTHER, 1, 1, b"answer one")
    ledger.close()
    return path.read_bytes()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    ledger = read_ledger([written(tmp_path / "ledger.txt")], "ledger.txt")
    session = ledger.sessions[WRITER]
    assert ledger.campaign_id == "demo"
    assert session.code == code_digest(KEY, CODE)
    assert session.sent == {
        1: content_digest(KEY, WRITER, 1, 1, b"answer one"),
        2: content_digest(KEY, WRITER, 2, 1, b"answer two"),
    }
    assert session.is_acknowledged(1)
    assert not session.is_acknowledged(2)
    assert not session.is_acknowledged(3)
    assert ledger.sessions[OTHER].durable_seq == 0


def test_the_file_tells_neither_code_nor_answer(tmp_path: Path) -> None:
    content = written(tmp_path / "ledger.txt")
    for secret in (CODE.reveal().encode(), CODE.printed().encode(), b"answer", b"answer one".hex().encode()):
        assert secret not in content


def test_the_same_answer_of_two_writers_has_two_digests() -> None:
    assert content_digest(KEY, WRITER, 1, 1, b"B") != content_digest(KEY, OTHER, 1, 1, b"B")


@given(size=st.integers(1, 90))
def test_pieces_of_any_size_give_the_same_ledger(size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = written(tmp_path_factory.mktemp("ledger") / "ledger.txt")
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    assert read_ledger(pieces, "l") == read_ledger([content], "l")


def test_a_last_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    content = written(tmp_path / "ledger.txt")
    torn = content[: content.rindex(b"s ") + 10]
    assert OTHER not in read_ledger([torn], "l").sessions


def test_ledgers_of_one_campaign_may_be_put_together(tmp_path: Path) -> None:
    content = written(tmp_path / "one.txt")
    whole: Ledger = read_ledger([content, b"pli-ledger 1 demo\n", f"a {OTHER.hex()} 1\n".encode()], "l")
    assert whole.sessions[OTHER].is_acknowledged(1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"secret words of another file\n",
        b"pli-ledger 2 demo\n",
        b"pli-ledger 1 demo\npli-ledger 1 other\n",
        b"pli-ledger 1 demo\nx 00 1\n",
        b"pli-ledger 1 demo\na 0011 1\n",
        b"pli-ledger 1 demo\na " + WRITER.hex().encode() + b" 18446744073709551616\n",
        b"pli-ledger 1 demo\na " + WRITER.hex().encode() + b" -1\n",
        b"pli-ledger 1 demo\ns " + WRITER.hex().encode() + b" 1\n",
        b"pli-ledger 1 demo\no " + WRITER.hex().encode() + b" " + b"00" * 16 + b" more\n",
        b"pli-ledger 1 demo\n\xff\xfe\n",
        b"z" * 300,
    ],
)
def test_what_is_no_ledger_is_refused_with_its_line_and_not_shown(content: bytes) -> None:
    with pytest.raises(InputError, match=r"ledger\.txt") as caught:
        read_ledger([content], "ledger.txt")
    assert "secret" not in caught.value.message


def test_one_number_with_two_contents_is_refused(tmp_path: Path) -> None:
    ledger = LedgerWriter(tmp_path / "ledger.txt", "demo", Secret(KEY))
    ledger.sent(WRITER, 1, 1, b"one")
    ledger.sent(WRITER, 1, 1, b"one")
    assert read_ledger([(tmp_path / "ledger.txt").read_bytes()], "l").sessions[WRITER].sent.keys() == {1}
    ledger.sent(WRITER, 1, 1, b"two")
    ledger.close()
    with pytest.raises(InputError):
        read_ledger([(tmp_path / "ledger.txt").read_bytes()], "l")

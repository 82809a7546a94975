"""docs/protocol.md says what the code does: its examples are computed, its lists compared."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from struct import pack

import pytest

from pli.canonical import FinishDigest, canonical
from pli.client import ClientOptions, config, link, queue, receipt, session
from pli.codes import ALPHABET, CODE_SYMBOLS, MAX_TYPED_CHARACTERS, parse_code
from pli.errors import BY_REASON, CodeRefused
from pli.ingest.v1 import ingest_pb2
from pli.ingest.v1.ingest_pb2 import Answer, Choices, Cleared, Finish, Receipt, ReceiptBody, RejectReason
from pli.instrument import MAX_NUMBER_CHARACTERS, NUMBER
from pli.instrument_file import MAX_OPTIONS, MAX_TEXT_BYTES
from pli.plain_text import MAX_MARKS
from pli.rpc.server import Limits
from pli.signing import RECEIPT

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
STATUS_ROW = re.compile(r"^\| ([A-Z_]+) \| (`[A-Z_`, ]+`)", re.MULTILINE)


def section(number: int) -> str:
    found = re.search(rf"^## {number}\. .*?(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/protocol.md has no section {number}"
    return found[0]


def test_the_worked_example_is_what_the_code_computes() -> None:
    answers = [
        Answer(item_id="math-07", choices=Choices(options=["B"]), opening=1, elapsed_ms=4200),
        Answer(item_id="math-08", number="1,5", opening=1),
        Answer(item_id="math-07", cleared=Cleared(), opening=2),
    ]
    told = re.findall(r"^canonical +([0-9a-f]+)$", section(7), re.MULTILINE)
    assert told[:3] == [canonical(answer).hex() for answer in answers]
    digest = FinishDigest()
    for seq in (1, 3):
        digest.add(seq, canonical(answers[seq - 1]))
    assert re.findall(r"^digest +([0-9a-f]+)$", section(7), re.MULTILINE) == [digest.digest().hex()]
    assert told[3:] == [canonical(Finish(seq=4, count=2, digest=digest.digest(), opening=2)).hex()]


def test_the_digested_bytes_in_the_example_give_the_digest_by_hand() -> None:
    rows = re.findall(r"([0-9a-f]{16}) ([0-9a-f]{8}) ([0-9a-f]+)$", section(7), re.MULTILINE)
    assert len(rows) == 2
    raw = b"".join(bytes.fromhex("".join(row)) for row in rows)
    assert sha256(raw).hexdigest() in section(7)
    assert all(pack(">I", len(bytes.fromhex(content))).hex() == length for _, length, content in rows)


def test_an_empty_value_is_written_as_the_page_says() -> None:
    assert canonical(Answer(text="")).hex(" ") == "1a 00"
    assert canonical(Answer(cleared=Cleared())).hex(" ") == "32 00"
    assert "`1a 00`" in section(7)
    assert "`32 00`" in section(7)


def test_the_short_receipt_has_the_form_of_the_page() -> None:
    body = ReceiptBody(campaign_id="c", pseudonym_prefix=bytes.fromhex("3fa1c2d0"), last_seq=33, count=32)
    taken = receipt.read_receipt(Receipt(body=body.SerializeToString()), campaign_id="c", last_seq=33, count=32).short()
    shown = re.search(r"for example `([^`]+)`", section(7))
    assert shown
    assert re.sub(r"[0-9a-f]{8}$", "", taken) == re.sub(r"[0-9a-f]{8}$", "", shown[1])
    assert f"`{RECEIPT.decode()}`" in section(7)


def test_every_reason_of_the_table_exists_with_that_status() -> None:
    rows = STATUS_ROW.findall(section(6))
    assert len(rows) == 12
    for status, reasons in rows:
        for reason in re.findall(r"`([A-Z_]+)`", reasons):
            assert BY_REASON[reason].status.name == status, reason


def test_every_reason_of_the_proto_stands_in_the_table() -> None:
    proto = (ROOT / "protos" / "pli" / "ingest" / "v1" / "ingest.proto").read_text(encoding="utf-8")
    comment = proto.partition("service IngestService")[2].partition("rpc Submit")[0]
    named = set(re.findall(r"\b[A-Z]{4,}(?:_[A-Z]+)*\b", comment))
    assert {"CODE_REFUSED", "SUPERSEDED", "OVERLOADED"} <= named
    assert {word for word in named if word not in section(6)} == set()


def test_every_rejection_is_explained() -> None:
    names = [name.removeprefix("REJECT_REASON_") for name in RejectReason.keys()[1:]]
    explained = re.findall(r"^\| `([A-Z_]+)` \|", section(6), re.MULTILINE)
    assert sorted(explained) == sorted(names)


def test_every_message_is_named() -> None:
    messages = set(ingest_pb2.DESCRIPTOR.message_types_by_name) | set(ingest_pb2.DESCRIPTOR.enum_types_by_name)
    assert {name for name in messages if f"`{name}`" not in section(8)} == set()


def test_the_limits_are_those_of_the_code() -> None:
    limits = section(8)
    server = Limits()
    assert server.max_receive_bytes == 256 * 1024
    assert "256 kB" in limits
    assert f"1 to {queue.MAX_ANSWERS}" in limits
    assert f"{config.MAX_CAMPAIGN_BYTES} bytes" in limits
    assert f"| options of one answer | {MAX_OPTIONS} |" in limits
    assert f"{MAX_TEXT_BYTES:,} bytes".replace(",", " ") in limits
    assert f"| `number` | {MAX_NUMBER_CHARACTERS} characters |" in limits
    assert f"{MAX_TYPED_CHARACTERS} characters" in limits
    assert f"| `writer`, `token` | {session.WRITER_BYTES} bytes |" in limits
    assert link.TOKEN_BYTES == session.WRITER_BYTES
    assert f"one in {server.min_ping_interval_ms // 1000} s" in limits
    assert f"at most {server.max_concurrent_streams} streams" in section(1)
    assert f"more than {MAX_MARKS} combining marks" in section(6)


@pytest.mark.parametrize("number", ["1", "-1,5", "+.5", "3.", "1.5"])
def test_numbers_are_as_the_page_says(number: str) -> None:
    assert NUMBER.fullmatch(number)


def test_the_limits_of_a_platform_are_those_of_its_configuration() -> None:
    # The page is about the client's side; a client may not import the server's, so its text is read.
    text = (ROOT / "server" / "config.py").read_text(encoding="utf-8")

    def default(name: str) -> float:
        found = re.search(rf"^    {name}: \w+ = (?:Field\(default=)?([0-9_.]+)", text, re.MULTILINE)
        assert found, name
        return float(found[1].replace("_", ""))

    assert f"({default('max_in_flight'):.0f} by default)" in section(8)
    assert f"{default('max_rejections'):,.0f} by default".replace(",", " ") in section(8)
    assert f"its `Open` | {default('open_seconds'):.0f} s" in section(8)
    assert f"silence of the spool | {default('stalled_seconds'):.0f} s" in section(8)
    options = ClientOptions(campaign_id="c")
    assert options.open_timeout_seconds < default("open_seconds")
    assert options.stall_timeout_seconds > default("stalled_seconds")


def test_the_codes_of_the_page_are_good_and_bad_as_it_says() -> None:
    lines = re.findall(r"^(good|bad) +([A-Za-z0-9 -]+?)(?: {3}symbols ([0-9 ]+))?$", section(9), re.MULTILINE)
    assert len(lines) == 4
    for verdict, typed, symbols in lines:
        if verdict == "good":
            code = parse_code(typed)
            assert code.printed() == "J3V9-0ZEP-7BBN"
            assert not symbols or [ALPHABET[int(value)] for value in symbols.split()] == list(code.reveal())
        else:
            with pytest.raises(CodeRefused):
                parse_code(typed)


def test_the_recipe_of_the_page_alone_tells_good_codes_from_bad() -> None:
    """Written from the text of section 9, not from pli.codes."""

    def times_alpha(value: int, power: int) -> int:
        for _ in range(power):
            value <<= 1
            if value >= 32:
                value ^= 37
        return value

    def well_formed(symbols: list[int]) -> bool:
        sums = [0, 0]
        for place, value in enumerate(symbols):
            sums[0] ^= times_alpha(value, place)
            sums[1] ^= times_alpha(value, 2 * place)
        return len(symbols) == CODE_SYMBOLS and sums == [7, 19]

    assert f"`{ALPHABET}`" in section(9)
    good = [18, 3, 27, 9, 0, 31, 14, 22, 7, 11, 11, 21]
    assert well_formed(good)
    for place in range(12):
        for value in range(32):
            assert well_formed([*good[:place], value, *good[place + 1 :]]) == (value == good[place])


def test_every_rule_that_the_code_names_is_on_the_page() -> None:
    rules = {int(number) for number in re.findall(r"^(\d+)\. \*\*", section(4), re.MULTILINE)}
    assert rules == set(range(1, len(rules) + 1))
    named = {
        int(number)
        for path in (ROOT / "pli" / "client").glob("*.py")
        for number in re.findall(r"[Rr]ule (\d+)", path.read_text(encoding="utf-8"))
    }
    assert named
    assert named <= rules
    assert {int(number) for number in re.findall(r"[Rr]ules? (\d+)", TEXT)} <= rules

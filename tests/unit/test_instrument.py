"""Instruments read by both sides, and the check of every answer against the public part."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.errors import Fault, InputError, VersionMismatch
from pli.ingest.v1.ingest_pb2 import Answer, Choices, Cleared, Mark, RejectReason
from pli.instrument import ACCEPTED, AnswerRules, answer_from_text, read_public_part
from pli.vault.v1.bundle_pb2 import ItemType, PublicInstrument, PublicItem
from vault.instrument import Instrument, parse_instrument

SMALL = (Path(__file__).parents[1] / "data" / "small" / "instrument.toml").read_bytes()
HEAD = 'id = "x"\ntitle = "X"\nversion = "1"\n'
CHOICE = '[[item]]\nid = "{}"\ndomain = "d"\ntype = "choice"\noptions = ["A", "B"]\nkey = "A"\n'
RULES = AnswerRules(
    PublicInstrument(
        version="7",
        items=[
            PublicItem(id="one", type=ItemType.ITEM_TYPE_CHOICE, options=["A", "B", "é"]),
            PublicItem(id="many", type=ItemType.ITEM_TYPE_CHOICES, options=[f"{n}" for n in range(64)]),
            PublicItem(id="text", type=ItemType.ITEM_TYPE_TEXT),
            PublicItem(id="short", type=ItemType.ITEM_TYPE_TEXT, max_length=5),
            PublicItem(id="number", type=ItemType.ITEM_TYPE_NUMBER),
        ],
    )
)


def chosen(item_id: str, *options: str, seat: int = 0) -> Answer:
    return Answer(item_id=item_id, choices=Choices(options=options), seat=seat)


def reason(answer: Answer, seats: int = 0) -> str:
    name = RejectReason.Name(RULES.check(answer, seats))
    return name.removeprefix("REJECT_REASON_")


def faults_of(content: str | bytes, read: Callable[[bytes, str], object] = parse_instrument) -> list[Fault]:
    with pytest.raises(InputError) as caught:
        read(content if isinstance(content, bytes) else content.encode(), "i.toml")
    assert caught.value.total == len(caught.value.faults) or caught.value.total > 20
    return list(caught.value.faults)


def item_fault(lines: str) -> Fault:
    """The only fault of an instrument whose item, from line 4 on, has these lines."""
    (fault,) = faults_of(f'{HEAD}[[item]]\nid = "i"\ndomain = "d"\n{lines}\n')
    return fault


# Answers


@pytest.mark.parametrize(
    "answer",
    [
        chosen("one", "B"),
        chosen("one", "é"),
        chosen("many"),
        chosen("many", *[f"{n}" for n in range(64)]),
        Answer(item_id="text", text=""),
        Answer(item_id="text", text="Une réponse,\n\tsur deux lignes ; 日本語 👩‍🏫"),
        Answer(item_id="text", text="x" * 8192),
        Answer(item_id="short", text="ééééé"),
        Answer(item_id="text", text="e" + "\u0301" * 30),
        Answer(item_id="one", cleared=Cleared()),
        Answer(item_id="number", cleared=Cleared()),
    ],
)
def test_an_answer_within_the_rules_is_accepted(answer: Answer) -> None:
    assert RULES.check(answer, 0) == ACCEPTED == 0


@pytest.mark.parametrize("number", ["0", "12", "-3", "+3,5", "3.5", "12.", ".5", ",5", "9" * 32])
def test_numbers_are_taken_as_typed(number: str) -> None:
    assert reason(Answer(item_id="number", number=number)) == "UNSPECIFIED"


@pytest.mark.parametrize(
    "number",
    [
        "",
        "NaN",
        "inf",
        "-Infinity",
        "1e3",
        "1.2.3",
        "1,2.3",
        "--1",
        "1 000",
        " 1",
        "1\n",
        "\u22121",
        "\u0663",
        ".",
    ],
)
def test_what_is_no_number_is_rejected(number: str) -> None:
    assert reason(Answer(item_id="number", number=number)) == "BAD_NUMBER"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (chosen("other", "A"), "UNKNOWN_ITEM"),
        (Answer(), "UNKNOWN_ITEM"),
        (Answer(item_id="one"), "EMPTY"),
        (chosen("one"), "EMPTY"),
        (Answer(item_id="one", text="A"), "WRONG_TYPE"),
        (Answer(item_id="many", number="1"), "WRONG_TYPE"),
        (Answer(item_id="text", blob=b"A"), "WRONG_TYPE"),
        (Answer(item_id="number", text="1"), "WRONG_TYPE"),
        (chosen("text", "A"), "WRONG_TYPE"),
        (chosen("one", "C"), "UNKNOWN_OPTION"),
        (chosen("one", "a"), "UNKNOWN_OPTION"),
        (chosen("one", "e\u0301"), "UNKNOWN_OPTION"),
        (chosen("many", "1", "65"), "UNKNOWN_OPTION"),
        (chosen("many", "1", "2", "1"), "UNKNOWN_OPTION"),
        (chosen("one", "A", "B"), "TOO_LONG"),
        (chosen("many", *["1"] * 65), "TOO_LONG"),
        (Answer(item_id="short", text="abcdef"), "TOO_LONG"),
        (Answer(item_id="text", text="x" * 8193), "TOO_LONG"),
        (Answer(item_id="text", text="é" * 4097), "TOO_LONG"),
        (Answer(item_id="text", text="👩" * 2049), "TOO_LONG"),
        (Answer(item_id="number", number="1" * 400), "TOO_LONG"),
        (Answer(item_id="text", text="e" + "\u0301" * 31), "BAD_TEXT"),
        (Answer(item_id="text", text="\u4e00" * 50 + "\u20dd" * 31), "BAD_TEXT"),
    ],
)
def test_an_answer_outside_the_rules_is_rejected_with_its_reason(answer: Answer, expected: str) -> None:
    assert reason(answer) == expected


@pytest.mark.parametrize("character", [*"\0\x01\x08\x0b\r\x1b\x7f\x80\x9f", *"\u202a\u202e\u2066\u2069"])
def test_text_with_a_forbidden_character_is_rejected(character: str) -> None:
    assert reason(Answer(item_id="text", text=f"abc{character}")) == "BAD_TEXT"


def test_a_pupil_session_has_no_seats_and_a_class_session_its_own() -> None:
    assert reason(chosen("one", "A", seat=1), seats=0) == "UNKNOWN_SEAT"
    assert [reason(chosen("one", "A", seat=seat), seats=2) for seat in range(4)] == [
        "UNKNOWN_SEAT",
        "UNSPECIFIED",
        "UNSPECIFIED",
        "UNKNOWN_SEAT",
    ]
    assert reason(Answer(item_id="one", cleared=Cleared(), seat=3), seats=2) == "UNKNOWN_SEAT"


def test_a_mark_needs_a_seat_of_the_class_and_a_presence() -> None:
    def check(seat: int, presence: int, seats: int) -> str:
        mark = Mark.FromString(bytes([0x10, seat, 0x18, presence]))
        return RejectReason.Name(RULES.check_mark(mark, seats)).removeprefix("REJECT_REASON_")

    assert [check(1, presence, 2) for presence in range(5)] == [
        "EMPTY",
        "UNSPECIFIED",
        "UNSPECIFIED",
        "UNSPECIFIED",
        "EMPTY",
    ]
    assert [check(seat, 1, 2) for seat in (0, 2, 3)] == ["UNKNOWN_SEAT", "UNSPECIFIED", "UNKNOWN_SEAT"]
    assert check(0, 1, 0) == check(1, 1, 0) == "UNKNOWN_SEAT"


@given(st.text(), st.sampled_from(["one", "many", "text", "short", "number"]), st.integers(0, 3))
def test_every_cell_gets_a_verdict_and_accepted_options_are_offered(cell: str, item_id: str, seat: int) -> None:
    item = PublicItem(id=item_id, type=ItemType.ITEM_TYPE_CHOICE, options=["A"])
    verdict = AnswerRules(PublicInstrument(items=[item])).check(answer_from_text(item, cell), 0)
    assert (verdict == ACCEPTED) == (cell in ("A", ""))
    assert reason(Answer(item_id=item_id, text=cell, seat=seat), seats=2) != "UNKNOWN_ITEM"


def test_an_item_type_of_a_later_version_is_refused_when_the_rules_are_made() -> None:
    with pytest.raises(VersionMismatch, match="type 0"):
        AnswerRules(PublicInstrument(items=[PublicItem(id="a")]))


def test_cells_become_answers_by_type() -> None:
    def item(kind: ItemType.ValueType) -> PublicItem:
        return PublicItem(id="i", type=kind)

    assert answer_from_text(item(ItemType.ITEM_TYPE_CHOICE), "A;C") == chosen("i", "A;C")
    assert answer_from_text(item(ItemType.ITEM_TYPE_CHOICES), "A;C") == chosen("i", "A", "C")
    assert answer_from_text(item(ItemType.ITEM_TYPE_TEXT), " a ") == Answer(item_id="i", text=" a ")
    assert answer_from_text(item(ItemType.ITEM_TYPE_NUMBER), "1,5") == Answer(item_id="i", number="1,5")
    assert answer_from_text(item(ItemType.ITEM_TYPE_TEXT), "") == Answer(item_id="i", cleared=Cleared())


# Files


def test_both_sides_read_the_same_public_part_without_keys() -> None:
    instrument = parse_instrument(SMALL, "i.toml")
    public = read_public_part(SMALL, "i.toml")
    assert public == instrument.public_part()
    assert (public.id, public.version, len(public.items)) == ("petit-10", "2026-a", 10)
    assert AnswerRules(public).version == "2026-a"
    assert public.items[4].max_length == 30
    for hidden in ("l'élève", "français", "satisfaisant", "en été", "12,5"):
        assert hidden.encode() not in public.SerializeToString()


def test_an_instrument_is_read_with_exact_scores() -> None:
    instrument = parse_instrument(SMALL, "i.toml")
    items = {item.id: item for item in instrument.items}
    assert instrument.max_score == 15
    assert [(group.name, group.from_share) for group in instrument.groups][1:] == [
        ("fragile", Decimal("0.4")),
        ("satisfaisant", Decimal("0.65")),
    ]
    assert items["fra-04"].scores == {
        frozenset("ABC"): 3,
        frozenset("AB"): Decimal("1.5"),
        frozenset("C"): 1,
    }
    assert items["mat-08"].scores == {Decimal("3.14"): 1}
    assert items["mat-08"].tolerance == Decimal("0.01")


def test_no_key_is_printed() -> None:
    instrument = parse_instrument(SMALL, "i.toml")
    for shown in (repr(instrument), repr(instrument.items), f"{instrument.items[4]}"):
        assert "élève" not in shown
        assert "scores" not in shown


@pytest.mark.parametrize(
    ("lines", "line", "column", "value", "rule"),
    [
        ('type = "essay"\nkey = "A"', 7, "type", "essay", "unknown type"),
        ('type = "choice"\noptions = ["A"]\nkey = "C"', 9, "key", "C", "not among the options"),
        ('type = "choice"\noptions = ["A"]\nkey = 1', 9, "key", "1", "must be a string"),
        ('type = "choice"\noptions = ["A"]\nscores = { "C" = 1 }', 9, "scores", "C", "not among the options"),
        ('type = "choices"\noptions = ["A"]\nkey = ["A", "C"]', 9, "key", "C", "not among the options"),
        ('type = "choices"\noptions = ["A"]\nkey = ["A", "A"]', 9, "key", "A;A", "named twice"),
        ('type = "choices"\noptions = ["A"]\nkey = []', 9, "key", "", "empty"),
        ('type = "choices"\noptions = ["A", "B"]\nkey = "A;B"', 9, "key", "A;B", "list of strings"),
        ('type = "choices"\noptions = ["A;B"]\nkey = ["A;B"]', 8, "options", "A;B", "hold no"),
        (
            'type = "choices"\noptions = ["A", "B"]\nscores = { "A;B" = 1, "B;A" = 2 }',
            9,
            "scores",
            "A;B",
            "twice",
        ),
        (
            'type = "choice"\noptions = ["A"]\nscores = { "A" = 101 }',
            9,
            "scores",
            "101",
            "score above maximum",
        ),
        (
            'type = "choice"\noptions = ["A"]\nmax_score = 1\nscores = { "A" = 2 }',
            10,
            "scores",
            "2",
            "score above maximum",
        ),
        ('type = "choice"\noptions = ["A"]\n[item.scores]\nA = -1', 9, "scores", "-1", "negative"),
        ('type = "choice"\noptions = ["A"]\nscores = { "A" = 0 }', 9, "scores", "", "above 0"),
        ('type = "choice"\noptions = ["A"]\nscores = { "A" = nan }', 9, "scores", "NaN", "must be a number"),
        ('type = "choice"\noptions = ["A"]\nscores = { "A" = "2" }', 9, "scores", "2", "must be a number"),
        ('type = "choice"\noptions = ["A"]\nscores = { "A" = 1e-9 }', 9, "scores", "1E-9", "decimals"),
        ('type = "choice"\noptions = ["A"]\nscores = 2', 9, "scores", "", "must be a table"),
        (
            'type = "choice"\noptions = ["A"]\nkey = "A"\nmax_score = 2',
            10,
            "max_score",
            "2",
            "worth one point",
        ),
        ('type = "choice"\noptions = ["A"]', 4, "key", "", 'either "key" or "scores"'),
        (
            'type = "choice"\noptions = ["A"]\nkey = "A"\nscores = { "A" = 1 }',
            9,
            "key",
            "",
            'either "key" or "scores"',
        ),
        ('type = "choice"\nkey = "A"', 4, "options", "", "missing"),
        ('type = "choice"\noptions = []\nkey = "A"', 8, "options", "", "1 to 64"),
        ('type = "choice"\noptions = ["A", "A"]\nkey = "A"', 8, "options", "A", "offered twice"),
        ('type = "choice"\noptions = ["A", 2]\nkey = "A"', 8, "options", "2", "holds an integer"),
        ('type = "choice"\noptions = ["A"]\nkey = "A"\nanswer = "A"', 10, "answer", "", "unknown key"),
        ('type = "choice"\noptions = ["A"]\nkey = "A"\ntolerance = 1', 10, "tolerance", "", "no such key"),
        ('type = "text"\nkey = "A"\noptions = ["A"]', 9, "options", "", "no such key"),
        ('type = "text"\nkey = ["a", " A "]', 8, "key", "a", "twice"),
        ('type = "text"\nkey = "  "', 8, "key", "", "must not be empty"),
        ('type = "text"\nkey = []', 8, "key", "", "empty"),
        ('type = "text"\nmax_length = 3\nkey = "long"', 9, "key", "long", "longer"),
        ('type = "text"\nmax_length = 8193\nkey = "a"', 8, "max_length", "8193", "whole number"),
        ('type = "text"\nmax_length = true\nkey = "a"', 8, "max_length", "True", "a boolean"),
        ('type = "number"\nkey = "1e3"', 8, "key", "1e3", "must be a number"),
        ('type = "number"\nkey = inf', 8, "key", "Infinity", "must be a number"),
        ('type = "number"\nkey = 1e999999999', 8, "key", "1E+999999999", "must be a number"),
        ('type = "number"\nkey = 1e9999999999999999999999', 8, "key", "NaN", "must be a number"),
        ('type = "number"\nkey = 2026-01-01', 8, "key", "2026-01-01", "must be a number"),
        ('type = "number"\nkey = 1\ntolerance = -0.1', 9, "tolerance", "-0.1", "negative"),
        ('type = "number"\nscores = { "1" = 1, "1.0" = 2 }', 8, "scores", "1", "twice"),
    ],
)
def test_a_wrong_item_is_named_with_line_key_value_and_rule(
    lines: str, line: int, column: str, value: str, rule: str
) -> None:
    fault = item_fault(lines)
    assert (fault.file, fault.line, fault.column) == ("i.toml", line, column)
    assert value in fault.value if value else True
    assert rule in fault.rule


@pytest.mark.parametrize(
    ("text", "line", "column", "rule"),
    [
        (HEAD, 0, "item", "at least one"),
        (HEAD + CHOICE.format("a") + CHOICE.format("a"), 11, "id", "duplicate item; the first is on line 5"),
        (HEAD + CHOICE.format("score"), 5, "id", "taken by a column"),
        (HEAD + CHOICE.format(""), 5, "id", "must not be empty"),
        (HEAD + CHOICE.format("x" * 65), 5, "id", "64 bytes"),
        (HEAD + CHOICE.format(" a"), 5, "id", "blank"),
        (HEAD + CHOICE.format("a\\nb"), 5, "id", "line end"),
        (HEAD + CHOICE.format("a").replace('domain = "d"\n', ""), 4, "domain", "missing"),
        (HEAD.replace('"1"', "1") + CHOICE.format("a"), 3, "version", "must be a string, is an integer"),
        (HEAD.replace('title = "X"\n', "") + CHOICE.format("a"), 0, "title", "missing"),
        (HEAD + 'author = "me"\n' + CHOICE.format("a"), 4, "author", "unknown key"),
        (HEAD + 'group = "a"\n' + CHOICE.format("a"), 4, "group", "list of tables"),
        (HEAD + '[[group]]\nname = "a"\nfrom = 0.1\n' + CHOICE.format("a"), 6, "from", "begins at 0"),
        (HEAD + '[[group]]\nname = "a"\nfrom = 0\nto = 1\n' + CHOICE.format("a"), 7, "to", "unknown key"),
        (HEAD + "[[group]]\nfrom = 0\n" + CHOICE.format("a"), 4, "name", "missing"),
        (HEAD + '[[group]]\nname = "a"\nfrom = 1.5\n' + CHOICE.format("a"), 6, "from", "share"),
        (HEAD + "x = [\n" + CHOICE.format("a"), 5, "3", "not valid TOML"),
        (HEAD + 'title = "Y"\n', 4, "12", "not valid TOML: Cannot overwrite a value"),
        (HEAD + 'x = """abc\n', 4, "", "not valid TOML"),
        (HEAD + "x = " + "[" * 5000, 0, "", "nested too deeply"),
        (HEAD + "x = " + "9" * 5000, 4, "", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_place_and_rule(text: str, line: int, column: str, rule: str) -> None:
    fault = faults_of(text)[0]
    assert (fault.line, fault.column) == (line, column)
    assert rule in fault.rule


@pytest.mark.parametrize("later", ["0.4", "0.5"])
def test_groups_out_of_order_are_refused(later: str) -> None:
    shares = ["0", "0.5", later]
    groups = "".join(f'[[group]]\nname = "g{n}"\nfrom = {share}\n' for n, share in enumerate(shares))
    (fault,) = faults_of(HEAD + groups + CHOICE.format("a"))
    assert (fault.line, fault.column, fault.value) == (12, "from", later)
    assert "groups out of order" in fault.rule


def test_all_faults_are_told_at_once_by_line() -> None:
    text = HEAD + 'extra = 1\n[[item]]\ntype = "choice"\noptions = ["A"]\nkey = "B"\n' + CHOICE.format("a") * 2
    text += '[[group]]\nname = "g"\nfrom = 0.5\n'
    faults = faults_of(text)
    assert [(fault.line, fault.column) for fault in faults] == [
        (4, "extra"),
        (5, "id"),
        (5, "domain"),
        (8, "key"),
        (16, "id"),
        (23, "from"),
    ]


@pytest.mark.parametrize("read", [parse_instrument, read_public_part])
def test_ten_megabytes_are_refused_unread(read: Callable[[bytes, str], object]) -> None:
    (fault,) = faults_of(HEAD.encode() + b"#" * 10_000_000, read)
    assert "10000" in fault.rule
    assert "4194304" in fault.rule


def test_another_encoding_is_refused_with_its_line() -> None:
    (fault,) = faults_of('id = "x"\ntitle = "Été"\n'.encode("latin-1"))
    assert (fault.line, fault.rule[:22]) == (2, "the file must be UTF-8")
    assert faults_of("id = 1".encode("utf-16"))[0].line == 1


def test_the_client_side_is_as_strict_about_the_public_part() -> None:
    text = HEAD + CHOICE.format("a").replace('["A", "B"]', '["A", "A"]') + "colour = 1\n"
    assert [fault.column for fault in faults_of(text, read_public_part)] == ["options", "colour"]


def test_a_byte_order_mark_and_crlf_are_accepted() -> None:
    plain = parse_instrument(SMALL, "i.toml")
    assert parse_instrument(b"\xef\xbb\xbf" + SMALL.replace(b"\n", b"\r\n"), "i.toml") == plain


def test_inline_items_are_read_though_their_lines_are_unknown() -> None:
    text = HEAD + 'item = [{ id = "a", domain = "d", type = "number", key = 1 }]\n'
    assert parse_instrument(text.encode(), "i.toml").max_score == 1
    assert faults_of(text.replace("key = 1", "kee = 1"))[0].line == 0


def test_headers_inside_a_long_string_do_not_shift_the_lines() -> None:
    text = 'title = """\\\n[[item]]\\\n"""\nid = "x"\nversion = "1"\n' + CHOICE.format("a")
    (fault,) = faults_of(text.replace('key = "A"', 'key = "Z"'))
    assert (fault.line, fault.column) == (11, "key")


def digest(text: bytes) -> bytes:
    return parse_instrument(text, "i.toml").content_digest()


def test_the_content_digest_ignores_layout_and_sees_every_change() -> None:
    assert digest(SMALL) == digest(SMALL.replace(b"\n\n", b"\n# remark\n"))
    assert digest(SMALL) == digest(SMALL.replace(b'["A", "C"]', b'["C", "A"]'))
    changes = [
        (b"petit-10", b"petit-11"),
        (b"2026-a", b"2026-b"),
        (b"from = 0.4", b"from = 0.41"),
        (b'key = "C"', b'key = "D"'),
        (b'"C" = 1', b'"C" = 1.1'),
        (b"max_score = 3", b"max_score = 4"),
        (b"tolerance = 0.5", b"tolerance = 0.6"),
        (b"max_length = 30", b"max_length = 31"),
        (b'"sujet", "verbe"', b'"verbe", "sujet"'),
    ]
    digests = {digest(SMALL.replace(old, new)) for old, new in changes}
    assert len(digests | {digest(SMALL)}) == len(changes) + 1


def test_long_numbers_keep_every_digit() -> None:
    text = HEAD + '[[item]]\nid = "i"\ndomain = "d"\ntype = "number"\nkey = "12345678901234567890123456789,50"\n'
    instrument: Instrument = parse_instrument(text.encode(), "i.toml")
    assert instrument.items[0].scores == {Decimal("12345678901234567890123456789.5"): 1}

"""Codes: which are valid, which slips are caught, and that none ever prints itself."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import secrets
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from itertools import combinations, pairwise, product
from random import Random

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from pli.codes import ALPHABET, CODE_SYMBOLS, Code, check_symbols, is_valid, new_code, parse_code
from pli.errors import CodeRefused

# GF(32) once more, by powers of α instead of by shifting: what the module is measured against.
POWERS = [1]
for _ in range(30):
    doubled = POWERS[-1] << 1
    POWERS.append(doubled ^ 0b100101 if doubled & 32 else doubled)
LOGARITHM = {value: exponent for exponent, value in enumerate(POWERS)}

SAMPLES = [new_code(Random(seed).getrandbits) for seed in range(3)]


def times(a: int, b: int) -> int:
    return POWERS[(LOGARITHM[a] + LOGARITHM[b]) % 31] if a and b else 0


def syndromes(values: tuple[int, ...]) -> tuple[int, int]:
    first = second = 0
    for index, value in enumerate(values):
        first ^= times(POWERS[index], value)
        second ^= times(POWERS[2 * index % 31], value)
    return first, second


def values_of(code: Code) -> tuple[int, ...]:
    return tuple(ALPHABET.index(symbol) for symbol in code.reveal())


def is_refused(typed: str) -> bool:
    try:
        parse_code(typed)
    except CodeRefused:
        return True
    return False


def codes() -> Iterator[Code]:
    random = Random(11)
    while True:
        yield new_code(random.getrandbits)


def leaks(code: Code, *texts: str) -> bool:
    symbols = code.reveal()
    pieces = [symbols[start : start + 4] for start in range(9)]
    return any(piece in text.upper() for text in texts for piece in pieces)


def with_error(values: tuple[int, ...], *errors: tuple[int, int]) -> tuple[int, ...]:
    changed = list(values)
    for place, error in errors:
        changed[place] ^= error
    return tuple(changed)


# Which codes there are


def test_the_powers_of_alpha_are_all_31_nonzero_symbols() -> None:
    assert sorted(POWERS) == list(range(1, 32))


@given(st.integers(0, 2**50 - 1))
def test_every_drawn_code_satisfies_both_equations_and_is_taken_back(drawn: int) -> None:
    code = new_code(lambda _bits: drawn)
    assert syndromes(values_of(code)) == (7, 19)
    assert parse_code(code.printed()) == code
    assert sum(value << (5 * index) for index, value in enumerate(values_of(code)[:10])) == drawn


@given(st.tuples(*[st.integers(0, 31)] * CODE_SYMBOLS))
def test_twelve_symbols_are_a_code_exactly_when_both_equations_hold(values: tuple[int, ...]) -> None:
    assert is_valid(values) == (syndromes(values) == (7, 19))
    body = values[:10]
    assert is_valid((*body, *check_symbols(body)))


def test_a_code_is_drawn_from_50_bits_of_the_given_source() -> None:
    asked: list[int] = []

    def source(bits: int) -> int:
        asked.append(bits)
        return secrets.randbits(bits)

    new_code(source)
    assert asked == [50]


def test_codes_that_a_person_would_try_first_are_no_codes() -> None:
    trivial = [symbol * CODE_SYMBOLS for symbol in ALPHABET]
    trivial += [(ALPHABET * 2)[start : start + CODE_SYMBOLS] for start in range(32)]
    trivial += [text[::-1] for text in trivial]
    assert [text for text in trivial if not is_refused(text)] == []


# Which slips are caught


def test_no_two_errors_cancel_out_at_any_two_places() -> None:
    # Both sums are linear: errors e at i and f at j go unseen only if αⁱe + αʲf = 0 and α²ⁱe + α²ʲf = 0.
    unseen = [
        (i, j, e, f)
        for i, j in combinations(range(CODE_SYMBOLS), 2)
        for e, f in product(range(1, 32), repeat=2)
        if times(POWERS[i], e) == times(POWERS[j], f) and times(POWERS[2 * i % 31], e) == times(POWERS[2 * j % 31], f)
    ]
    assert unseen == []
    assert all(times(POWERS[i], e) for i in range(CODE_SYMBOLS) for e in range(1, 32)), "a single error is seen"


@pytest.mark.parametrize("code", SAMPLES)
def test_every_single_and_every_double_error_is_refused(code: Code) -> None:
    values = values_of(code)
    assert is_valid(values)
    for place, error in product(range(CODE_SYMBOLS), range(1, 32)):
        assert not is_valid(with_error(values, (place, error)))
    for (i, j), e, f in product(combinations(range(CODE_SYMBOLS), 2), range(1, 32), range(1, 32)):
        assert not is_valid(with_error(values, (i, e), (j, f))), (i, j, e, f)


def test_every_single_error_is_refused_as_typed() -> None:
    typed = SAMPLES[0].reveal()
    wrong = [typed[:place] + symbol + typed[place + 1 :] for place in range(12) for symbol in ALPHABET]
    assert sum(not is_refused(text) for text in wrong) == 12, "only the 12 that change nothing are taken"


def test_every_swap_of_two_different_symbols_is_refused() -> None:
    for code in SAMPLES:
        symbols = code.reveal()
        for i, j in combinations(range(CODE_SYMBOLS), 2):
            swapped = list(symbols)
            swapped[i], swapped[j] = symbols[j], symbols[i]
            assert is_refused("".join(swapped)) == (symbols[i] != symbols[j])


def test_some_triple_errors_pass_so_the_distance_is_three_and_the_check_no_blank_refusal() -> None:
    values = values_of(SAMPLES[0])
    passing = sum(is_valid(with_error(values, (0, e), (1, f), (2, g))) for e, f, g in product(range(1, 32), repeat=3))
    assert passing == 31


@pytest.mark.parametrize("length", [0, 1, 11, 13, 24])
def test_other_lengths_are_refused(length: int) -> None:
    assert is_refused((SAMPLES[0].reveal() * 2)[:length])


# How a code may be typed


def test_case_blanks_and_hyphens_do_not_matter() -> None:
    for code in SAMPLES:
        symbols = code.reveal()
        for typed in (symbols.lower(), code.printed(), f"  {code.printed().lower()}\t", " ".join(symbols)):
            assert parse_code(typed) == code
        assert parse_code(symbols[:4] + "\u00a0" + symbols[4:8] + " - " + symbols[8:]) == code


def test_letters_that_look_like_digits_are_read_as_digits() -> None:
    code = next(code for code in codes() if "0" in code.reveal() and "1" in code.reveal())
    for one, zero in product("1IiLl", "0Oo"):
        assert parse_code(code.reveal().replace("1", one).replace("0", zero)) == code


def test_of_all_characters_only_the_alphabet_and_its_look_alikes_are_read() -> None:
    digits = {**dict.fromkeys("Oo", "0"), **dict.fromkeys("IiLl", "1")}
    symbols = SAMPLES[0].reveal()
    for character in map(chr, range(0x10000)):
        read = digits.get(character, character.upper() if character.isascii() else character)
        assert is_refused(character + symbols[1:]) == (read != symbols[0]), hex(ord(character))


@pytest.mark.parametrize(
    ("ascii_symbol", "look_alike"),
    [
        *zip("ABCEHKMPTXY", "\u0410\u0412\u0421\u0415\u041d\u041a\u041c\u0420\u0422\u0425\u04ae", strict=True),
        *zip("0189AZaz", "\uff10\uff11\uff18\uff19\uff21\uff3a\uff41\uff5a", strict=True),
        ("K", "\u212a"), ("S", "\u017f"), ("1", "\u0131"), ("0", "\u041e"), ("3", "\u0663"), ("A", "\U0001d400"),
    ],
)  # fmt: skip
def test_full_width_and_foreign_look_alikes_are_refused(ascii_symbol: str, look_alike: str) -> None:
    code = next(code for code in codes() if ascii_symbol.upper() in code.reveal())
    assert not is_refused(code.reveal())
    assert is_refused(code.reveal().replace(ascii_symbol.upper(), look_alike))


def test_long_input_is_refused_unread() -> None:
    class Unread(str):
        __slots__ = ()

        def __iter__(self) -> Iterator[str]:
            raise AssertionError("the input was read")

    with pytest.raises(CodeRefused):
        parse_code(Unread("0" * 20_000_000))
    with pytest.raises(CodeRefused):
        parse_code(SAMPLES[0].reveal() + " " * 53)


@given(st.text(max_size=64))
def test_whatever_is_typed_is_a_code_or_refused(typed: str) -> None:
    assert is_refused(typed) or len(parse_code(typed).reveal()) == CODE_SYMBOLS


def test_all_refusals_have_one_text() -> None:
    texts = set()
    for typed in ("", "0" * 12, "U" * 12, "x" * 100, "\0", SAMPLES[0].reveal()[::-1]):
        with pytest.raises(CodeRefused) as caught:
            parse_code(typed)
        texts.add(str(caught.value))
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
    assert len(texts) == 1


# What a code shows of itself


@dataclass
class Holder:
    code: Code


def test_a_code_never_prints_itself() -> None:
    code = SAMPLES[0]
    stream = StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(stream))
    logger.warning("%s %r", code, code)
    shown = [
        repr(code), str(code), format(code), format(code, ">40"), f"{code}", f"{code!r}", f"{code!s:>20}", f"{code!a}",
        "{} {!r:>9}".format(*[code, code]), *[template % (code,) for template in ("%s", "%r", "%20s", "%a")],
        f"{[code]} {(code,)} { {code: code} }",
        str(Holder(code)), stream.getvalue(), str(CodeRefused(f"{code}")),
        str(structlog.processors.JSONRenderer()(None, "", {"code": code})),
    ]  # fmt: skip
    assert not leaks(code, *shown)
    assert all("Code(…)" in text or "Code(\\u2026)" in text for text in shown)


def test_a_code_is_not_in_a_traceback_with_its_variables() -> None:
    code = SAMPLES[0]

    def fail(held: Code) -> None:
        raise ValueError(f"about {held}")

    try:
        fail(code)
    except ValueError as error:
        text = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "held = Code(…)" in text
    assert not leaks(code, text)


def test_a_code_is_neither_pickled_nor_copied_nor_written_as_json() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(SAMPLES[0], protocol)
    with pytest.raises(TypeError):
        copy.deepcopy(SAMPLES[0])
    with pytest.raises(TypeError):
        json.dumps(SAMPLES[0])
    with pytest.raises(TypeError):
        vars(SAMPLES[0])


def test_the_check_for_leaks_sees_a_leak() -> None:
    assert all(leaks(code, f"… {code.printed()} …") and leaks(code, code.reveal().lower()) for code in SAMPLES)
    assert len({code.reveal() for code in SAMPLES}) == 3
    assert all(a != b for a, b in pairwise(SAMPLES))

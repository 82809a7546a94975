"""Codes that people type: 10 random symbols and 2 check symbols of Crockford base32.

The check symbols solve, over GF(32) with x⁵+x²+1 and α = 2,

    Σ αⁱ·cᵢ = 7   and   Σ α²ⁱ·cᵢ = 19     for i = 0 … 11,

which is a Reed-Solomon code of distance 3: every single and every double error, hence every swap of
two symbols, is refused without a look-up. The constants 7 and 19 keep `0000-0000-0000` and the like
from being codes.
"""

from __future__ import annotations

from collections.abc import Callable

from pli.errors import CodeRefused

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford base32: no I, L, O, U."""

BODY_SYMBOLS = 10
"""50 random bits: with 830 000 live codes, 1 % success needs 13.6 million guesses."""

CODE_SYMBOLS = 12
MAX_TYPED_CHARACTERS = 64
"""More than any way of writing 12 symbols with separators; longer input is refused unread."""

_SUM_1, _SUM_2 = 7, 19
_POLYNOMIAL = 0b100101


def _multiply(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 32:
            a ^= _POLYNOMIAL
        b >>= 1
    return product


def _power(exponent: int) -> int:
    result = 1
    for _ in range(exponent % 31):
        result = _multiply(result, 2)
    return result


_WEIGHTED_1 = tuple(tuple(_multiply(_power(i), c) for c in range(32)) for i in range(CODE_SYMBOLS))
_WEIGHTED_2 = tuple(tuple(_multiply(_power(2 * i), c) for c in range(32)) for i in range(CODE_SYMBOLS))

# The two sums over the body leave a 2 × 2 system for c₁₀ and c₁₁; its inverse is one table look-up.
_SOLVED = {
    (_WEIGHTED_1[10][a] ^ _WEIGHTED_1[11][b], _WEIGHTED_2[10][a] ^ _WEIGHTED_2[11][b]): (a, b)
    for a in range(32)
    for b in range(32)
}

_VALUE = {symbol: value for value, symbol in enumerate(ALPHABET)}
_TYPED = {
    **_VALUE,
    **{symbol.lower(): value for symbol, value in _VALUE.items()},
    "O": 0,
    "o": 0,
    "I": 1,
    "i": 1,
    "L": 1,
    "l": 1,
}
_DROPPED = frozenset(" -\t\u00a0")


class Code:
    """A normalised code with right check symbols. Prints as `Code(…)`; `reveal` gives the symbols."""

    __slots__ = ("_symbols",)

    def __init__(self, symbols: str) -> None:
        self._symbols = symbols

    def reveal(self) -> str:
        """The 12 normalised symbols, without hyphens."""
        return self._symbols

    def printed(self) -> str:
        """`XXXX-XXXX-XXXX`, as on paper."""
        s = self._symbols
        return f"{s[:4]}-{s[4:8]}-{s[8:]}"

    def __repr__(self) -> str:
        return "Code(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a code is not pickled")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Code) and self._symbols == other._symbols

    def __hash__(self) -> int:
        return hash(self._symbols)


def check_symbols(body: tuple[int, ...]) -> tuple[int, int]:
    """The two check symbols (0 … 31) of a body of 10 symbol values (0 … 31)."""
    sum_1, sum_2 = _SUM_1, _SUM_2
    for index, value in enumerate(body):
        sum_1 ^= _WEIGHTED_1[index][value]
        sum_2 ^= _WEIGHTED_2[index][value]
    return _SOLVED[sum_1, sum_2]


def is_valid(values: tuple[int, ...]) -> bool:
    """Whether 12 symbol values satisfy both check equations."""
    if len(values) != CODE_SYMBOLS:
        return False
    sum_1 = sum_2 = 0
    for index, value in enumerate(values):
        sum_1 ^= _WEIGHTED_1[index][value]
        sum_2 ^= _WEIGHTED_2[index][value]
    return sum_1 == _SUM_1 and sum_2 == _SUM_2


def new_code(random_bits: Callable[[int], int]) -> Code:
    """Draws a code. `random_bits(k)` returns k random bits (`secrets.randbits` in production)."""
    drawn = random_bits(5 * BODY_SYMBOLS)
    body = tuple((drawn >> (5 * index)) & 31 for index in range(BODY_SYMBOLS))
    return Code("".join([ALPHABET[value] for value in (*body, *check_symbols(body))]))


def parse_code(typed: str) -> Code:
    """The code behind what a person typed.

    Case, blanks and hyphens do not matter; O reads as 0, I and L as 1. Nothing else is corrected.

    Raises:
        CodeRefused: anything else, with one message for all reasons.
    """
    if len(typed) > MAX_TYPED_CHARACTERS:
        raise CodeRefused(REFUSAL)
    values = [_TYPED.get(symbol, -1) for symbol in typed if symbol not in _DROPPED]
    if -1 in values or not is_valid(tuple(values)):
        raise CodeRefused(REFUSAL)
    return Code("".join([ALPHABET[value] for value in values]))


REFUSAL = "this code opens no session; check it symbol by symbol, and ask for help if it is as printed"
"""One text whether a code is mistyped, unknown, revoked or finished elsewhere."""

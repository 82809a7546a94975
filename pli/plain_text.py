"""Which characters text from people may hold, in answers and in files.

Refused are NUL and the other C0 and C1 controls except line feed and tab, the characters that
override or isolate the direction of writing (Unicode TR 36, 3.1: they make a text read as another
one), and long runs of combining marks (UAX #15, "Stream-Safe Text Format": at most 30 in a row).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MAX_MARKS: Final = 30
"""Combining marks in a row, UAX #15-D4."""

_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

# Every combining mark is at U+0300 or above, so Latin text never reaches the slow look.
_LONG_RUN = re.compile(f"[\u0300-\U0010ffff]{{{MAX_MARKS + 1},}}")


def has_forbidden_text(text: str) -> bool:
    """Whether `text` holds something that no answer and no name may hold."""
    if text.isascii() and text.isprintable():
        return False
    if _FORBIDDEN.search(text):
        return True
    return any(_has_long_run_of_marks(run.group()) for run in _LONG_RUN.finditer(text))


def _has_long_run_of_marks(text: str) -> bool:
    length = 0
    for character in text:
        length = length + 1 if unicodedata.category(character)[0] == "M" else 0
        if length > MAX_MARKS:
            return True
    return False

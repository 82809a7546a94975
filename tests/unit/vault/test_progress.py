"""Sets of block numbers, as progress keeps them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vault.progress import Numbers

NUMBERS = st.sets(st.integers(1, 40))


@given(NUMBERS, NUMBERS)
def test_a_set_grown_in_steps_is_the_set_of_all(first: set[int], second: set[int]) -> None:
    found = Numbers().with_more(first).with_more(second)
    assert {number for number in range(50) if number in found} == first | second
    assert len(found) == len(first | second)
    assert found == Numbers().with_more(first | second), "one form for one set"


@given(NUMBERS)
def test_a_set_survives_storage(numbers: set[int]) -> None:
    found = Numbers().with_more(numbers)
    assert Numbers.read(found.contiguous, found.packed_extras()) == found


@given(NUMBERS)
def test_extras_never_touch_what_is_contiguous(numbers: set[int]) -> None:
    found = Numbers().with_more(numbers)
    assert all(number > found.contiguous + 1 for number in found.extras)

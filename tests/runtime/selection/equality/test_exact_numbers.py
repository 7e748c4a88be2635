"""Rational numbers, read exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.selection.equality.exact_numbers import Number, TooLarge, read_number
from stepscore.selection.equality.spelling import plain

WHOLE = st.integers(0, 10**9)


def value(text: str) -> Fraction | None:
    number = read_number(plain(text))
    return None if number is None else number.value


@given(st.fractions())
def test_a_fraction_reads_as_itself_in_every_notation(number: Fraction) -> None:
    above, below = number.numerator, number.denominator
    assert value(f"{above}/{below}") == number
    assert value(rf"\frac{{{above}}}{{{below}}}") == number
    assert value(rf"\dfrac{{{above}}}{{{below}}}") == number
    assert value(rf"{above} \div {below}") == number


@given(WHOLE, st.integers(1, 99), st.integers(2, 100))
def test_a_mixed_number_is_a_sum(whole: int, above: int, below: int) -> None:
    if above < below:
        expected = whole + Fraction(above, below)
        assert value(rf"{whole}\frac{{{above}}}{{{below}}}") == expected
        assert value(f"-{whole} {above}/{below}") == -expected


@given(st.integers(), st.integers(0, 12))
def test_a_decimal_is_exact(digits: int, decimals: int) -> None:
    number = Fraction(digits, 10**decimals)
    whole, rest = divmod(abs(digits), 10**decimals)
    text = f"{'-' * (digits < 0)}{whole}" + (f".{rest:0{decimals}}" if decimals else "")
    assert value(text) == number
    assert value(f"{text}e-3") == number / 1000
    assert value(rf"{text}\times 10^{{5}}") == number * 10**5


@given(WHOLE, st.text("0123456789", max_size=4), st.text("0123456789", min_size=1, max_size=4))
def test_a_repeating_decimal_is_a_fraction(whole: int, start: str, block: str) -> None:
    expected = whole + Fraction(
        int((start or "0") + block) - int(start or "0"), 10 ** len(start) * (10 ** len(block) - 1)
    )
    assert value(rf"{whole}.{start}\overline{{{block}}}") == expected
    assert value(f"{whole}.{start}({block})") == expected


@given(WHOLE)
def test_separators_of_thousands_change_nothing(number: int) -> None:
    for separator in (",", "{,}", r"\,", r"\;", "\u2009", "\u202f", r",\!"):
        assert value(f"{number:,}".replace(",", separator)) == number


@pytest.mark.parametrize(
    "text",
    ["", "x", "1,23", "1/0", "5!!!", "(2", "2)", "0^0", "1:2", "7\\pi", "2\\sqrt{3}", ".", "-", "1 2 3"],
)
def test_what_is_not_a_rational_number_is_not_read(text: str) -> None:
    assert value(text) is None


@pytest.mark.parametrize(
    "text", ["2^{9^9}", "(10^6)!", "9^{9^{9^9}}", "1e999999", "2^{-10^9}", "3!!!" + "!" * 9]
)
def test_a_number_of_too_many_digits_is_not_computed(text: str) -> None:
    try:
        assert value(text) is None
    except TooLarge:
        pass
    else:
        assert "!!" in text


@given(st.text("0123456789+-*/^!.,(){}\\ esqrtfac_", max_size=30))
def test_any_text_is_read_or_not(text: str) -> None:
    try:
        found = read_number(text)
    except TooLarge:
        return
    assert found is None or isinstance(found, Number)


def test_a_long_decimal_keeps_its_number_of_digits() -> None:
    assert read_number("0.333333") == Number(Fraction(333333, 10**6), 6)
    assert read_number("0.33") == Number(Fraction(33, 100))
    assert read_number("0.000000") == Number(Fraction(0))

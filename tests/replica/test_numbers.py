from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerocache.replica.numbers import decode_bool, decode_float, decode_numeric


def same(left: object, right: object) -> bool:
    return type(left) is type(right) and left == right


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("1.1", 1.1),
        ("1", 1),
        ("-0", 0),
        ("1e+15", 10**15),
        ("9007199254740991", 2**53 - 1),
        ("9007199254740992", 9007199254740992.0),
        ("1e+300", 1e300),
        ("NaN", None),
        ("Infinity", None),
        ("-Infinity", None),
    ],
)
def test_float(text: str, stored: object) -> None:
    assert same(decode_float(text), stored)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("0", 0),
        ("1.00", 1),
        ("-12.5", -12.5),
        ("0.000", 0),
        ("9007199254740993", 9007199254740993),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775808", 9223372036854775808.0),
        ("12345678901234567890.50", 12345678901234567890.5),
        ("1" + "0" * 400, None),
        ("NaN", None),
        ("-Infinity", None),
    ],
)
def test_numeric(text: str, stored: object) -> None:
    assert same(decode_numeric(text), stored)


@given(st.decimals(-(10**25), 10**25, places=6))
def test_numeric_is_exact_when_integral_and_nearest_otherwise(number: Decimal) -> None:
    stored = decode_numeric(format(number, "f"))
    integral = number == number.to_integral_value()
    exact = integral and -(2**63) <= number < 2**63
    assert stored == (int(number) if exact else float(number))
    assert isinstance(stored, int) == exact


def test_numeric_of_thousands_of_digits_is_not_refused() -> None:
    assert decode_numeric("9" * 6000) is None
    assert decode_numeric("9" * 200) == float("9" * 200)


def test_bool() -> None:
    assert (decode_bool("t"), decode_bool("f")) == (1, 0)


def test_numeric_of_any_length() -> None:
    """Postgres has up to 131072 digits before the point; Python's int() gives up at 4300."""
    assert decode_numeric("9" * 300) == float("1e300")
    assert decode_numeric("-" + "9" * 5_000) is None
    assert decode_numeric("0." + "0" * 5_000 + "1") == 0

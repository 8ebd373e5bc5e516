"""Text forms of Postgres numbers and booleans.

Owns how a number becomes an SQLite INTEGER or REAL: integral values are INTEGER wherever that loses
nothing, so that ``1`` has one stored form whatever its upstream type.
"""

from __future__ import annotations

from math import inf

_MAX_SAFE = 2**53 - 1
_MAX_INT64 = 2**63 - 1
_MAX_INT64_LENGTH = len(str(-_MAX_INT64 - 1))


def decode_bool(text: str) -> int:
    return 1 if text == "t" else 0


def decode_float(text: str) -> int | float | None:
    """float4 and float8 from their shortest decimal text.

    Beyond 2^53 a double names a range of integers; it stays REAL, since as INTEGER it would look
    like an exact value no client can hold.
    """
    return stored_float(float(text))


def stored_float(number: float) -> int | float | None:
    """As :func:`decode_float` for a value that is a double already."""
    if number.is_integer():
        return int(number) if -_MAX_SAFE <= number <= _MAX_SAFE else number
    return _finite(number)


def decode_numeric(text: str) -> int | float | None:
    """numeric: exact if integral and within 64 bits, else the nearest double."""
    whole, _, fraction = text.partition(".")
    if not fraction.strip("0") and whole.lstrip("-").isdigit():
        # Longer ones cannot fit, and Python refuses to read very long ones.
        integer = int(whole) if len(whole) <= _MAX_INT64_LENGTH else None
        if integer is not None and -_MAX_INT64 - 1 <= integer <= _MAX_INT64:
            return integer
    return _finite(float(text))


def _finite(number: float) -> float | None:
    return number if -inf < number < inf else None

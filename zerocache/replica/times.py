"""Text forms of Postgres dates and times (``DateStyle=ISO``) as milliseconds.

Owns the calendar arithmetic: proleptic Gregorian over the whole range Postgres has (4713 BC to
294276 AD), offsets with seconds included. The usual case goes through the standard library, which
knows years 1 to 9999 only; everything else through :func:`_days_from_civil`. Infinite values become
None.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

DAY_MS = 86_400_000
_DAY_US = DAY_MS * 1_000
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_EPOCH = datetime(1970, 1, 1)
_EPOCH_UTC = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_INFINITIES = frozenset({"infinity", "-infinity"})
_STAMP = re.compile(
    r"(\d{4,})-(\d\d)-(\d\d)"
    r"(?: (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?"
    r"(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?"
    r"( BC)?",
    re.ASCII,
)
_TIME = re.compile(
    r"(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?", re.ASCII
)


def decode_date(text: str) -> int | None:
    """Milliseconds between the epoch and UTC midnight of that day."""
    if len(text) == 10 and text[4] == "-":
        return (date.fromisoformat(text).toordinal() - _EPOCH_ORDINAL) * DAY_MS
    micros = _parse_stamp(text)
    return None if micros is None else micros // 1_000


def decode_timestamp(text: str) -> int | float | None:
    """timestamp and timestamptz: milliseconds since the epoch, microseconds as a fraction."""
    if text[-3:] == "+00" and text[4] == "-":
        # Connections run in UTC.
        micros = (datetime.fromisoformat(text) - _EPOCH_UTC) // _MICROSECOND
    elif len(text) <= 26 and text[4] == "-" and text[-1] != "C":
        moment = datetime.fromisoformat(text)
        micros = (moment - (_EPOCH if moment.tzinfo is None else _EPOCH_UTC)) // _MICROSECOND
    else:
        parsed = _parse_stamp(text)
        if parsed is None:
            return None
        micros = parsed
    return stored_micros(micros)


def stored_micros(micros: int) -> int | float:
    """Milliseconds of a moment in microseconds since the epoch."""
    # Division of integers rounds correctly, so equal moments have equal stored values.
    return micros // 1_000 if micros % 1_000 == 0 else micros / 1_000


def decode_time(text: str) -> int:
    """time and timetz: whole milliseconds since midnight UTC, microseconds cut off.

    ``24:00:00`` is a legal time and stays 86 400 000; other results wrap into one day.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time as Postgres prints it under DateStyle=ISO")
    hours, minutes, seconds, fraction, sign, *offset = match.groups()
    millis = _seconds(hours, minutes, seconds) * 1_000
    if fraction is not None:
        millis += int(fraction.ljust(6, "0")) // 1_000
    if sign is not None:
        millis -= _signed(sign, _seconds(*offset)) * 1_000
    return millis if millis == DAY_MS else millis % DAY_MS


def _parse_stamp(text: str) -> int | None:
    """Microseconds since the epoch of any date or timestamp; None if it is infinite."""
    if text in _INFINITIES:
        return None
    match = _STAMP.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a date or timestamp as Postgres prints it (ISO)")
    year, month, day, hours, minutes, seconds, fraction, sign, *offset, bc = match.groups()
    civil_year = 1 - int(year) if bc else int(year)
    micros = _days_from_civil(civil_year, int(month), int(day)) * _DAY_US
    if hours is not None:
        micros += _seconds(hours, minutes, seconds) * 1_000_000
    if fraction is not None:
        micros += int(fraction.ljust(6, "0"))
    if sign is not None:
        micros -= _signed(sign, _seconds(*offset)) * 1_000_000
    return micros


def _seconds(hours: str, minutes: str | None, seconds: str | None) -> int:
    return int(hours) * 3_600 + int(minutes or 0) * 60 + int(seconds or 0)


def _signed(sign: str, amount: int) -> int:
    return -amount if sign == "-" else amount


def _days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the proleptic Gregorian calendar; year 0 is 1 BC.

    Counts in years that begin in March, so that the leap day is the last day of a year, and in
    eras of 400 years, which all have 146 097 days.
    """
    shifted = year - (month <= 2)
    era, year_of_era = divmod(shifted, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * 146_097 + day_of_era - 719_468

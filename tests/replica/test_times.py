from datetime import datetime, timedelta
from fractions import Fraction

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerocache.replica.times import decode_date, decode_time, decode_timestamp


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("1970-01-01", 0),
        ("0001-01-01", -62_135_596_800_000),
        ("0001-01-01 BC", -62_167_219_200_000),
        ("0044-03-15 BC", -63_517_824_000_000),
        ("10000-01-01", 253_402_300_800_000),
        ("infinity", None),
        ("-infinity", None),
    ],
)
def test_date(text: str, stored: int | None) -> None:
    assert decode_date(text) == stored


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("1970-01-01 00:00:00", 0),
        ("2019-01-12 00:30:35.381101+01", 1_547_249_435_381.101),
        ("2019-01-12 00:30:35.38+00", 1_547_253_035_380),
        ("1969-12-31 23:59:59.9995", -0.5),
        ("2000-01-01 00:00:00+05:30", 946_665_000_000),
        ("1890-01-01 00:00:00+00:19:32", -2_524_522_772_000),
        ("0001-06-15 12:00:00 BC", -62_152_833_600_000),
        ("0001-06-15 12:00:00+00 BC", -62_152_833_600_000),
        ("10000-01-01 00:00:00.000001+00", 253_402_300_800_000.001),
        ("infinity", None),
    ],
)
def test_timestamp(text: str, stored: float | None) -> None:
    decoded = decode_timestamp(text)
    assert decoded == stored
    assert type(decoded) is type(stored)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("00:00:00", 0),
        ("24:00:00", 86_400_000),
        ("24:00:00+02", 79_200_000),
        ("24:00:00+00", 86_400_000),
        ("23:00:00-01", 86_400_000),
        ("12:34:56.7891", 45_296_789),
        ("23:59:59.999999", 86_399_999),
        ("01:00:00+02", 82_800_000),
        ("23:30:00-02:30", 7_200_000),
        ("00:19:32+00:19:32", 0),
    ],
)
def test_time(text: str, stored: int) -> None:
    assert decode_time(text) == stored


@pytest.mark.parametrize("text", ["12.01.2019", "", "2019-01-12T", "24:00"])
def test_other_date_styles_are_refused(text: str) -> None:
    for decode in (decode_date, decode_time):
        with pytest.raises(ValueError):
            decode(text)


@given(st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31)))
def test_usual_path_and_general_path_agree(moment: datetime) -> None:
    text = moment.isoformat(" ")
    shifted = text.replace(text[:4], f"{moment.year:04}", 1)
    exact = Fraction((moment - datetime(1970, 1, 1)) // timedelta(microseconds=1), 1000)
    decoded = decode_timestamp(shifted)
    assert decoded == (int(exact) if exact.denominator == 1 else float(exact))


def test_values_of_a_real_server(database: str) -> None:
    """Postgres itself is the oracle, over the whole range of its calendar."""
    query = """
        SELECT ts::text, ts::timestamptz::text, ts::date::text,
               (extract(epoch FROM ts) * 1000)::text,
               (extract(epoch FROM ts::date) * 1000)::text
        FROM (SELECT timestamp '4713-01-01 BC' + n * interval '7 months 3 days 11.654321 seconds'
              FROM generate_series(0, 120000, 13) n
              UNION ALL SELECT timestamp '294276-12-31 23:59:59.999999') AS t (ts)
    """
    with psycopg.connect(database, options="-c TimeZone=UTC -c DateStyle=ISO") as connection:
        rows = connection.execute(query).fetchall()
    assert len(rows) > 9_000
    for stamp, with_zone, day, stamp_ms, day_ms in rows:
        expected = float(Fraction(stamp_ms))
        assert decode_timestamp(stamp) == expected
        assert decode_timestamp(with_zone) == expected
        assert decode_date(day) == int(Fraction(day_ms))


def test_times_with_offsets_of_a_real_server(database: str) -> None:
    query = """
        SELECT t::text, (extract(epoch FROM t AT TIME ZONE 'UTC') * 1000)::text
        FROM (SELECT (time '00:00' + n * interval '1237.123456 seconds')::text
                     || to_char((n % 15), 'SG00') || ':' || to_char(n % 60, 'FM00')
                     || ':' || to_char(n % 31, 'FM00')
              FROM generate_series(0, 3000) n) AS s (text), LATERAL CAST(s.text AS timetz) AS t
    """
    with psycopg.connect(database, options="-c TimeZone=UTC") as connection:
        rows = connection.execute(query).fetchall()
    for text, millis in rows:
        assert decode_time(text) == int(Fraction(millis))

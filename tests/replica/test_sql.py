import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerocache.replica.sql import equals_all, literal, placeholders, quote, quote_all

names = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1)


@given(names)
def test_quoted_identifier_names_exactly_that_column(name: str) -> None:
    connection = apsw.Connection(":memory:")
    connection.execute(f"CREATE TABLE t ({quote(name)})")
    assert [row[1] for row in connection.execute("PRAGMA table_info(t)")] == [name]


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))
def test_literal_evaluates_to_its_text(text: str) -> None:
    connection = apsw.Connection(":memory:")
    assert connection.execute(f"SELECT {literal(text)}").fetchone() == (text,)


@pytest.mark.parametrize("name", ["", "a\x00b"])
def test_names_sqlite_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be an SQLite identifier"):
        quote(name)


def test_literal_with_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        literal("a\x00")


def test_lists() -> None:
    assert quote_all(["a", 'b"c']) == '"a", "b""c"'
    assert placeholders(3) == "?, ?, ?"
    assert equals_all(["a", "b"]) == '"a" IS ? AND "b" IS ?'


def test_equality_condition_uses_an_index() -> None:
    connection = apsw.Connection(":memory:")
    connection.execute("CREATE TABLE t (a, b)")
    connection.execute("CREATE UNIQUE INDEX i ON t (a, b)")
    sql = f"EXPLAIN QUERY PLAN SELECT * FROM t WHERE {equals_all(['a', 'b'])}"  # noqa: S608
    plan = connection.execute(sql, (1, 2)).fetchall()
    assert "INDEX i (a=? AND b=?)" in str(plan[0][3])


def test_a_condition_on_2000_columns_is_not_too_deep() -> None:
    connection = apsw.Connection(":memory:")
    names = [f"c{i}" for i in range(1_999)]
    connection.execute(f"CREATE TABLE t ({quote_all(names)})")
    insert = f"INSERT INTO t VALUES ({placeholders(1_999)})"  # noqa: S608 - question marks
    connection.execute(insert, [*range(1_998), None])
    select = f"SELECT count(*) FROM t WHERE {equals_all(names)}"  # noqa: S608 - quoted
    assert connection.execute(select, [*range(1_998), None]).fetchall() == [(1,)]
    for at in (0, 1_000, 1_998):
        values: list[int | None] = [*range(1_998), None]
        values[at] = -1
        assert connection.execute(select, values).fetchall() == [(0,)]

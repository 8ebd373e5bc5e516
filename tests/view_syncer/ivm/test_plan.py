"""Plans: how much a window keeps in reserve, by what it costs to fetch it again."""

from __future__ import annotations

import pytest

from tests.view_syncer.ivm.cases import c, q, rel
from view_syncer.ivm.plan import COSTLY_WINDOW_RESERVE, WINDOW_RESERVE, make_plan
from zerocache.replica.schema import ReplicaColumn, ReplicaTable
from zerocache.zql import ast
from zerocache.zql.shape import lift

_COLUMNS = {name: ReplicaColumn(name, "int4", "number") for name in ("id", "p", "v", "w")}
_KEYS = (("id",),)


def _reserve(query: ast.Query, level: int, *indexes: tuple[str, ...]) -> int:
    schema = {
        "parent": ReplicaTable("parent", _COLUMNS, _KEYS),
        "child": ReplicaTable("child", _COLUMNS, _KEYS, indexes=indexes),
    }
    return make_plan(lift(query, schema, {}).shape, schema).levels[level].reserve


_BY_V = q("child", order="v↓", limit=500)
_OF_P = q("child", order="v↓", limit=500, where=c("p", "=", 1))
_OF_PARENT = q("parent", rel=[rel("child", "id=p", order="v↓", limit=500)])


@pytest.mark.parametrize(
    ("query", "level", "indexes", "costly"),
    [
        (q("child", limit=500), 0, (), False),
        (_BY_V, 0, (), True),
        (_BY_V, 0, (("v",),), False),
        (_BY_V, 0, (("v", "w"),), False),
        (_BY_V, 0, (("w", "v"),), True),
        (_OF_P, 0, (("p",),), True),
        (_OF_P, 0, (("v",),), False),
        (_OF_P, 0, (("p", "v"),), False),
        (_OF_P, 0, (("p", "w", "v"),), True),
        (_OF_PARENT, 1, (), True),
        (_OF_PARENT, 1, (("v",),), True),
        (_OF_PARENT, 1, (("p",),), False),
        (_OF_PARENT, 1, (("p", "v"),), False),
    ],
)
def test_a_window_that_no_index_begins_has_a_large_reserve(
    query: ast.Query, level: int, indexes: tuple[tuple[str, ...], ...], costly: bool
) -> None:
    expected = COSTLY_WINDOW_RESERVE if costly else WINDOW_RESERVE
    assert _reserve(query, level, *indexes) == expected


@pytest.mark.parametrize(("limit", "reserve"), [(0, 1), (1, 1), (5, 5), (50, 50), (500, 100)])
def test_a_reserve_is_never_larger_than_its_window(limit: int, reserve: int) -> None:
    assert _reserve(q("child", order="v↑", limit=limit), 0) == reserve

"""The differential-test corpus (zql.md §7): every case commit by commit, and in one step.

The method is that of §7.1 with :mod:`naive` as the oracle. A case fails if a row is missing, too
many, stale, or if an effect is not the one the specification lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.view_syncer.ivm.cases import (
    TABLES,
    Case,
    all_of,
    c,
    changes,
    ex,
    label,
    q,
    rel,
    seed_rows,
)
from tests.view_syncer.ivm.corpus import CASES
from tests.view_syncer.ivm.group import Group
from tests.view_syncer.ivm.naive import Identity, Naive
from tests.view_syncer.ivm.replica import Change, Replica, client_tables
from view_syncer.ivm.engine import Engine
from zerocache.zql import ast
from zerocache.zql.permissions import apply_read_permissions

CLIENT = client_tables(TABLES)
KEYS = {name: table.key for name, table in TABLES.items()}
Held = dict[Identity, dict[str, Any]]


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "seed.db"
    Replica(path, TABLES, seed_rows()).close()
    return path


class Play:
    """One case on a replica of its own."""

    def __init__(self, seed: Path, folder: Path, queries: list[ast.Query]) -> None:
        self.replica = Replica(folder / "replica.db", TABLES, seed_rows(), template=seed)
        self.engine = Engine(self.replica.path)
        self.group = Group(self.engine, CLIENT)
        self.queries = {f"q{i}": query for i, query in enumerate(queries)}
        for name, query in self.queries.items():
            self.group.add(name, query)
        self.held = self.now()

    def now(self) -> Held:
        """The client's rows by identity; fails if they are not what they may and must be."""
        held: Held = {}
        for (table, _), row in self.group.store.items():
            held[table, tuple(row[c] for c in KEYS[table])] = row
        self._check(held)
        return held

    def _check(self, held: Held) -> None:
        rows = self.replica.rows
        naive = Naive({t: by_key.values() for t, by_key in rows.items()}, KEYS)
        allowed: set[Identity] = set()
        for query in self.queries.values():
            assert naive.result(query) <= held.keys()
            assert naive.unexplained(query, set(held)) == set()
            allowed |= naive.may(query)
        assert held.keys() <= allowed
        for (table, key), row in held.items():
            assert row == rows[table][key]

    def commit(self, *transactions: str) -> str:
        """Commit, advance, and say what that did to the client."""
        before = self.held
        for changes_ in self._parsed(transactions):
            self.replica.commit(changes_)
        self.group.advance()
        self.held = self.now()
        return effects(before, self.held)

    def _parsed(self, transactions: tuple[str, ...]) -> Iterator[list[Change]]:
        for text in transactions:
            yield changes(text, self.replica)

    def close(self) -> None:
        self.engine.close()
        self.replica.close()


def effects(before: Held, after: Held) -> str:
    """``+`` newly held, ``-`` no longer held, ``~`` held with other contents."""
    found = [f"+{label(*i)}" for i in after.keys() - before.keys()]
    found += [f"-{label(*i)}" for i in before.keys() - after.keys()]
    found += [f"~{label(*i)}" for i in after.keys() & before.keys() if after[i] != before[i]]
    return " ".join(sorted(found)) or "0"


def matches(found: str, expected: str) -> bool:
    """A ``w`` allows what is not listed; the oracle has judged it already."""
    listed = set(expected.split()) - {"w", "0"}
    seen = set(found.split()) - {"0"}
    return listed <= seen if "w" in expected.split() else listed == seen


@pytest.fixture
def play(seed: Path, tmp_path: Path) -> Iterator[Any]:
    plays: list[Play] = []

    def start(queries: list[ast.Query]) -> Play:
        plays.append(Play(seed, tmp_path, queries))
        return plays[-1]

    yield start
    for one in plays:
        one.close()


def _initial(played: Play) -> str:
    return " ".join(sorted(label(*identity) for identity in played.held))


@pytest.mark.parametrize("name", CASES)
def test_case_commit_by_commit(play: Any, name: str) -> None:
    case: Case = CASES[name]
    played = play(case.queries)
    assert matches(_initial(played), case.initial)
    for commit, expected in case.commits:
        found = played.commit(commit)
        assert matches(found, expected), f"{commit}: {found}, not {expected}"


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.commits])
def test_case_with_all_commits_in_one_step(play: Any, name: str) -> None:
    case: Case = CASES[name]
    played = play(case.queries)
    played.commit(*(commit for commit, _ in case.commits))
    fresh = Group(played.engine, CLIENT)
    for query_name, query in played.queries.items():
        fresh.add(query_name, query)
    assert fresh.store == played.group.store


# -- permissions (§7.7) --------------------------------------------------------------------------

_ANYONE = [["allow", {"type": "and", "conditions": []}]]
_SECRET = {
    "type": "correlatedSubquery",
    "op": "EXISTS",
    "related": {
        "system": "permissions",
        "correlation": {"parentField": ["id"], "childField": ["task"]},
        "subquery": {
            "table": "secret",
            "alias": "s",
            "where": {
                "type": "simple",
                "op": "=",
                "left": {"type": "column", "name": "level"},
                "right": {"type": "literal", "value": 2},
            },
        },
    },
}
_OWN = {
    "type": "simple",
    "op": "=",
    "left": {"type": "column", "name": "owner"},
    "right": {"type": "static", "anchor": "authData", "field": "sub"},
}
PERMISSIONS = {
    "tables": {
        "task": {"row": {"select": [["allow", _OWN], ["allow", _SECRET]]}},
        "note": {"row": {"select": _ANYONE}},
        "person": {"row": {"select": _ANYONE}},
        "tag": {"row": {"select": []}},
    }
}
PERMISSION_CASES = {
    "P1": (q("task"), "u1", "t1 t2 t4", [("s2.level:=3", "-t2"), ("ins s3(t5,2)", "+t5")]),
    "P2": (q("task"), None, "t2", []),
    "P3": (q("tag"), "u1", "", []),
    "P4": (q("account"), "u1", "", []),
    "P5": (q("note", ex("task")), "u1", "n1 n2 n3 n4 t1 t2", [("t5.owner:=u1", "+n5 +t5")]),
    "P6": (q("note", rel=[rel("task")]), "u1", "n1 n2 n3 n4 n5 t1 t2", [("del s2", "-t2")]),
}


@pytest.mark.parametrize("name", PERMISSION_CASES)
def test_permission_case(play: Any, name: str) -> None:
    query, subject, initial, commits = PERMISSION_CASES[name]
    claims = {} if subject is None else {"sub": subject}
    played = play([apply_read_permissions(query, PERMISSIONS, claims)])
    assert matches(_initial(played), initial)
    for commit, expected in commits:
        assert matches(played.commit(commit), expected)


# -- system-level cases that take more than commits (§7.8) ----------------------------------------


def test_x8_unique_values_swapped_between_rows_show_no_transient_deletion(play: Any) -> None:
    played = play([q("task_tag", rel=[rel("tag")])])
    found = played.commit(
        "t1-g1=>x-x, t5-g2=>t1-g1, x-x=>t5-g2", "g1.label:=tmp, g2.label:=red, g1.label:=blue"
    )
    assert found == "~g1 ~g2"


def test_x8_keys_rotated_among_three_rows_give_one_put_each(play: Any) -> None:
    played = play([q("task", c("id", "IN", ["t1", "t2", "t5"]))])
    found = played.commit("t1=>t0, t2=>t1, t5=>t2, t0=>t5")
    assert found == "~t1 ~t2 ~t5"
    assert sorted(op["op"] for op in played.group.last) == ["del"] * 3 + ["put"] * 3


def test_x9_a_key_freed_taken_by_another_row_and_put_again_elsewhere(play: Any) -> None:
    played = play([q("task")])
    assert played.commit("del t1, ins t9(u1,u2,10,a), ins t1(u1,u2,11,b)") == "+t9 ~t1"


def test_x13_removing_a_query_deletes_only_what_no_other_query_holds(play: Any) -> None:
    played = play([q("task", c("owner", "=", "u1")), q("task", c("rank", ">=", 20))])
    before = played.held
    played.group.remove("q1")
    del played.queries["q1"]
    assert effects(before, played.now()) == "-t2 -t5"


def test_x14_adding_a_query_whose_rows_are_held_changes_nothing(play: Any) -> None:
    played = play([q("task")])
    played.queries["more"] = q("task", all_of(c("owner", "=", "u1"), c("rank", ">", 5)))
    played.group.add("more", played.queries["more"])
    assert effects(played.held, played.now()) == "0"

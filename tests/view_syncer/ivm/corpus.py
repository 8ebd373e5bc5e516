"""The differential-test corpus of zql.md §7.3-7.6: queries, initial rows, commits and effects.

Owns data only, in the notation of cases.py and in the order of the specification.
"""

from __future__ import annotations

from tests.view_syncer.ivm.cases import Case, all_of, any_of, c, ex, nex, q, rel
from zerocache.zql import ast


def _task(where: ast.Condition | None = None, **parts: object) -> ast.Query:
    return q("task", where, **parts)  # type: ignore[arg-type]


X, Y, Z = (c("body", "=", body) for body in "xyz")
T1 = c("id", "=", "t1")
OWNER = "owner=id"
REVIEWER = "reviewer=id"
REPORTS = "id=boss"
_RANK_2 = _task(order="rank↑", limit=2)
_AFTER_T2 = _task(order="rank↑", limit=2, after={"rank": 20, "id": "t2"})
_NOTED = _task(ex("note"))
_DOUBLE = _task(rel=[rel("note")], order="rank↑", limit=2)

FILTERS = {
    "F1": Case([_task(c("owner", "=", "u1"))], "t1 t4",
               [("t4.owner:=u2", "-t4"), ("t2.owner:=u1", "+t2"), ("t1.rank:=11", "~t1")]),
    "F2": Case([_task(c("owner", "!=", "u1"))], "t2 t5", [("t3.owner:=u2", "+t3")]),
    "F3": Case([_task(c("owner", "IS", None))], "t3",
               [("t3.owner:=u1", "-t3"), ("t4.owner:=null", "+t4")]),
    "F4": Case([_task(c("owner", "IS NOT", "u1"))], "t2 t3 t5", []),
    "F5": Case([_task(c("rank", "<", 25))], "t1 t2 t5",
               [("t4.rank:=null", "0"), ("t3.rank:=5", "+t3")]),
    "F6": Case([_task(c("id", "IN", []))], "", [("ins t9", "0")]),
    "F7": Case([_task(c("owner", "NOT IN", []))], "t1 t2 t4 t5", [("t3.owner:=u9", "+t3")]),
    "F8": Case([_task(c("owner", "NOT IN", ["u1"]))], "t2 t5", []),
    "F9": Case([_task(any_of())], "", [("ins t9, t1.rank:=1", "0")]),
    "F10": Case([_task(all_of())], "t1 t2 t3 t4 t5", []),
    "F11": Case([_task(any_of(c("rank", "=", 20), c("title", "=", "a")))], "t1 t2 t5",
                [("t1.rank:=20", "~t1"), ("t1.title:=q", "~t1"), ("t1.rank:=1", "-t1")]),
    "F12": Case([_task(c("title", "LIKE", "%"))], "t1 t2 t3 t4 t5", [("t1.title:=x\ny", "~t1")]),
    "F13": Case([_task(c("title", "NOT LIKE", "a%"))], "t2 t3 t4 t5",
                [("t2.title:=null", "-t2"), ("t1.title:=A", "+t1")]),
    "F14": Case([_task(c("title", "ILIKE", "A"))], "t1", [("t2.title:=A", "+t2")]),
    "F15": Case([_task(c("title", ">", "\ufffd"))], "", [("t1.title:=😀", "+t1")]),
    "O1": Case([_task(order="owner↑ rank↓", limit=3)], "t3 t4 t1",
               [("t2.owner:=null", "+t2 -t1")]),
    "O2": Case([_task(order="owner↓ rank↑", limit=2)], "t5 t2", [("t1.owner:=u9", "+t1 -t2")]),
    "O3": Case([q("task_tag", order="tag↓", limit=2)], "t1-g2 t5-g2",
               [("ins t0-g2", "+t0-g2 -t5-g2")]),
}  # fmt: skip

WINDOWS = {
    "L1": Case([_RANK_2], "t3 t1", [("ins t0(null,null,5)", "+t0 -t1")]),
    "L2": Case([_RANK_2], "t3 t1", [("del t1", "-t1 +t2")]),
    "L3": Case([_RANK_2], "t3 t1", [("del t4", "0")]),
    "L4": Case([_RANK_2], "t3 t1", [("t1.rank:=40", "-t1 +t2")]),
    "L5": Case([_RANK_2], "t3 t1", [("t4.rank:=1", "+t4 -t1")]),
    "L6": Case([_RANK_2], "t3 t1", [("t1.rank:=15", "~t1")]),
    "L7": Case([_RANK_2], "t3 t1", [("t1.rank:=20", "~t1")]),
    "L8": Case([_task(order="rank↑", limit=3)], "t3 t1 t2", [("t2.rank:=20.5", "-t2 +t5")]),
    "L9": Case([_task(order="rank↓", limit=2)], "t4 t2", [("t3.rank:=99", "+t3 -t2")]),
    "L10": Case([_RANK_2], "t3 t1", [("del t1, del t2, del t3, del t5, del t4", "-t1 -t3"),
                                     ("ins t7(null,null,7)", "+t7")]),
    "L11": Case([_task(order="id↑", limit=0)], "", [("ins t0", "0")]),
    "L12": Case([_task(ex("note"), order="rank↑", limit=2)], "t1 t2 w",
                [("del n1, del n2", "-t1 -n1 -n2 +t5 +n5"),
                 ("ins n8(t3,u1,q)", "+t3 +n8 -t5 -n5")]),
    "L13": Case([_task(c("title", "!=", "c"), order="rank↑", limit=1)], "t1",
                [("t1.title:=c", "-t1 +t2")]),
    "L14": Case([_DOUBLE], "t3 t1 n1 n2",
                [("t5.rank:=1", "+t5 +n5 -t1 -n1 -n2"), ("ins n8(t1)", "0"),
                 ("ins n9(t5)", "+n9")]),
    "L15": Case([_task(any_of(ex("note", Z), c("title", "=", "d")), order="rank↑", limit=2)],
                "t2 n4 t4", [("del n4", "-t2 -n4"), ("t5.title:=d", "+t5"),
                             ("t4.rank:=20", "~t4")]),
    "L16": Case([q("person", order="name↑", limit=2,
                   rel=[rel("task", "id=owner", order="rank↓", limit=1)])], "u1 t4 u2 t2",
                [("t1.rank:=50", "+t1 -t4"), ("t1.owner:=u2", "~t1 +t4 -t2"),
                 ("u1.name:=Zed", "-u1 -t4 +u3 +t5")]),
    "S1": Case([_AFTER_T2], "t5 t4", [("t1.rank:=22", "+t1 -t4")]),
    "S2": Case([_AFTER_T2], "t5 t4", [("t5.rank:=5", "-t5")]),
    "S3": Case([_task(order="rank↑", after={"rank": 20, "id": "t2"})], "t5 t4",
               [("t2.rank:=21", "+t2"), ("t2.rank:=20", "-t2")]),
    "S4": Case([_task(order="rank↑", at={"rank": 20, "id": "t2"})], "t2 t5 t4",
               [("del t2", "-t2")]),
    "S5": Case([_task(order="rank↑", after={"rank": None, "id": "t3"})], "t1 t2 t5 t4",
               [("t4.rank:=null", "~t4"), ("t1.rank:=null", "-t1")]),
    "S6": Case([_task(order="rank↓", after={"rank": 10, "id": "t1"})], "t3",
               [("t5.rank:=null", "+t5")]),
    "S7": Case([_task(order="rank↑", after={"rank": 20})], "t2 t5 t4", []),
}  # fmt: skip

RELATED = {
    "R1": Case([_task(T1, rel=[rel("person", OWNER)])], "t1 u1",
               [("t1.owner:=u3", "~t1 +u3 -u1"), ("t1.owner:=null", "~t1 -u3")]),
    "R2": Case([_task(c("id", "IN", ["t1", "t4"]), rel=[rel("person", OWNER)])], "t1 t4 u1",
               [("del t1", "-t1"), ("del t4", "-t4 -u1")]),
    "R3": Case([_task(T1, rel=[rel("person", OWNER), rel("person", REVIEWER)])], "t1 u1 u2",
               [("t1.owner:=u2, t1.reviewer:=u1", "~t1")]),
    "R4": Case([_task(c("id", "=", "t5"), rel=[rel("person", OWNER), rel("person", REVIEWER)])],
               "t5 u3", [("t5.owner:=null", "~t5"), ("t5.reviewer:=null", "~t5 -u3")]),
    "R5": Case([_task(T1, rel=[rel("note", order="id↓", limit=1)])], "t1 n2",
               [("ins n7(t1)", "+n7 -n2"), ("del n7", "+n2 -n7"), ("n2.task:=t2", "-n2 +n1")]),
    "R6": Case([_task(T1, rel=[rel("note", where=X)])], "t1 n1",
               [("n2.body:=x", "+n2"), ("n1.body:=w", "-n1")]),
    "R7": Case([q("person", c("id", "=", "u1"), rel=[rel("person", REPORTS)])], "u1 u2 u3",
               [("u4.boss:=u1", "+u4"), ("u1.boss:=u1", "~u1")]),
    "R8": Case([q("person", c("id", "=", "u1"),
                  rel=[rel("person", REPORTS, rel=[rel("person", REPORTS)])])], "u1 u2 u3 u4",
               [("u2.boss:=u3", "~u2 -u4")]),
    "R9": Case([_task(c("id", "IN", ["t1", "t2"]), rel=[rel("task_tag", rel=[rel("tag")])])],
               "t1 t2 t1-g1 t1-g2 t2-g1 g1 g2",
               [("del t1-g1", "-t1-g1"), ("del t2-g1", "-t2-g1 -g1"), ("g2.label:=navy", "~g2"),
                ("del g2", "-g2")]),
    "R10": Case([q("account", c("region", "=", "eu"), rel=[rel("invoice")])], "eu1 eu2 i1 i2",
                [("i3.region:=eu", "+i3"), ("i1.no:=null", "-i1")]),
    "R11": Case([_task(c("id", "=", "t4"), rel=[rel("note")])], "t4",
                [("ins n8(t4)", "+n8"), ("del t4", "-t4 -n8"), ("ins t4", "+t4 +n8")]),
    "R12": Case([_task(T1, rel=[rel("note", limit=0)])], "t1", [("ins n8(t1)", "0")]),
    "R13": Case([_task(T1, rel=[rel("note", order="id↑", after={"id": "n1"})])], "t1 n2",
                [("n2=>n0", "-n2")]),
    "R14": Case([q("person", rel=[rel("note", "id=author", order="id↓", limit=1,
                                      rel=[rel("task")])])],
                "u1 u2 u3 u4 n5 n2 n4 t5 t1 t2", [("n5.author:=u2", "~n5 +n3 -n2 -t1")]),
    "R15": Case([_task(c("id", "IN", ["t1", "t2"]),
                       rel=[rel("note", rel=[rel("person", "author=id")])])],
                "t1 t2 n1 n2 n3 n4 u1 u2 u3",
                [("u1.name:=Anna", "~u1"), ("del n1", "-n1"), ("del n3", "-n3 -u1")]),
    "R16": Case([q("note", c("id", "IN", ["n1", "n3"]), rel=[rel("task", rel=[rel("note")])])],
                "n1 n2 n3 n4 t1 t2", [("del n1", "-n1 -n2 -t1"), ("ins n6(t2)", "+n6")]),
    "K1": Case([_task(c("owner", "=", "u1"), rel=[rel("note")])], "t1 t4 n1 n2",
               [("t1=>t6", "-t1 -n1 -n2 +t6")]),
    "K1 as del and ins": Case([_task(c("owner", "=", "u1"), rel=[rel("note")])], "t1 t4 n1 n2",
                              [("del t1, ins t6(u1,u2,10,a)", "-t1 -n1 -n2 +t6")]),
    "K2": Case([q("task_tag", c("tag", "=", "g1"))], "t1-g1 t2-g1",
               [("t2-g1=>t3-g1", "-t2-g1 +t3-g1")]),
    "K3": Case([q("account", rel=[rel("invoice")])], "eu1 eu2 us1 i1 i2 i3",
               [("eu2=>eu3, i2.no:=3", "-eu2 +eu3 ~i2")]),
    "K4": Case([_task(c("rank", "=", 20))], "t2 t5",
               [("del t5, ins t5(u3,u3,20,E2)", "~t5")]),
    "K5": Case([_task(c("rank", "=", 20))], "t2 t5", [("t5.rank:=7, t5.rank:=20", "0")]),
    "K6": Case([_task(c("title", "=", "zz"))], "",
               [("ins t9(null,null,null,zz), del t9", "0")]),
    "K7": Case([_task(c("id", "=", "t4"), rel=[rel("note")])], "t4",
               [("ins n8(t4), del t4", "-t4"), ("ins t4", "+t4 +n8")]),
    "M1": Case([_task(c("owner", "=", "u1")), _task(c("rank", "=", 10))], "t1 t4",
               [("t1.owner:=u2", "~t1"), ("t1.rank:=11", "-t1")]),
    "M2": Case([_task(T1, rel=[rel("person", OWNER)]), q("person", c("name", "=", "Ann"))],
               "t1 u1", [("u1.name:=Anna", "~u1"), ("t1.owner:=u2", "~t1 +u2 -u1")]),
    "M3": Case([_task(order="rank↑", limit=1), _task(order="rank↓", limit=1)], "t3 t4",
               [("t3.rank:=99", "~t3 +t1 -t4")]),
    "M4": Case([q("note", c("task", "=", "t1")), _NOTED], "t1 t2 t5 n1 n2 n3 n4 n5",
               [("del n1, del n2", "-t1 -n1 -n2")]),
}  # fmt: skip

_E9 = ex("task_tag", ex("tag", c("label", "=", "red")))
_E15 = ex("invoice", c("amount", ">", 60))
_BOSSLESS = c("boss", "IS", None)

EXISTS = {
    "E1": Case([_NOTED], "t1 t2 t5 w",
               [("ins n8(t3)", "+t3 +n8"), ("n8.task:=t4", "+t4 -t3 ~n8"), ("del n8", "-t4 -n8")]),
    "E2": Case([_task(ex("note", X))], "t1 t2 t5 n1 n3 n5",
               [("n3.body:=w", "-t2 -n3"), ("n4.body:=x", "+t2 +n4"), ("n4.author:=u9", "~n4")]),
    "E3": Case([_NOTED], "t1 t2 t5 w",
               [("ins n6(t1), ins n7(t1)", "w"), ("del n1", "-n1 w"),
                ("del n2, del n6, del n7", "-t1 w")]),
    "E4": Case([_task(nex("note"))], "t3 t4",
               [("ins n8(t3)", "-t3"), ("n8.body:=r", "0"), ("del n8", "+t3")]),
    "E5": Case([_task(nex("note", X))], "t3 t4", [("n3.body:=w", "+t2"), ("n4.body:=x", "-t2")]),
    "E6": Case([_task(any_of(ex("note", X), ex("note", Z)))], "t1 t2 t5 n1 n3 n5 w",
               [("n3.body:=w", "-n3 w"), ("del n4", "-t2 -n4")]),
    "E7": Case([_task(all_of(ex("note", X), ex("note", Z)))], "t2 n3 n4",
               [("n2.body:=z", "+t1 +n1 +n2"), ("del n3", "-t2 -n3 -n4")]),
    "E8": Case([_task(any_of(c("title", "=", "d"), ex("note", X)))], "t1 t2 t4 t5 n1 n3 n5",
               [("ins n8(t4,u1,x)", "w"), ("t4.title:=k", "~t4 w"), ("del n8", "-t4 -n8")]),
    "E9": Case([_task(_E9)], "t1 t2 t1-g1 t2-g1 g1",
               [("g2.label:=red", "+t5 +t5-g2 +g2 w"),
                ("g1.label:=pink", "-t2 -t2-g1 -t1-g1 -g1 w")]),
    "E10": Case([q("person", ex("person", None, REPORTS))], "u1 u2 u4 w",
                [("u4.boss:=u3", "~u4 w"), ("u4.boss:=u4", "~u4 w")]),
    "E11": Case([q("person", nex("person", None, REPORTS))], "u3 u4",
                [("u4.boss:=u3", "~u4 +u2 -u3")]),
    "E12": Case([_task(nex("person", None, OWNER))], "t3",
                [("del u3", "+t5"), ("t3.owner:=u1", "-t3")]),
    "E13": Case([q("person", ex("task", nex("note", Z), "id=owner"))], "u1 u3 t5 w",
                [("del n4", "+u2 +t2"), ("ins n9(t5,null,z)", "-u3 -t5")]),
    "E14": Case([_task(ex("note"), rel=[rel("note")])], "t1 t2 t5 n1 n2 n3 n4 n5",
                [("del n5", "-t5 -n5"), ("ins n8(t5)", "+t5 +n8")]),
    "E15": Case([q("account", _E15)], "eu1 us1 i1 i3",
                [("i2.amount:=90", "+eu2 +i2"), ("i3.region:=eu", "-us1 w")]),
    "E16": Case([_task(ex("note", ex("person", _BOSSLESS, "author=id")))],
                "t1 t2 t5 n1 n3 n5 u1", [("u1.boss:=u4", "-t1 -t2 -t5 -n1 -n3 -n5 -u1")]),
    "E17": Case([_task(ex("note", limit=0))], "", []),
    "E17 not": Case([_task(nex("note", limit=0))], "t1 t2 t3 t4 t5", []),
    "E18": Case([_task(all_of(ex("note", X), nex("note", Y)))], "t2 t5 n3 n5",
                [("del n2", "+t1 +n1"), ("ins n8(t2,null,y)", "-t2 -n3")]),
    "E19": Case([_task(any_of(nex("note", Z), c("title", "=", "b")))], "t1 t2 t3 t4 t5 w",
                [("ins n8(t1,null,z)", "-t1"), ("t2.title:=k", "-t2 w")]),
    "E20": Case([_task(any_of(ex("note", X, flip=True), ex("note", Y, flip=True)))],
                "t1 t2 t5 n1 n3 n5 w",
                [("ins n8(t4,null,y)", "+t4 +n8"), ("del n1", "-n1 w")]),
    "E21": Case([_task(all_of(ex("person", _BOSSLESS, OWNER), ex("note")))], "t1 u1 w",
                [("u3.boss:=null", "+t5 +n5 +u3"), ("ins n8(t4)", "+t4 +n8")]),
    "E22": Case([q("person", nex("task", None, "id=owner"), rel=[rel("task", "id=reviewer")])],
                "u4", [("t3.owner:=u4", "-u4"), ("t2.owner:=null, t2.reviewer:=u4", "+u2 +t1")]),
    "E23": Case([_task(ex("note", limit=1))], "t1 t2 t5 w", [("del n5", "-t5 -n5")]),
    "E23 flipped": Case([_task(ex("note", limit=1, flip=True))], "t1 t2 t5 w",
                        [("del n5", "-t5 -n5")]),
    "C1": Case([_task(ex("person", c("id", "=", "u2"), REVIEWER, scalar=True))], "t1 u2",
               [("del u2", "-t1 -u2")]),
    "C2": Case([_task(ex("person", c("name", "=", "Bo"), REVIEWER, scalar=True))], "t1 u2",
               [("u3.name:=Bo", "+t5 +u3")]),
    "C3": Case([_task(nex("person", c("id", "=", "u1"), REVIEWER, scalar=True))], "t1 t4 t5",
               [("del u1", "+t2 +t3")]),
}  # fmt: skip

_SEVERAL = [_NOTED, _task(c("id", "IN", ["t1", "t4"]), rel=[rel("person", OWNER)]), _DOUBLE]
_NESTED = all_of(all_of(all_of(ex("note", all_of(any_of(X, Z), all_of(c("task", "!=", "t9"))))),
                        any_of(c("rank", "<", 15), any_of(c("rank", ">", 15)))))  # fmt: skip
_FLAT = all_of(ex("note", all_of(any_of(X, Z), c("task", "!=", "t9"))),
               any_of(c("rank", "<", 15), c("rank", ">", 15)))  # fmt: skip

SYSTEM = {
    "X1": Case(_SEVERAL, "t1 t2 t3 t4 t5 u1 n1 n2 w",
               [("truncate note", "-t2 -t5 -n1 -n2 -n3 -n4 -n5")]),
    "X1 row by row": Case(_SEVERAL, "t1 t2 t3 t4 t5 u1 n1 n2 w",
                          [("del n1, del n2, del n3, del n4, del n5",
                            "-t2 -t5 -n1 -n2 -n3 -n4 -n5")]),
    "X2": Case(_SEVERAL, "t1 t2 t3 t4 t5 u1 n1 n2 w",
               [("truncate note, ins n3(t2,u1,k), ins n8(t3)", "-t5 -n1 -n2 -n4 -n5 ~n3 +n8")]),
    "X10": Case(_SEVERAL, "t1 t2 t3 t4 t5 u1 n1 n2 w",
                [("del n5", "-t5 -n5"), ("t5.rank:=1", "+t5"), ("ins n6(t5)", "+n6"),
                 ("t5.rank:=9", "~t5"), ("t1.rank:=2", "~t1 w"), ("n1.task:=t4", "~n1 w"),
                 ("t3.rank:=3", "~t3 w"), ("t4.owner:=u2", "~t4 +u2"), ("u2.name:=B", "~u2"),
                 ("del t1", "-t1 -u1 -n2 w")]),
    "X11": Case(_SEVERAL, "t1 t2 t3 t4 t5 u1 n1 n2 w", [("ins i9, g1.label:=k, del s1", "0")]),
    "X17": Case([_task(T1, rel=[rel("note", alias="same"),
                                rel("person", OWNER, alias="same")])], "t1 u1",
                [("ins n8(t1)", "0")]),
    "X18": Case([_task(_NESTED)], "t1 t2 t5 n1 n3 n4 n5", [("t2.rank:=15", "-t2 -n3 -n4")]),
    "X18 flat": Case([_task(_FLAT)], "t1 t2 t5 n1 n3 n4 n5", [("t2.rank:=15", "-t2 -n3 -n4")]),
}  # fmt: skip

CASES = {**FILTERS, **WINDOWS, **RELATED, **EXISTS, **SYSTEM}

"""The seed and the initial answers of the differential-test corpus (zql.md §7).

Owns data only: ``SEED`` creates and fills the tables, ``CASES`` maps a case to its query and to
the *result rows* a sync must bring (``table:key``), without EXISTS witnesses.
"""

from __future__ import annotations

from collections.abc import Callable

from zerocache.zql.builder import QueryBuilder, create_builder
from zerocache.zql.schema import create_schema, junction, many, number, one, string, table

SEED = """
CREATE TABLE person (id text PRIMARY KEY, name text, boss text);
CREATE TABLE task (id text PRIMARY KEY, owner text, reviewer text, rank float8, title text);
CREATE TABLE note (id text PRIMARY KEY, task text, author text, body text);
CREATE TABLE tag (id text PRIMARY KEY, label text);
CREATE TABLE task_tag (task text, tag text, PRIMARY KEY (task, tag));
CREATE TABLE account (region text, no int, name text, PRIMARY KEY (region, no));
CREATE TABLE invoice (id text PRIMARY KEY, region text, no int, amount int);
CREATE TABLE secret (id text PRIMARY KEY, task text, level int);
INSERT INTO person VALUES
    ('u1','Ann',null), ('u2','Bo','u1'), ('u3','Cy','u1'), ('u4','Di','u2');
INSERT INTO task VALUES ('t1','u1','u2',10,'a'), ('t2','u2','u1',20,'b'),
    ('t3',null,'u1',null,'c'), ('t4','u1',null,30,'d'), ('t5','u3','u3',20,'e');
INSERT INTO note VALUES ('n1','t1','u1','x'), ('n2','t1','u2','y'), ('n3','t2','u1','x'),
    ('n4','t2','u3','z'), ('n5','t5','u1','x');
INSERT INTO tag VALUES ('g1','red'), ('g2','blue');
INSERT INTO task_tag VALUES ('t1','g1'), ('t1','g2'), ('t2','g1'), ('t5','g2');
INSERT INTO account VALUES ('eu',1,'Acme'), ('eu',2,'Bolt'), ('us',1,'Core');
INSERT INTO invoice VALUES ('i1','eu',1,100), ('i2','eu',2,50), ('i3','us',1,70),
    ('i4','eu',null,10);
INSERT INTO secret VALUES ('s1','t1',1), ('s2','t2',2);
"""


_optional = string(optional=True)

schema = create_schema(
    [
        table("person", {"id": string(), "name": _optional, "boss": _optional}, primary_key="id"),
        table(
            "task",
            {
                "id": string(),
                "owner": _optional,
                "reviewer": _optional,
                "rank": number(optional=True),
                "title": _optional,
            },
            primary_key="id",
        ),
        table(
            "note",
            {"id": string(), "task": _optional, "author": _optional, "body": _optional},
            primary_key="id",
        ),
        table("tag", {"id": string(), "label": _optional}, primary_key="id"),
        table("task_tag", {"task": string(), "tag": string()}, primary_key=["task", "tag"]),
        table(
            "account",
            {"region": string(), "no": number(), "name": _optional},
            primary_key=["region", "no"],
        ),
        table(
            "invoice",
            {
                "id": string(),
                "region": _optional,
                "no": number(optional=True),
                "amount": number(optional=True),
            },
            primary_key="id",
        ),
    ],
    relationships={
        "person": {
            "reports": many("person", source="id", dest="boss"),
            "tasks": many("task", source="id", dest="owner"),
            "reviews": many("task", source="id", dest="reviewer"),
            "notes": many("note", source="id", dest="author"),
        },
        "task": {
            "ownerRow": one("person", source="owner", dest="id"),
            "reviewerRow": one("person", source="reviewer", dest="id"),
            "notes": many("note", source="id", dest="task"),
            "tags": many("tag", source="id", dest="id", via=junction("task_tag", "task", "tag")),
        },
        "note": {
            "taskRow": one("task", source="task", dest="id"),
            "authorRow": one("person", source="author", dest="id"),
        },
        "account": {"invoices": many("invoice", source=["region", "no"], dest=["region", "no"])},
    },
)

zql = create_builder(schema)


def _no_limit_zero(q: QueryBuilder) -> QueryBuilder:
    return q.limit(0)


def _body(value: str) -> Callable[[QueryBuilder], QueryBuilder]:
    return lambda q: q.where("body", value)


task, person, note = zql.task, zql.person, zql.note
_by_rank = task.order_by("rank")
_after_t2 = {"rank": 20, "id": "t2"}

CASES: dict[str, tuple[QueryBuilder, str]] = {
    "F1": (task.where("owner", "u1"), "t1 t4"),
    "F2": (task.where("owner", "!=", "u1"), "t2 t5"),
    "F3": (task.where("owner", "IS", None), "t3"),
    "F4": (task.where("owner", "IS NOT", "u1"), "t2 t3 t5"),
    "F5": (task.where("rank", "<", 25), "t1 t2 t5"),
    "F6": (task.where("id", "IN", []), ""),
    "F7": (task.where("owner", "NOT IN", []), "t1 t2 t4 t5"),
    "F8": (task.where("owner", "NOT IN", ["u1"]), "t2 t5"),
    "F9": (task.where(lambda q: q.or_()), ""),
    "F10": (task.where(lambda q: q.and_()), "t1 t2 t3 t4 t5"),
    "F11": (task.where(lambda q: q.or_(q.cmp("rank", 20), q.cmp("title", "a"))), "t1 t2 t5"),
    "F12": (task.where("title", "LIKE", "%"), "t1 t2 t3 t4 t5"),
    "F13": (task.where("title", "NOT LIKE", "a%"), "t2 t3 t4 t5"),
    "F14": (task.where("title", "ILIKE", "A"), "t1"),
    "F15": (task.where("title", ">", "�"), ""),
    "O1": (task.order_by("owner").order_by("rank", "desc").limit(3), "t3 t4 t1"),
    "O2": (task.order_by("owner", "desc").order_by("rank").limit(2), "t5 t2"),
    "O3": (zql.task_tag.order_by("tag", "desc").limit(2), "t1-g2 t5-g2"),
    "L1": (_by_rank.limit(2), "t3 t1"),
    "L8": (_by_rank.limit(3), "t3 t1 t2"),
    "L9": (task.order_by("rank", "desc").limit(2), "t4 t2"),
    "L11": (task.limit(0), ""),
    "L12": (_by_rank.where_exists("notes").limit(2), "t1 t2"),
    "L13": (_by_rank.where("title", "!=", "c").limit(1), "t1"),
    "L14": (_by_rank.limit(2).related("notes"), "t3 t1 n1 n2"),
    "L15": (
        _by_rank.where(lambda q: q.or_(q.exists("notes", _body("z")), q.cmp("title", "d"))).limit(
            2
        ),
        "t2 t4",
    ),
    "L16": (
        person.order_by("name")
        .limit(2)
        .related("tasks", lambda q: q.order_by("rank", "desc").limit(1)),
        "u1 t4 u2 t2",
    ),
    "S1": (_by_rank.limit(2).start(_after_t2), "t5 t4"),
    "S3": (_by_rank.start(_after_t2), "t5 t4"),
    "S4": (_by_rank.start(_after_t2, inclusive=True), "t2 t5 t4"),
    "S5": (_by_rank.start({"rank": None, "id": "t3"}), "t1 t2 t5 t4"),
    "S6": (task.order_by("rank", "desc").start({"rank": 10, "id": "t1"}), "t3"),
    "S7": (_by_rank.start({"rank": 20}), "t2 t5 t4"),
    "R1": (task.where("id", "t1").related("ownerRow"), "t1 u1"),
    "R2": (task.where("id", "IN", ["t1", "t4"]).related("ownerRow"), "t1 t4 u1"),
    "R3": (task.where("id", "t1").related("ownerRow").related("reviewerRow"), "t1 u1 u2"),
    "R4": (task.where("id", "t5").related("ownerRow").related("reviewerRow"), "t5 u3"),
    "R5": (
        task.where("id", "t1").related("notes", lambda q: q.order_by("id", "desc").limit(1)),
        "t1 n2",
    ),
    "R6": (task.where("id", "t1").related("notes", _body("x")), "t1 n1"),
    "R7": (person.where("id", "u1").related("reports"), "u1 u2 u3"),
    "R8": (
        person.where("id", "u1").related("reports", lambda q: q.related("reports")),
        "u1 u2 u3 u4",
    ),
    "R9": (
        task.where("id", "IN", ["t1", "t2"]).related("tags"),
        "t1 t2 t1-g1 t1-g2 t2-g1 g1 g2",
    ),
    "R10": (zql.account.where("region", "eu").related("invoices"), "1-eu 2-eu i1 i2"),
    "R11": (task.where("id", "t4").related("notes"), "t4"),
    "R12": (task.where("id", "t1").related("notes", _no_limit_zero), "t1"),
    "R13": (
        task.where("id", "t1").related("notes", lambda q: q.order_by("id").start({"id": "n1"})),
        "t1 n2",
    ),
    "R14": (
        person.related("notes", lambda q: q.order_by("id", "desc").limit(1).related("taskRow")),
        "u1 u2 u3 u4 n5 n2 n4 t5 t1 t2",
    ),
    "R16": (
        note.where("id", "IN", ["n1", "n3"]).related("taskRow", lambda q: q.related("notes")),
        "n1 n2 n3 n4 t1 t2",
    ),
    "K2": (zql.task_tag.where("tag", "g1"), "t1-g1 t2-g1"),
    "E1": (task.where_exists("notes"), "t1 t2 t5"),
    "E2": (task.where_exists("notes", _body("x")), "t1 t2 t5"),
    "E4": (task.where(lambda q: q.not_(q.exists("notes"))), "t3 t4"),
    "E5": (task.where(lambda q: q.not_(q.exists("notes", _body("x")))), "t3 t4"),
    "E7": (task.where_exists("notes", _body("x")).where_exists("notes", _body("z")), "t2"),
    "E9": (task.where_exists("tags", lambda q: q.where("label", "red")), "t1 t2"),
    "E10": (person.where_exists("reports"), "u1 u2"),
    "E11": (person.where(lambda q: q.not_(q.exists("reports"))), "u3 u4"),
    "E12": (task.where(lambda q: q.not_(q.exists("ownerRow"))), "t3"),
    "E13": (
        person.where_exists(
            "tasks", lambda t: t.where(lambda q: q.not_(q.exists("notes", _body("z"))))
        ),
        "u1 u3",
    ),
    "E15": (
        zql.account.where_exists("invoices", lambda q: q.where("amount", ">", 60)),
        "1-eu 1-us",
    ),
    "E16": (
        task.where_exists(
            "notes", lambda n: n.where_exists("authorRow", lambda p: p.where("boss", "IS", None))
        ),
        "t1 t2 t5",
    ),
    "E17": (task.where_exists("notes", _no_limit_zero), ""),
    "E17n": (
        task.where(lambda q: q.not_(q.exists("notes", _no_limit_zero))),
        "t1 t2 t3 t4 t5",
    ),
    "E22": (
        person.where(lambda q: q.not_(q.exists("tasks"))).related("reviews"),
        "u4",
    ),
    "E23": (task.where_exists("notes", lambda q: q.limit(1), flip=True), "t1 t2 t5"),
    "C3": (
        task.where(
            lambda q: q.not_(q.exists("reviewerRow", lambda p: p.where("id", "u1"), scalar=True))
        ),
        "t1 t4 t5",
    ),
}

"""What is asked and what happens to the data: queries with PostgreSQL's own answers, and writes.

Owns facts only. Every answer is SQL written by hand from the meaning of the query, never generated
by the code under test. ``SERIES`` changes each table in every way a query can notice: rows that
enter, leave, move within a window, change keys, and go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Case:
    """One named query.

    ``answer`` returns its result as one JSON value. ``also`` names, per client table, the further
    rows a server may send with it: hidden junction rows and witnesses of EXISTS. Any other row in
    the client's store is left over.
    """

    name: str
    answer: str
    args: dict[str, Any] | None = None
    also: dict[str, str] = field(default_factory=dict)
    # Tables of the relationships that occur in the answer, by relationship name.
    relationships: dict[str, str] = field(default_factory=dict)
    table: str = "issue"

    def __str__(self) -> str:
        shown = ",".join(str(value) for value in (self.args or {}).values())
        return f"{self.name}({shown})" if shown else self.name


CASES = (
    Case(
        "issues.all",
        "SELECT coalesce(jsonb_agg(shown(i) ORDER BY i.id), '[]') FROM issues i",
    ),
    Case(
        "issues.open",
        "SELECT coalesce(jsonb_agg(shown(i) ORDER BY i.id), '[]') FROM issues i WHERE i.open",
    ),
    Case(
        "issues.byID",
        "SELECT (SELECT shown(i) FROM issues i WHERE i.id = 'i2')",
        {"id": "i2"},
    ),
    Case(
        "issues.withComments",
        """
        SELECT coalesce(jsonb_agg(shown(i) || jsonb_build_object('comments', (
            SELECT coalesce(jsonb_agg(shown(c) ORDER BY c.id), '[]')
            FROM comments c WHERE c.issue_id = i.id
        )) ORDER BY i.id), '[]') FROM issues i WHERE i.open
        """,
        relationships={"comments": "comment"},
    ),
    Case(
        "issues.withOwner",
        """
        SELECT coalesce(jsonb_agg(shown(i) || jsonb_build_object('owner', (
            SELECT shown(p) FROM people p WHERE p.id = i.owner_id
        )) ORDER BY i.id), '[]') FROM issues i WHERE i.open
        """,
        relationships={"owner": "person"},
    ),
    Case(
        "issues.withLatestComments",
        """
        SELECT coalesce(jsonb_agg(shown(i) || jsonb_build_object('comments', (
            SELECT coalesce(jsonb_agg(shown(c) ORDER BY c.likes DESC, c.id), '[]')
            FROM comments c WHERE c.issue_id = i.id AND c.id IN (
                SELECT id FROM comments WHERE issue_id = i.id ORDER BY likes DESC, id LIMIT 2
            )
        )) ORDER BY i.id), '[]') FROM issues i
        """,
        relationships={"comments": "comment"},
    ),
    Case(
        "issues.withLabels",
        """
        SELECT coalesce(jsonb_agg(shown(i) || jsonb_build_object('labels', (
            SELECT coalesce(jsonb_agg(shown(l) ORDER BY l.id), '[]')
            FROM labels l JOIN issue_labels il ON il.label_id = l.id WHERE il.issue_id = i.id
        )) ORDER BY i.id), '[]') FROM issues i WHERE i.open
        """,
        relationships={"labels": "label"},
        also={
            "issueLabel": """
            SELECT coalesce(jsonb_agg(shown(il)), '[]')
            FROM issue_labels il JOIN issues i ON i.id = il.issue_id WHERE i.open
            """
        },
    ),
    Case(
        "teams.tree",
        """
        SELECT coalesce(jsonb_agg(shown(t) || jsonb_build_object('people', (
            SELECT coalesce(jsonb_agg(shown(p) || jsonb_build_object('issues', (
                SELECT coalesce(jsonb_agg(shown(i) ORDER BY i.id), '[]')
                FROM issues i WHERE i.owner_id = p.id
            )) ORDER BY p.id), '[]') FROM people p WHERE p.team_id = t.id
        )) ORDER BY t.id), '[]') FROM teams t
        """,
        table="team",
        relationships={"people": "person", "issues": "issue"},
    ),
    Case(
        "issues.commented",
        """
        SELECT coalesce(jsonb_agg(shown(i) ORDER BY i.id), '[]') FROM issues i
        WHERE EXISTS (SELECT FROM comments c WHERE c.issue_id = i.id)
        """,
        also={
            "comment": """
            SELECT coalesce(jsonb_agg(shown(c)), '[]')
            FROM comments c JOIN issues i ON i.id = c.issue_id
            """
        },
    ),
    Case(
        "issues.labelled",
        """
        SELECT coalesce(jsonb_agg(shown(i) ORDER BY i.id), '[]') FROM issues i
        WHERE i.id IN (
            SELECT issue_id FROM issue_labels JOIN labels ON id = label_id WHERE name = 'bug'
        )
        """,
        {"name": "bug"},
        also={
            "issueLabel": """
            SELECT coalesce(jsonb_agg(shown(il)), '[]') FROM issue_labels il
            JOIN labels l ON l.id = il.label_id JOIN issues i ON i.id = il.issue_id
            WHERE l.name = 'bug'
            """,
            "label": "SELECT coalesce(jsonb_agg(shown(l)), '[]') FROM labels l WHERE name = 'bug'",
        },
    ),
    Case(
        "issues.uncommented",
        """
        SELECT coalesce(jsonb_agg(shown(i) ORDER BY i.id), '[]') FROM issues i
        WHERE NOT EXISTS (SELECT FROM comments c WHERE c.issue_id = i.id)
        """,
    ),
    Case(
        "issues.lively",
        """
        SELECT coalesce(jsonb_agg(shown(i) || jsonb_build_object('comments', (
            SELECT coalesce(jsonb_agg(shown(c)), '[]') FROM comments c WHERE c.id = (
                SELECT id FROM comments WHERE issue_id = i.id ORDER BY likes DESC, id LIMIT 1
            )
        ), 'labels', (
            SELECT coalesce(jsonb_agg(shown(l) ORDER BY l.id), '[]')
            FROM labels l JOIN issue_labels il ON il.label_id = l.id WHERE il.issue_id = i.id
        )) ORDER BY i.title DESC, i.id), '[]') FROM (
            SELECT * FROM issues WHERE rank >= 60 OR id IN (
                SELECT issue_id FROM comments WHERE likes > 2
            ) ORDER BY title DESC, id LIMIT 3
        ) AS top JOIN issues i ON i.id = top.id
        """,
        relationships={"comments": "comment", "labels": "label"},
        also={
            "comment": "SELECT coalesce(jsonb_agg(shown(c)), '[]') FROM comments c WHERE likes > 2",
            "issueLabel": "SELECT coalesce(jsonb_agg(shown(il)), '[]') FROM issue_labels il",
        },
    ),
    Case(
        "teams.withOpenIssues",
        """
        SELECT coalesce(jsonb_agg(shown(t) ORDER BY t.id), '[]') FROM teams t WHERE t.id IN (
            SELECT team_id FROM people p JOIN issues i ON i.owner_id = p.id WHERE i.open
        )
        """,
        table="team",
        also={
            "person": """
            SELECT coalesce(jsonb_agg(shown(p)), '[]') FROM people p JOIN teams t
            ON t.id = p.team_id WHERE p.id IN (SELECT owner_id FROM issues WHERE open)
            """,
            "issue": """
            SELECT coalesce(jsonb_agg(shown(i)), '[]') FROM issues i JOIN people p
            ON p.id = i.owner_id JOIN teams t ON t.id = p.team_id WHERE i.open
            """,
        },
    ),
    Case(
        "issues.top",
        """
        SELECT coalesce(jsonb_agg(shown(i) ORDER BY i.rank DESC NULLS LAST, i.id), '[]')
        FROM issues i
        WHERE i.id IN (SELECT id FROM issues ORDER BY rank DESC NULLS LAST, id LIMIT 3)
        """,
        {"limit": 3},
    ),
    Case(
        "issues.after",
        """
        SELECT coalesce(jsonb_agg(shown(i) ORDER BY i.rank, i.id), '[]') FROM issues i
        WHERE i.id IN (
            SELECT id FROM issues WHERE (rank, id) > (20, 'i2') ORDER BY rank, id LIMIT 3
        )
        """,
        {"rank": 20, "id": "i2", "limit": 3},
    ),
    Case(
        "issues.after",
        """
        SELECT coalesce(jsonb_agg(shown(i) ORDER BY i.rank, i.id), '[]') FROM issues i
        WHERE i.id IN (
            SELECT id FROM issues WHERE (rank, id) >= (20, 'i2') ORDER BY rank, id LIMIT 2
        )
        """,
        {"rank": 20, "id": "i2", "limit": 2, "inclusive": True},
    ),
)


@dataclass(frozen=True)
class Step:
    """One transaction."""

    name: str
    statements: tuple[str, ...]


def _step(name: str, *statements: str) -> Step:
    return Step(name, statements)


SERIES = (
    _step(
        "insert an open issue inside every window",
        "INSERT INTO issues"
        " VALUES ('i7', 'seventh', true, 25, 'p2', '2025-01-01', '{\"a\": [1, null]}')",
    ),
    _step(
        "insert an issue outside the filter",
        "INSERT INTO issues VALUES ('i8', 'eighth', false, 5, 'p1', '2025-01-02', NULL)",
    ),
    _step("an update enters the filter", "UPDATE issues SET open = true WHERE id = 'i3'"),
    _step("an update leaves the filter", "UPDATE issues SET open = false WHERE id = 'i1'"),
    _step(
        "an update changes values only",
        "UPDATE issues SET title = 'zwei', meta = '[1, {\"x\": \"ü\"}]' WHERE id = 'i2'",
    ),
    _step("a row moves out of the window", "UPDATE issues SET rank = 1 WHERE id = 'i6'"),
    _step("a row moves to the head of the window", "UPDATE issues SET rank = 99 WHERE id = 'i5'"),
    _step("a row moves within the window", "UPDATE issues SET rank = 98 WHERE id = 'i3'"),
    _step("a sort column becomes null", "UPDATE issues SET rank = NULL WHERE id = 'i4'"),
    _step(
        "two rows swap their places",
        "UPDATE issues SET rank = CASE id WHEN 'i3' THEN 99 ELSE 98 END WHERE id IN ('i3', 'i5')",
    ),
    _step("a primary key changes", "UPDATE issues SET id = 'i9' WHERE id = 'i2'"),
    _step("children follow the key", "UPDATE comments SET issue_id = 'i9' WHERE issue_id = 'i2'"),
    _step("the key changes back", "UPDATE issues SET id = 'i2' WHERE id = 'i9'"),
    _step("a child changes parents", "UPDATE issues SET owner_id = 'p3' WHERE id = 'i3'"),
    _step("a middle row changes parents", "UPDATE people SET team_id = 't2' WHERE id = 'p2'"),
    _step("a middle row loses its parent", "UPDATE people SET team_id = NULL WHERE id = 'p1'"),
    _step("a middle row gains a parent", "UPDATE people SET team_id = 't3' WHERE id = 'p4'"),
    _step(
        "children are inserted",
        "INSERT INTO comments VALUES ('c6', 'i5', 'six', 2), ('c7', 'i5', 'seven', 7),"
        " ('c8', 'i1', 'eight', 4), ('c9', 'i2', 'nine', 4)",
    ),
    _step(
        "a child moves to the head of its window", "UPDATE comments SET likes = 9 WHERE id = 'c1'"
    ),
    _step("a child inside its window goes", "DELETE FROM comments WHERE id = 'c2'"),
    _step("the last witness goes", "DELETE FROM comments WHERE issue_id = 'i3'"),
    _step(
        "a witness moves to another parent", "UPDATE comments SET issue_id = 'i4' WHERE id = 'c7'"
    ),
    _step(
        "junction rows come and go",
        "INSERT INTO issue_labels VALUES ('i5', 'l1'), ('i7', 'l3')",
        "DELETE FROM issue_labels WHERE issue_id = 'i3'",
    ),
    _step(
        "a junction row changes its key",
        "UPDATE issue_labels SET label_id = 'l1' WHERE issue_id = 'i7'",
    ),
    _step(
        "names at the far end of a junction change",
        "UPDATE labels SET name = 'old bug' WHERE id = 'l1'",
        "UPDATE labels SET name = 'bug' WHERE id = 'l2'",
    ),
    _step("the far end of a junction goes", "DELETE FROM labels WHERE id = 'l1'"),
    _step("it comes back", "INSERT INTO labels VALUES ('l1', 'bug')"),
    _step("a row at the head of the window goes", "DELETE FROM issues WHERE id = 'i3'"),
    _step(
        "parents go and leave their children",
        "DELETE FROM people WHERE id = 'p3'",
        "DELETE FROM teams WHERE id = 't3'",
    ),
    _step(
        "rows that live within one transaction only",
        "INSERT INTO issues VALUES ('tmp', 'tmp', true, 1000, 'p1', 'epoch', NULL)",
        "UPDATE issues SET title = 'still tmp' WHERE id = 'tmp'",
        "DELETE FROM issues WHERE id = 'tmp'",
    ),
    _step(
        "a row is deleted and inserted again",
        "DELETE FROM issues WHERE id = 'i5'",
        "INSERT INTO issues VALUES ('i5', 'reborn', true, 97, 'p2', '2025-05-05', NULL)",
    ),
    _step(
        "many rows at once",
        "INSERT INTO issues SELECT 'm' || n, 'many', n % 2 = 0, n, 'p2', 'epoch', NULL"
        " FROM generate_series(1, 250) n",
        "INSERT INTO comments SELECT 'mc' || n, 'm' || n, 'many', n"
        " FROM generate_series(1, 250, 3) n",
    ),
    _step(
        "many rows change",
        "UPDATE issues SET rank = 250 - rank, open = NOT open WHERE title = 'many'",
    ),
    _step("many rows go", "DELETE FROM issues WHERE title = 'many'"),
    _step("a table is emptied", "TRUNCATE comments"),
    _step(
        "and filled again",
        "INSERT INTO comments VALUES ('c1', 'i1', 'again', 1), ('c4', 'i2', 'again', 2)",
    ),
)

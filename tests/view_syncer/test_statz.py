"""``/statz``: who may see it, what it shows, how it is rendered."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.replica.tables import build_replica, column, index, table
from view_syncer.http_head import parse_head
from view_syncer.statz import answer_statz, default_groups, is_admin
from zerocache.config import Config
from zerocache.replica.published import PublishedSchema


def config(**given: Any) -> Config:
    return Config.model_validate({"upstream": {"db": "postgres://h/d"}, **given})


LOCKED = config(admin_password="pässword")


def basic(password: str, user: str = "anyone") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def ask(target: str, groups: dict[str, Any], authorization: str = basic("pässword")) -> bytes:
    request = parse_head(f"GET {target} HTTP/1.1\r\nAuthorization: {authorization}".encode())
    return answer_statz(request, LOCKED, groups)


def body(answer: bytes) -> str:
    return answer.partition(b"\r\n\r\n")[2].decode()


def fails() -> dict[str, Any]:
    raise OSError("disk on fire")


GROUPS = {"a": lambda: {"one": 1}, "b": lambda: {"two": [2]}, "bad": fails}


@pytest.mark.parametrize(
    ("authorization", "allowed"),
    [
        (basic("pässword"), True),
        (basic("pässword", user=""), True),
        (basic("wrong"), False),
        (basic(""), False),
        ("Bearer pässword", False),
        ("Basic !!!", False),
        (None, False),
    ],
)
def test_password_decides_and_user_name_does_not(authorization: str | None, allowed: bool) -> None:
    assert is_admin(authorization, LOCKED) is allowed


def test_development_without_a_password_admits_who_gives_none() -> None:
    assert is_admin(None, config(development=True))
    assert not is_admin(basic("guess"), config(development=True))
    assert not is_admin(None, config(development=True, admin_password="p"))


def test_wrong_password_is_asked_for_again() -> None:
    answer = ask("/statz", GROUPS, authorization=basic("wrong"))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"WWW-Authenticate: Basic realm=" in answer
    assert body(answer) == "Unauthorized"


def test_text_has_a_heading_per_group_and_a_failing_group_does_not_spoil_it() -> None:
    answer = ask("/statz", GROUPS)
    assert b"Content-Type: text/plain; charset=utf-8" in answer
    assert body(answer).splitlines()[:2] == ["=== a ===", "one: 1"]
    assert '=== bad ===\nerror: "disk on fire"' in body(answer)


def test_groups_can_be_chosen_and_rendered_as_json() -> None:
    answer = ask("/statz?group=b,nope&format=json", GROUPS)
    assert b"Content-Type: application/json" in answer
    parsed = json.loads(body(answer))
    assert parsed["b"] == {"two": [2]}
    assert "error" in parsed["nope"]
    assert "a" not in parsed
    assert "\n" not in body(answer)
    assert "\n  " in body(ask("/statz?group=b&format=json&pretty", GROUPS))


def test_replica_group_describes_the_file(tmp_path: Path) -> None:
    file = tmp_path / "replica.db"
    connection = apsw.Connection(str(file))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE t(a)")
    groups = default_groups(config(admin_password="p", replica={"file": str(file)}))
    figures = groups["replica"]()
    connection.close()
    assert figures["journal_mode"] == "wal"
    assert figures["replica.db"]["bytes"] > 0


def test_hidden_group_names_what_clients_never_see(tmp_path: Path) -> None:
    spans = table("t", [column("id", 1, not_null=True), column("span", 2, "interval")])
    keyless = table("log", [column("line", 1)])
    schema = PublishedSchema(
        tables=(spans, keyless), indexes=(index(spans, "id", unique=True, is_primary=True),)
    )
    file = build_replica(tmp_path / "replica.db", schema=schema)
    groups = default_groups(config(admin_password="p", replica={"file": str(file)}))
    assert groups["hidden"]() == {"columns": {"t.span": "interval"}, "tables": ("log",)}


def test_missing_replica_shows_as_an_error_of_its_group(tmp_path: Path) -> None:
    groups = default_groups(config(admin_password="p", replica={"file": str(tmp_path / "no")}))
    parsed = json.loads(body(ask("/statz?format=json", dict(groups))))
    assert "error" in parsed["replica"]
    assert parsed["os"]["cpus"] >= 1

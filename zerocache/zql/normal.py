"""The normal form of a query and the hashes built on it (zql.md §1.5-1.6).

Owns bit-exact reproduction of the ids the official client computes. It must never feed
evaluation, and its hash is no key for sharing: normalizing drops an empty OR, so a query that
matches nothing and one that matches everything may look alike.

Works on parsed JSON, not on :class:`~zerocache.zql.ast.Query`, because the text that is hashed
keeps the key order in which a condition was written; :func:`builder_json` gives a query in the
order of the official builder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cmp_to_key
from typing import Any, TypeAlias

import msgspec
import xxhash

from zerocache.errors import QueryError
from zerocache.zql import ast

JsonObject: TypeAlias = dict[str, Any]

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_GROUPS = ("and", "or")


def hash_of_query(query: ast.Query | Mapping[str, Any]) -> str:
    """The id of an ad-hoc query; over client names it is the id the client uses."""
    return base36(h64(javascript_json(normalize(query))))


def hash_of_name_and_args(name: str, args: list[Any]) -> str:
    """The id of a named query."""
    return base36(h64(f"{name}:{javascript_json(args)}"))


def h64(text: str) -> int:
    """Two 32-bit xxHashes side by side."""
    data = text.encode()
    high, low = (xxhash.xxh32_intdigest(data, seed=seed) for seed in (0, 1))
    return high << 32 | low


def h128(text: str) -> int:
    """Four 32-bit xxHashes side by side."""
    data = text.encode()
    result = 0
    for seed in range(4):
        result = result << 32 | xxhash.xxh32_intdigest(data, seed=seed)
    return result


def base36(value: int) -> str:
    digits = ""
    while value:
        value, digit = divmod(value, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"


def builder_json(query: ast.Query) -> JsonObject:
    """``query`` as JSON with the members of conditions in the official builder's order."""
    found: JsonObject = {}
    for name, value in msgspec.to_builtins(query).items():
        if name == "where":
            assert query.where is not None
            value = _condition_json(query.where)
        elif name == "related":
            value = [_subquery_json(related) for related in query.related or ()]
        elif name == "orderBy":
            value = [list(term) for term in value]
        found[name] = value
    return found


def _condition_json(condition: ast.Condition) -> JsonObject:
    match condition:
        case ast.And(conditions):
            return {"type": "and", "conditions": [_condition_json(c) for c in conditions]}
        case ast.Or(conditions):
            return {"type": "or", "conditions": [_condition_json(c) for c in conditions]}
        case ast.Simple(op, left, right):
            sides = {"left": msgspec.to_builtins(left), "right": msgspec.to_builtins(right)}
            return {"type": "simple", **sides, "op": op}
        case ast.Exists(op, related, flip, scalar):
            hints = {"flip": flip, "scalar": scalar}
            return {
                "type": "correlatedSubquery",
                "related": _subquery_json(related),
                "op": op,
                **{name: hint for name, hint in hints.items() if hint is not None},
            }


def _subquery_json(related: ast.CorrelatedSubquery) -> JsonObject:
    found: JsonObject = {} if related.system is None else {"system": related.system}
    found["correlation"] = msgspec.to_builtins(related.correlation)
    if related.hidden is not None:
        found["hidden"] = related.hidden
    found["subquery"] = builder_json(related.subquery)
    return found


def normalize(query: ast.Query | Mapping[str, Any]) -> JsonObject:
    """The form that is hashed; the same for queries that differ in the order of their parts."""
    node = builder_json(query) if isinstance(query, ast.Query) else query
    where = node.get("where")
    if where is not None:
        where = _flatten(where)
    related = node.get("related")
    parts = {
        "schema": node.get("schema"),
        "table": node["table"],
        "alias": node.get("alias"),
        "where": None if where is None else _normal_condition(where),
        "related": None if related is None else _normal_related(related),
        "start": node.get("start"),
        "limit": node.get("limit"),
        "orderBy": node.get("orderBy"),
    }
    return {name: part for name, part in parts.items() if part is not None}


def _normal_related(related: list[Any]) -> list[JsonObject]:
    normal = []
    for entry in related:
        parts = {
            "correlation": _normal_correlation(entry["correlation"]),
            "hidden": entry.get("hidden"),
            "subquery": normalize(entry["subquery"]),
            "system": entry.get("system"),
        }
        normal.append({name: part for name, part in parts.items() if part is not None})
    return sorted(normal, key=lambda entry: _alias(entry).encode())


def _normal_correlation(correlation: Mapping[str, Any]) -> JsonObject:
    return {name: list(correlation[name]) for name in ("parentField", "childField")}


def _normal_condition(condition: Mapping[str, Any]) -> JsonObject:
    if condition["type"] in _GROUPS:
        members = [_normal_condition(member) for member in condition["conditions"]]
        return {"type": condition["type"], "conditions": sort_stably(members)}
    if condition["type"] == "simple":
        return dict(condition)
    related = dict(condition["related"])
    related["correlation"] = _normal_correlation(related["correlation"])
    related["subquery"] = normalize(related["subquery"])
    return {**condition, "related": related}


def _flatten(condition: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """One pass: groups inside a group of their kind dissolve, but only one level deep."""
    kind = condition["type"]
    if kind not in _GROUPS:
        return condition
    members: list[Mapping[str, Any] | None] = []
    for member in condition["conditions"]:
        if member["type"] == kind:
            members.extend(_flatten(inner) for inner in member["conditions"])
        else:
            members.append(_flatten(member))
    kept = [member for member in members if member is not None]
    if len(kept) > 1:
        return {"type": kind, "conditions": kept}
    return kept[0] if kept else None


def sort_stably(members: list[JsonObject]) -> list[JsonObject]:
    """Sort as V8 does.

    The comparison contradicts itself for a group and an EXISTS (each claims to be less), so the
    outcome depends on which pairs are compared, and in which order. Lists of up to 32 members go
    through one run and binary insertion in V8 as in Python, with the same comparisons.
    """
    return sorted(members, key=cmp_to_key(_compare))


def _compare(left: JsonObject, right: JsonObject) -> int:
    kinds = left["type"], right["type"]
    if "simple" in kinds:
        if kinds == ("simple", "simple"):
            return _compare_simple(left, right)
        return -1 if kinds[0] == "simple" else 1
    if kinds[0] == "correlatedSubquery":
        return _compare_exists(left, right) if kinds[1] == kinds[0] else -1
    if kinds[1] == "correlatedSubquery":
        return -1
    if kinds[0] != kinds[1]:
        return _order(*kinds)
    for mine, other in zip(left["conditions"], right["conditions"], strict=False):
        if found := _compare(mine, other):
            return found
    return _order(len(left["conditions"]), len(right["conditions"]))


def _compare_simple(left: JsonObject, right: JsonObject) -> int:
    return (
        _order(*_value_keys(left["left"], right["left"]))
        or _order(left["op"].encode(), right["op"].encode())
        or _order(*_value_keys(left["right"], right["right"]))
    )


def _value_keys(left: JsonObject, right: JsonObject) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    first, second = (
        (
            value["type"].encode(),
            javascript_string(_content(value)).encode("utf-8", "surrogatepass"),
        )
        for value in (left, right)
    )
    return first, second


def _content(value: JsonObject) -> Any:
    if value["type"] == "static":
        raise QueryError(
            f"parameter {value['anchor']}.{value['field']} has no value; "
            "bind static parameters before hashing a query"
        )
    return value["name"] if value["type"] == "column" else value["value"]


def _compare_exists(left: JsonObject, right: JsonObject) -> int:
    def key(condition: JsonObject) -> tuple[bytes, bytes, int, int]:
        hints = [{None: 0, False: 1, True: 2}[condition.get(name)] for name in ("flip", "scalar")]
        alias = _alias(condition["related"]).encode()
        return alias, condition["op"].encode(), hints[0], hints[1]

    return _order(key(left), key(right))


def _alias(related: JsonObject) -> str:
    alias = related["subquery"].get("alias")
    if alias is None:
        raise QueryError(f"subquery on {related['subquery']['table']!r} has no alias; give it one")
    return str(alias)


def _order(left: Any, right: Any) -> int:
    return int(left > right) - int(left < right)


def javascript_string(value: Any) -> str:
    """``String(value)`` of JavaScript."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ",".join("" if v is None else javascript_string(v) for v in value)
    return javascript_json(value)


def javascript_json(value: Any) -> str:
    """``JSON.stringify(value)`` of JavaScript, for values that came from JSON."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str):
        return _json_string(value)
    if isinstance(value, int | float):
        return javascript_number(value)
    if isinstance(value, Mapping):
        members = (f"{_json_string(str(k))}:{javascript_json(v)}" for k, v in _ordered(value))
        return "{" + ",".join(members) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(javascript_json(v) for v in value) + "]"
    raise QueryError(f"{value!r} is not JSON; use strings, numbers, booleans, None, lists, dicts")


def _ordered(value: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Members in JavaScript's order: array indexes ascending come first."""
    indexes = [k for k in value if _is_index(str(k))]
    rest = [k for k in value if not _is_index(str(k))]
    return [(k, value[k]) for k in [*sorted(indexes, key=lambda k: int(str(k))), *rest]]


def _is_index(key: str) -> bool:
    canonical = key.isascii() and key.isdigit() and (key == "0" or key[0] != "0")
    return canonical and int(key) < 2**32 - 1


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r",
            "\t": "\\t"}  # fmt: skip


def _json_string(text: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        # Python may hold a pair as two halves; JavaScript sees one character.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character < " " or "\ud800" <= character <= "\udfff":
        return f"\\u{ord(character):04x}"
    return character


def javascript_number(value: int | float) -> str:
    """The shortest text that reads back as the same double, in JavaScript's notation."""
    try:
        number = float(value)
    except OverflowError:
        return "null"
    if not math.isfinite(number):
        return "null"
    if number == 0:
        return "0"
    sign = "-" if number < 0 else ""
    digits, point = _shortest_digits(abs(number))
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if count > 1 else ""
    return f"{sign}{digits[0]}{fraction}e{'+' if point > 0 else '-'}{abs(point - 1)}"


def _shortest_digits(number: float) -> tuple[str, int]:
    """``(digits, point)`` with the value ``0.digits × 10^point``."""
    mantissa, _, exponent = repr(number).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    leading_zeros = len(whole + fraction) - len(digits)
    point = len(whole) - leading_zeros + int(exponent or 0)
    return digits.rstrip("0"), point

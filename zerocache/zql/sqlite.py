"""Compiles shapes (:mod:`zerocache.zql.shape`) to SQLite statements.

The only evaluator of ZQL in the server: hydration, re-evaluation of changed keys and climbing
from a changed row to the rows it may affect all go through the expressions built here, so they
cannot disagree. Statements use named parameters: the shape's own (``:p0`` …) and the inputs
named in each function's docstring. Requires the SQL function ``zc_lower`` (Unicode lower case).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count

from sqlglot import exp

from zerocache.zql.ast import Direction
from zerocache.zql.shape import (
    Const,
    Cursor,
    ExistsFilter,
    Filter,
    Junction,
    Node,
    Term,
)

ROWID = "_rowid_"
LOWER_FUNCTION = "zc_lower"
_JSON_WHITESPACE = " \t\n\r"
_FLAT_MEMBERS = 64
"""Members of an AND or OR that stand beside each other; more become a tree."""

_Comparison = Callable[[exp.Expression, exp.Expression], exp.Expression]


def column(table: str, name: str) -> exp.Column:
    return exp.Column(this=exp.Identifier(this=name, quoted=True), table=_plain(table))


def _plain(name: str) -> exp.Identifier:
    """A name of our own choosing, which needs no quotes."""
    return exp.Identifier(this=name, quoted=False)


def _rowid(table: str) -> exp.Column:
    return exp.Column(this=_plain(ROWID), table=_plain(table))


def _own(name: str) -> exp.Column:
    """A column of a table function or a subquery of our own."""
    return exp.Column(this=_plain(name))


def _param(name: str) -> exp.Expression:
    return exp.Placeholder(this=name)


def _table(name: str, alias: str) -> exp.Table:
    return exp.Table(
        this=exp.Identifier(this=name, quoted=True),
        alias=exp.TableAlias(this=_plain(alias)),
    )


def _values_of(function: str, param: str, alias: str | None = None) -> exp.Table:
    return _values_of_call(function, _param(param), alias)


def _values_of_call(function: str, argument: exp.Expression, alias: str | None) -> exp.Table:
    table = exp.Table(this=exp.Anonymous(this=function, expressions=[argument]))
    if alias:
        table.set("alias", exp.TableAlias(this=_plain(alias)))
    return table


def _all_values(source: exp.Table) -> exp.Subquery:
    select = exp.Select(expressions=[_own("value")])
    return exp.Subquery(this=select.from_(source, copy=False))


def _and(parts: Iterable[exp.Expression]) -> exp.Expression:
    return _fold(exp.And, list(parts), True)


def _or(parts: Iterable[exp.Expression]) -> exp.Expression:
    return _fold(exp.Or, list(parts), False)


def _fold(kind: type[exp.Expression], parts: list[exp.Expression], empty: bool) -> exp.Expression:
    if not parts:
        return exp.Boolean(this=empty)
    if len(parts) == 1:
        return parts[0]
    if len(parts) > _FLAT_MEMBERS:
        # SQLite bounds the depth of an expression, and a chain is as deep as it is long.
        middle = len(parts) // 2
        parts = [_fold(kind, parts[:middle], empty), _fold(kind, parts[middle:], empty)]
    result = parts[0]
    for part in parts[1:]:
        result = kind(this=result, expression=part)
    return exp.Paren(this=result)


def _binary(
    kind: type[exp.Expression], left: exp.Expression, right: exp.Expression
) -> exp.Expression:
    return kind(this=left, expression=right)


def _rarely(condition: exp.Expression) -> exp.Expression:
    """``condition``, of which SQLite is told that few rows satisfy it, whatever it believes."""
    arguments = [condition, exp.Literal.number("0.0001")]
    return exp.Anonymous(this="likelihood", expressions=arguments)


def _is_null(value: exp.Expression, negated: bool = False) -> exp.Expression:
    test: exp.Expression = exp.Is(this=value, expression=exp.Null())
    return exp.Paren(this=exp.Not(this=test)) if negated else test


def render(statement: exp.Expression) -> str:
    """The text of a statement, which must not be used any more: the generator works in place."""
    return statement.sql(dialect="sqlite", copy=False)


def render_rows(select: exp.Select, *, one_row: bool) -> str:
    """The text of ``select``. As ``one_row`` it yields one JSON array of arrays: whoever steps
    through rows lets other threads in at each of them, and pays for waking them."""
    if not one_row:
        return render(select)
    names = [f"v{i}" for i in range(len(select.expressions))]
    columns = [exp.alias_(e.unalias(), n) for e, n in zip(select.expressions, names, strict=True)]
    select.set("expressions", columns)
    row = exp.Anonymous(this="json_array", expressions=[_own(name) for name in names])
    array = exp.Anonymous(this="json_group_array", expressions=[row])
    rows = exp.Subquery(this=select)
    return render(exp.Select(expressions=[array]).from_(rows, copy=False))


class _Aliases:
    """Fresh table aliases within one statement."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def fresh(self) -> str:
        return f"t{next(self._numbers)}"


_COMPARISONS: dict[str, type[exp.Expression]] = {
    "=": exp.EQ,
    "!=": exp.NEQ,
    "<": exp.LT,
    ">": exp.GT,
    "<=": exp.LTE,
    ">=": exp.GTE,
}


def filter_expression(condition: Filter, table: str, aliases: _Aliases) -> exp.Expression:
    """``condition`` on the row at alias ``table``; NULL counts as false."""
    match condition:
        case Const(value):
            return exp.Boolean(this=value)
        case Junction(all_of, members):
            parts = [filter_expression(m, table, aliases) for m in members]
            return _and(parts) if all_of else _or(parts)
        case ExistsFilter():
            return _exists(condition, table, aliases)
        case Term():
            return _term(condition, table)


def _term(term: Term, table: str) -> exp.Expression:
    raw = column(table, term.column)
    if term.op in ("NULL", "NOT NULL"):
        return _null_test(raw, term)
    value = _json_scalar(raw, term) if term.is_json else raw
    assert term.param is not None
    param = _param(term.param)
    if term.op in ("IN", "NOT IN"):
        member = exp.In(
            this=value,
            query=_all_values(_values_of("json_each", term.param)),
        )
        return member if term.op == "IN" else _negation(member, raw, term)
    if term.op == "IS NOT":
        return exp.Paren(this=exp.Not(this=exp.Is(this=value, expression=param)))
    if term.op.endswith("GLOB"):
        return _glob(term, raw, value, param)
    comparison = _binary(_COMPARISONS[term.op], value, param)
    if term.op == "!=" and term.is_json:
        return _negation(_binary(exp.EQ, value, param), raw, term)
    return comparison


def _null_test(raw: exp.Expression, term: Term) -> exp.Expression:
    negated = term.op == "NOT NULL"
    test = _is_null(raw, negated)
    if not term.is_json:
        return test
    # A stored JSON null counts as null (zql.md §2.2), with the blanks that ``json`` preserves.
    bare = exp.Anonymous(
        this="trim", expressions=[raw.copy(), exp.Literal.string(_JSON_WHITESPACE)]
    )
    stored_null = exp.Literal.string("null")
    if negated:
        return _and([test, _binary(exp.NEQ, bare, stored_null)])
    return _or([test, _binary(exp.EQ, bare, stored_null)])


def _negation(positive: exp.Expression, raw: exp.Expression, term: Term) -> exp.Expression:
    """``NOT positive`` for a value that is there; json scalars of another kind count as unequal."""
    if not term.is_json:
        return exp.Paren(this=exp.Not(this=positive))
    not_null = _null_test(raw.copy(), Term(term.column, "NOT NULL", term.kind, True))
    truth = exp.Coalesce(this=exp.Paren(this=positive), expressions=[exp.Literal.number(0)])
    return _and([not_null, exp.Not(this=truth)])


def _json_scalar(raw: exp.Expression, term: Term) -> exp.Expression:
    """The value of a json column if it is a scalar of the term's kind, else NULL."""
    kind = exp.Anonymous(this="json_type", expressions=[raw.copy()])
    value = exp.Anonymous(this="json_extract", expressions=[raw.copy(), exp.Literal.string("$")])
    names = {"string": ["text"], "number": ["integer", "real"]}.get(term.kind, ["true", "false"])
    fits = exp.In(this=kind, expressions=[exp.Literal.string(n) for n in names])
    scalar = exp.Case(ifs=[exp.If(this=fits, true=value)])
    # Postgres nests deeper than SQLite parses; such a value is no scalar in any case.
    valid = exp.Anonymous(this="json_valid", expressions=[raw.copy()])
    return exp.Case(ifs=[exp.If(this=valid, true=scalar)])


def _glob(
    term: Term, raw: exp.Expression, value: exp.Expression, param: exp.Expression
) -> exp.Expression:
    folded = "IGLOB" in term.op
    subject: exp.Expression = (
        exp.Anonymous(this=LOWER_FUNCTION, expressions=[value]) if folded else value
    )
    matches = exp.Glob(this=subject, expression=param)
    if not term.op.startswith("NOT "):
        return matches
    return _negation(exp.Paren(this=matches), raw, term)


def _exists(condition: ExistsFilter, parent: str, aliases: _Aliases) -> exp.Expression:
    alias = aliases.fresh()
    node = condition.node
    parts = [
        _binary(exp.EQ, column(alias, child), column(parent, mine))
        for mine, child in zip(condition.parent_columns, condition.child_columns, strict=True)
    ]
    parts += node_parts(node, alias, aliases)
    subquery = exp.Select(expressions=[exp.Literal.number(1)])
    subquery = subquery.from_(_table(node.table, alias), copy=False).where(_and(parts), copy=False)
    test: exp.Expression = exp.Exists(this=subquery)
    return exp.Not(this=test) if condition.negated else test


def node_parts(node: Node, alias: str, aliases: _Aliases) -> list[exp.Expression]:
    """What a row at ``alias`` must satisfy to belong to ``node``: its filter and its cursor."""
    parts = []
    if node.where != Const(True):
        parts.append(filter_expression(node.where, alias, aliases))
    if node.cursor is not None:
        parts.append(cursor_expression(node.cursor, node.order, alias))
    return parts


def cursor_expression(
    cursor: Cursor, order: Sequence[tuple[str, Direction]], alias: str
) -> exp.Expression:
    """Rows after (or at) the cursor under ``order``, null-aware (zql.md §2.5)."""
    branches: list[exp.Expression] = []
    equal: list[exp.Expression] = []
    for (name, direction), param in zip(order, cursor.params, strict=True):
        after = _after(column(alias, name), direction, param)
        if after is not None:
            branches.append(_and([*(e.copy() for e in equal), after]))
        value = exp.Null() if param is None else _param(param)
        equal.append(exp.Is(this=column(alias, name), expression=value))
    if not cursor.exclusive:
        branches.append(_and([e.copy() for e in equal]))
    bound = _or(branches)
    first, (name, direction) = cursor.params[0], order[0]
    if first is not None and direction == "asc":
        # Redundant, but lets an index on the order position the scan.
        return _and([_binary(exp.GTE, column(alias, name), _param(first)), bound])
    return bound


def _after(value: exp.Expression, direction: Direction, param: str | None) -> exp.Expression | None:
    """``value`` strictly after the bound; None where nothing can be."""
    if param is None:
        return _is_null(value, negated=True) if direction == "asc" else None
    if direction == "asc":
        return _binary(exp.GT, value, _param(param))
    return _or([_binary(exp.LT, value, _param(param)), _is_null(value.copy())])


def _order_by(select: exp.Select, order: Sequence[tuple[str, Direction]], alias: str) -> exp.Select:
    # SQLite sorts NULL first ascending and last descending, as ZQL does. The terms are built
    # bare so that the generator adds no NULLS FIRST/LAST, which would keep SQLite off an index.
    terms = [_ordered(column(alias, name), direction) for name, direction in order]
    select.set("order", exp.Order(expressions=terms))
    return select


def _ordered(value: exp.Expression, direction: Direction) -> exp.Ordered:
    # ``nulls_first`` states SQLite's own default, so nothing is generated for it.
    descending = direction == "desc"
    return exp.Ordered(this=value, desc=descending, nulls_first=not descending)


def _select(node: Node, columns: Sequence[str], alias: str) -> exp.Select:
    select = exp.Select(expressions=[_rowid(alias), *(column(alias, c) for c in columns)])
    return select.from_(_table(node.table, alias), copy=False)


def _where(select: exp.Select, parts: Sequence[exp.Expression]) -> exp.Select:
    return select.where(_and(parts), copy=False) if parts else select


def _in_partitions(columns: Sequence[str], alias: str, source: str = "parts") -> exp.Expression:
    """Correlation ``columns`` at ``alias`` occur in the JSON array bound to ``source``: scalars
    for one column, arrays for several."""
    values = _values_of("json_each", source)
    if len(columns) == 1:
        return exp.In(this=column(alias, columns[0]), query=_all_values(values))
    members = [_json_member(_own("value"), i) for i in range(len(columns))]
    query = exp.Select(expressions=members).from_(values, copy=False)
    left = exp.Tuple(expressions=[column(alias, c) for c in columns])
    return exp.In(this=left, query=exp.Subquery(this=query))


def _json_member(array: exp.Expression, index: int) -> exp.Expression:
    return exp.Anonymous(
        this="json_extract", expressions=[array, exp.Literal.string(f"$[{index}]")]
    )


def candidate_rows(node: Node, columns: Sequence[str]) -> str:
    """Of the rows bound to ``:rows`` (carray of rowids), those that satisfy the node."""
    given = _all_values(_values_of("carray", "rows"))
    return _candidates(node, columns, exp.In(this=_rowid("t0"), query=given))


def candidate_row(node: Node, columns: Sequence[str]) -> str:
    """The row with rowid ``:row`` if it satisfies the node: much faster than a list of one."""
    return _candidates(node, columns, _binary(exp.EQ, _rowid("t0"), _param("row")))


def _candidates(node: Node, columns: Sequence[str], given: exp.Expression) -> str:
    parts = [given, *node_parts(node, "t0", _Aliases())]
    return render(_where(_select(node, columns, "t0"), parts))


def all_rows(
    node: Node, columns: Sequence[str], correlation: Sequence[str], *, one_row: bool = False
) -> str:
    """Every row of an unlimited node; with ``correlation``, those of the partitions in the JSON
    array ``:parts``. An IN list, not a join: without an index it costs one scan, not one each.
    As ``one_row`` at most ``:limit`` of them."""
    parts = [_in_partitions(correlation, "t0")] if correlation else []
    parts += node_parts(node, "t0", _Aliases())
    select = _where(_select(node, columns, "t0"), parts)
    return render_rows(_limited(select) if one_row else select, one_row=one_row)


def _limited(select: exp.Select) -> exp.Select:
    select.set("limit", exp.Limit(expression=_param("limit")))
    return select


def window_rows(
    node: Node, columns: Sequence[str], correlation: Sequence[str], *, one_row: bool = False
) -> str:
    """The first ``:limit`` rows of one partition in order; its values are ``:c0`` …."""
    select = _where(
        _select(node, columns, "t0"),
        [
            *(_binary(exp.EQ, column("t0", c), _param(f"c{i}")) for i, c in enumerate(correlation)),
            *node_parts(node, "t0", _Aliases()),
        ],
    )
    return render_rows(_limited(_order_by(select, node.order, "t0")), one_row=one_row)


def window_rows_of_partitions(
    node: Node,
    columns: Sequence[str],
    correlation: Sequence[str],
    *,
    indexed: bool,
    one_row: bool = False,
) -> str:
    """The first ``:limit`` rows of each partition in ``:parts``, in any order.

    With an index on the correlation each partition is a short index walk; without one a single
    pass ranks all rows, since a walk would scan the table once per partition.

    What runs once per partition is fixed here and not left to statistics, which may be out of
    date: partitions outermost, their rows by the index, what is selected by rowid.
    """
    if not indexed:
        return render_rows(_ranked_rows(node, columns, correlation), one_row=one_row)
    first = _first_rowids(node, correlation)
    each = _values_of_call("json_each", exp.Subquery(this=first), "j")
    select = exp.Select(expressions=[_rowid("t0"), *(column("t0", c) for c in columns)])
    select = select.from_(_values_of("json_each", "parts", "p"), copy=False)
    for table in (each, _table(node.table, "t0")):
        select.append("joins", exp.Join(this=table, kind="CROSS"))
    same = _binary(exp.EQ, _rowid("t0"), column("j", "value"))
    return render_rows(select.where(same, copy=False), one_row=one_row)


def _first_rowids(node: Node, correlation: Sequence[str]) -> exp.Select:
    """A JSON array of the rowids that come first in the partition ``p.value``."""
    aliases = _Aliases()
    inner = aliases.fresh()
    value = column("p", "value")
    values = (
        [value]
        if len(correlation) == 1
        else [_json_member(value.copy(), i) for i in range(len(correlation))]
    )
    of_partition = (
        _rarely(_binary(exp.EQ, column(inner, c), v))
        for c, v in zip(correlation, values, strict=True)
    )
    found = exp.alias_(_rowid(inner), "row_")
    chosen = exp.Select(expressions=[found]).from_(_table(node.table, inner), copy=False)
    chosen = _where(chosen, [*of_partition, *node_parts(node, inner, aliases)])
    chosen = _limited(_order_by(chosen, node.order, inner))
    array = exp.Anonymous(this="json_group_array", expressions=[_own("row_")])
    return exp.Select(expressions=[array]).from_(exp.Subquery(this=chosen), copy=False)


def _ranked_rows(node: Node, columns: Sequence[str], correlation: Sequence[str]) -> exp.Select:
    aliases = _Aliases()
    inner = _where(
        exp.Select(
            expressions=[
                exp.alias_(_rowid("t0"), "row_"),
                *(exp.alias_(column("t0", c), f"v{i}") for i, c in enumerate(columns)),
                exp.alias_(
                    exp.Window(
                        this=exp.RowNumber(),
                        partition_by=[column("t0", c) for c in correlation],
                        order=exp.Order(
                            expressions=[_ordered(column("t0", n), d) for n, d in node.order]
                        ),
                    ),
                    "rank_",
                ),
            ]
        ).from_(_table(node.table, "t0"), copy=False),
        [_in_partitions(correlation, "t0"), *node_parts(node, "t0", aliases)],
    )
    outer = exp.Select(
        expressions=[_own("row_"), *(_own(f"v{i}") for i in range(len(columns)))]
    ).from_(exp.Subquery(this=inner), copy=False)
    return outer.where(_binary(exp.LTE, _own("rank_"), _param("limit")), copy=False)


def climb(node: Node, path: Sequence[ExistsFilter], columns: Sequence[str]) -> str:
    """Rows of ``node``'s table that reach, through the chain ``path`` of EXISTS correlations, a
    child whose correlation values are in ``:parts``. Filters are left out on purpose: a superset
    is re-evaluated, and a row whose own filter changed is found as its own change."""
    condition = _climb_condition(path, 0, "t0", _Aliases())
    return render(_where(_select(node, columns, "t0"), [condition]))


def _climb_condition(
    path: Sequence[ExistsFilter], depth: int, alias: str, aliases: _Aliases
) -> exp.Expression:
    step = path[depth]
    if depth == len(path) - 1:
        return _in_partitions(step.parent_columns, alias)
    inner = aliases.fresh()
    deeper = _climb_condition(path, depth + 1, inner, aliases)
    query = exp.Select(expressions=[column(inner, c) for c in step.child_columns])
    query = query.from_(_table(step.node.table, inner), copy=False).where(deeper, copy=False)
    left: exp.Expression
    if len(step.parent_columns) == 1:
        left = column(alias, step.parent_columns[0])
    else:
        left = exp.Tuple(expressions=[column(alias, c) for c in step.parent_columns])
    return exp.In(this=left, query=exp.Subquery(this=query))

"""Judges a scenario: the engine against a fresh hydration, and a query against its variations.

Owns the properties. :class:`Failure` says which one broke, in which step and for which query; any
other exception is a failure too.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import msgspec

from tests.fuzz.scenario import Scenario, client_tables
from tests.view_syncer.ivm.group import Group
from tests.view_syncer.ivm.replica import Replica
from view_syncer.ivm.encode import ClientTables
from view_syncer.ivm.engine import Engine, Subscription
from view_syncer.ivm.hydration import Hydration, HydrationLimits, HydrationRequest, hydrate
from view_syncer.ivm.pipeline import Pipeline
from zerocache.zql import ast
from zerocache.zql.shape import Const


class Failure(AssertionError):
    """A property that does not hold."""


class Count:
    """How much was checked."""

    def __init__(self) -> None:
        self.scenarios = self.steps = self.changes = self.answers = self.upstream = 0
        self.timeouts = self.held_rows = 0

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in vars(self).items())


def run(scenario: Scenario, path: Path, count: Count) -> Replica:
    """Play the scenario; returns the replica in its end state, which the caller closes."""
    early = mock.patch.object(Pipeline, "rehydrate_is_cheaper", return_value=True)
    with early if scenario.rehydrate_early else nullcontext():
        replica = Replica(path, scenario.tables, scenario.rows)
        try:
            _play(scenario, replica, count)
        except BaseException:
            replica.close()
            raise
    count.scenarios += 1
    return replica


def _play(scenario: Scenario, replica: Replica, count: Count) -> None:
    engine = Engine(replica.path)
    try:
        groups = [Group(engine, client_tables(scenario, i)) for i in range(len(scenario.clients))]
        for number in range(len(scenario.steps) + 1):
            prepared = _prepare(scenario, replica.path, groups, number)
            if number:
                step = scenario.steps[number - 1]
                replica.commit(*step)
                advance = engine.advance()
                for group in groups:
                    group.receive(advance)
                count.changes += sum(map(len, step))
            _switch(scenario, groups, number, prepared)
            _compare(scenario, replica.path, engine, groups, number, count)
            count.steps += 1
        for i, asked in enumerate(scenario.queries):
            if asked.alive(len(scenario.steps)):
                group = groups[asked.client]
                _metamorphic(f"query {i}", asked.query, engine, group.client, group.queries[str(i)])
        for group in groups:
            for name in list(group.queries):
                group.remove(name)
            if group.store:
                raise Failure(f"rows stayed after the last query: {sorted(group.store)}")
        if engine.pipeline_count:
            raise Failure(f"{engine.pipeline_count} pipelines stayed after the last query")
    finally:
        engine.close()


def _prepare(
    scenario: Scenario, path: Path, groups: list[Group], step: int
) -> dict[str, Hydration]:
    """Hydrations beside the engine for queries that start after the coming step."""
    found = {}
    for i, asked in enumerate(scenario.queries):
        if asked.beside and asked.since == step < asked.until:
            group = groups[asked.client]
            request = group.engine.request(asked.query, group.client)
            if isinstance(request, HydrationRequest):
                found[str(i)] = hydrate(path, request, HydrationLimits())
    return found


def _switch(
    scenario: Scenario, groups: list[Group], step: int, prepared: dict[str, Hydration]
) -> None:
    """Start and stop queries as the scenario says."""
    for i, asked in enumerate(scenario.queries):
        name, group = str(i), groups[asked.client]
        running = name in group.queries
        if asked.alive(step) and not running:
            group.add(name, asked.query, prepared.get(name))
        elif running and not asked.alive(step):
            group.remove(name)
    for hydration in prepared.values():
        hydration.close()


def _compare(
    scenario: Scenario, path: Path, engine: Engine, groups: list[Group], step: int, count: Count
) -> None:
    fresh = Engine(path)
    try:
        for group in groups:
            expected = Group(fresh, group.client)
            for name, subscription in group.queries.items():
                query = scenario.queries[int(name)].query
                rows = expected.add(name, query).pipeline.rows()
                held = subscription.pipeline.rows()
                count.answers += 1
                count.held_rows += sum(map(len, rows.values()))
                if held != rows:
                    raise Failure(f"step {step} query {name}: holds {held}, should hold {rows}")
            if group.store != expected.store:
                wrong = {
                    k: (group.store.get(k), expected.store.get(k))
                    for k in group.store.keys() | expected.store.keys()
                    if group.store.get(k) != expected.store.get(k)
                }
                raise Failure(f"step {step}: the client differs (has, should have): {wrong}")
    finally:
        fresh.close()


TRUE = ast.Simple("=", ast.LiteralRef(1), ast.LiteralRef(1))


def _metamorphic(
    name: str, query: ast.Query, engine: Engine, client: ClientTables, asked: Subscription
) -> None:
    rows, roots = asked.pipeline.rows(), set(asked.pipeline.levels[0].members)
    where = query.where or ast.And([])
    for padded in (ast.And([where, TRUE]), ast.Or([ast.Or([]), where])):
        if _answer(engine, client, query, where=padded)[0] != rows:
            raise Failure(f"{name}: a condition that changes nothing changes the rows")
    if query.limit is not None:
        more, more_roots = _answer(engine, client, query, limit=query.limit + 2)
        if not roots <= more_roots or any(not r <= more.get(t, set()) for t, r in rows.items()):
            raise Failure(f"{name}: a larger limit loses rows")
    elif isinstance(where, ast.Or):
        split = [_answer(engine, client, query, where=m) for m in where.conditions]
        if set().union(*(r for _, r in split)) != roots:
            raise Failure(f"{name}: the branches of an OR give other rows than the OR")
        # A constant needs no witnesses, though a branch of it might.
        for found, _ in split if not isinstance(asked.pipeline.plan.shape.where, Const) else ():
            if any(not r <= rows.get(t, set()) for t, r in found.items()):
                raise Failure(f"{name}: a branch of an OR gives rows the OR does not")


def _answer(
    engine: Engine, client: ClientTables, query: ast.Query, **changed: object
) -> tuple[dict[str, set[int]], set[int]]:
    subscription = engine.subscribe(msgspec.structs.replace(query, **changed), client)
    found = subscription.pipeline.rows(), set(subscription.pipeline.levels[0].members)
    engine.unsubscribe(subscription)
    return found

"""Row operations of several pokes as one: the same effect with one operation for each row."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.view_syncer.server import ALL_TASKS, Server, copied, edit_task, row_ops
from view_syncer.coalesce import Step, coalesced
from zerocache.protocol import downstream

KEYS = {"one": ("id",), "two": ("b", "a")}
_VALUES = st.sampled_from(["", "x", "\u00e9", 'q"', 0, 1, 1.5, True, None])


@st.composite
def operations(draw: st.DrawFn) -> str:
    """On the rows of two tables that look much alike."""
    table = draw(st.sampled_from(sorted(KEYS)))
    row = {name: draw(_VALUES) for name in KEYS[table]}
    if draw(st.booleans()):
        return downstream.del_row(table, json.dumps(row))
    # The columns of a put stand in an order of their own.
    value = {"v": draw(st.integers(0, 9)), **dict(sorted(row.items()))}
    return downstream.put_row(table, json.dumps(value))


def applied(texts: list[str], state: dict[str, Any]) -> dict[str, Any]:
    state = dict(state)
    for text in texts:
        operation = json.loads(text)
        row = operation.get("value") or operation.get("id")
        table = operation["tableName"]
        key = json.dumps([table, *(row[name] for name in KEYS[table])])
        if operation["op"] == "put":
            state[key] = row
        else:
            state.pop(key, None)
    return state


@given(before=st.lists(operations()), runs=st.lists(st.lists(operations())))
def test_the_effect_is_the_same_and_no_row_occurs_twice(
    before: list[str], runs: list[list[str]]
) -> None:
    state = applied(before, {})
    result = coalesced(runs, KEYS)
    assert applied(result, state) == applied([text for run in runs for text in run], state)
    touched = {key for text in result for key in applied([as_put(text)], {})}
    assert len(touched) == len(result)


def as_put(text: str) -> str:
    operation = json.loads(text)
    row = operation.get("value") or operation.get("id")
    return downstream.put_row(operation["tableName"], json.dumps(row))


@given(runs=st.lists(st.lists(operations())))
def test_deletions_come_first(runs: list[list[str]]) -> None:
    kinds = [json.loads(text)["op"] for text in coalesced(runs, KEYS)]
    assert kinds == sorted(kinds)


def row(key: str) -> str:
    return json.dumps({"id": key})


@st.composite
def advances(draw: st.DrawFn) -> tuple[set[str], list[Step]]:
    """What clients hold, and what a few advances do to it: deletions first, as in each."""
    holds = draw(st.sets(st.sampled_from("abcd")))
    present, steps = set(holds), []
    for _ in range(draw(st.integers(0, 4))):
        gone = draw(st.sets(st.sampled_from(sorted(present)))) if present else set()
        put = draw(st.sets(st.sampled_from("abcd")))
        fresh = {key for key in put if key not in present}
        # What was deleted first may be called fresh, and what is fresh need not be.
        fresh |= draw(st.sets(st.sampled_from("abcd"))) & put & gone
        steps.append(
            Step(
                [
                    [downstream.del_row("one", row(key)) for key in sorted(gone)],
                    [downstream.put_row("one", row(key)) for key in sorted(put)],
                ],
                [[downstream.del_row("one", row(key)) for key in sorted(fresh)]],
            )
        )
        present = present - gone | put
    return holds, steps


@given(advances(), st.lists(operations()))
def test_rows_that_nobody_had_and_nobody_is_to_have_are_not_named(
    skipped: tuple[set[str], list[Step]], switch: list[str]
) -> None:
    holds, steps = skipped
    state = applied([downstream.put_row("one", row(key)) for key in holds], {})
    runs = [*(run for step in steps for run in step.runs), switch]
    result = coalesced([switch], KEYS, steps)
    assert applied(result, state) == applied([text for run in runs for text in run], state)
    skipped_keys = {downstream.del_row("one", row(key)) for key in "abcd" if key not in holds}
    touched = {text for step in steps for text in step.fresh[0]}
    assert not skipped_keys & touched & set(result)


def test_rows_of_a_table_nobody_declared_stay_as_they_are() -> None:
    texts = [downstream.put_row("other", json.dumps({"id": n % 2, "v": n})) for n in range(4)]
    assert coalesced([texts], KEYS) == texts


async def test_client_that_missed_many_edits_of_a_row_gets_one_patch(server: Server) -> None:
    current = await server.connected(ALL_TASKS)
    state = copied(current.state)
    for n in range(100):
        version = server.replica.write(edit_task("a", title=f"A{n}"))
        await current.wait_cookie(version)
    late = server.client(state=state, client_id=current.client_id)
    await late.connect()
    await late.wait_cookie(version)
    assert [op for poke in late.pokes for op in row_ops(poke)] == [("put", "a")]
    assert late.titles["a"] == "A99"

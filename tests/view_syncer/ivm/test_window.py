"""Windows: the order of entries, what lies beyond the bound, refilling from the reserve."""

from __future__ import annotations

import random
from typing import Any

import pytest

from view_syncer.ivm.plan import OrderColumn
from view_syncer.ivm.window import (
    BEFORE_ALL,
    MAX_RESERVE,
    Entry,
    Window,
    key_length,
    make_entry,
)

_ORDER = (OrderColumn(1, False),)
_KEY = key_length(_ORDER)
_RESERVE = 20


def entry(value: Any, rowid: int | None = None, *, descending: bool = False) -> Entry:
    order = (OrderColumn(1, descending),)
    return make_entry((value if rowid is None else rowid, value), order, 1)


def window(limit: int, values: range) -> Window:
    """Loaded with as many of ``values`` as a fetch would bring."""
    one = Window(limit, _KEY, min(_RESERVE, max(1, limit)))
    one.load([entry(v) for v in values][: one.capacity])
    return one


def rowids(entries: Any) -> list[int]:
    return [e[_KEY - 1] for e in entries]


_NUMBERS = [None, -1, 0, 0.5, 2**53, 1e300]
_STRINGS = [None, "", "\x01", "A", "a", "a\x01", "ab", "é", "\ufffd", "😀", "\U0010ffff"]


@pytest.mark.parametrize("ascending", [_NUMBERS, _STRINGS], ids=["numbers", "strings"])
@pytest.mark.parametrize("descending", [False, True])
def test_entries_sort_as_the_database_does(ascending: list[Any], descending: bool) -> None:
    order = (OrderColumn(1, descending),)
    entries = [make_entry((1, v), order, 1) for v in ascending]
    random.Random(1).shuffle(entries)
    assert [e[-1] for e in sorted(entries)] == (ascending[::-1] if descending else ascending)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("values", [_NUMBERS, _STRINGS], ids=["numbers", "strings"])
def test_a_bound_has_its_row_before_it_and_the_next_row_after_it(
    values: list[Any], descending: bool
) -> None:
    order = (OrderColumn(1, descending),)
    entries = sorted(make_entry((i, v), order, 0) for i, v in enumerate([*values, *values]))
    for limit in range(1, len(entries)):
        one = Window(limit, key_length(order), 1)
        one.load(list(entries))
        end = one.last_visible()
        assert end is not None
        assert [e < end for e in entries] == [i < limit for i in range(len(entries))]
        assert [end < e for e in entries] == [i >= limit for i in range(len(entries))]


def test_ties_are_broken_by_the_next_column_in_its_own_direction() -> None:
    order = (OrderColumn(1, False), OrderColumn(2, True))
    rows = [(1, "a"), (1, "b"), (0, "a"), (None, None), (1, None)]
    found = sorted(make_entry((i, *row), order, 2) for i, row in enumerate(rows))
    assert [e[-2:] for e in found] == [(None, None), (0, "a"), (1, "b"), (1, "a"), (1, None)]


def test_only_the_first_columns_are_kept() -> None:
    assert make_entry((7, "x", 1), (OrderColumn(2, False),), 1)[-2:] == (7, "x")


def test_the_key_of_an_entry_ends_with_the_rowid() -> None:
    order = (OrderColumn(1, False), OrderColumn(2, True))
    entry_ = make_entry((7, 1, 2), order, 2)
    assert entry_[key_length(order) - 1] == 7
    assert entry_[key_length(order) :] == (1, 2)


def test_the_visible_rows_are_the_first_ones() -> None:
    assert rowids(window(3, range(100)).visible()) == [0, 1, 2]
    assert rowids(window(3, range(2)).visible()) == [0, 1]
    assert window(0, range(5)).visible() == []


def test_a_full_fetch_has_a_bound_and_a_short_one_knows_everything() -> None:
    assert window(3, range(100)).bound is not None
    assert window(3, range(5)).bound is None


def test_a_row_beyond_the_bound_is_not_kept() -> None:
    one = window(3, range(100))
    before = list(one.entries)
    assert not one.insert(entry(50, 999))
    assert one.entries == before


def test_a_row_at_the_bound_is_kept_whatever_else_is_known_of_it() -> None:
    one = window(3, range(100))
    last = one.entries[-1]
    one.remove(last)
    changed = (*last[:_KEY], None)
    assert one.insert(changed)
    assert one.entries[-1] == changed


def test_a_row_inside_pushes_the_last_one_out_of_sight() -> None:
    one = window(3, range(100))
    assert one.insert(entry(0.5, 999))
    assert rowids(one.visible()) == [0, 999, 1]
    assert not one.needs_refetch()


def test_a_deleted_row_is_replaced_from_the_reserve() -> None:
    one = window(3, range(100))
    one.remove(one.entries[1])
    assert rowids(one.visible()) == [0, 2, 3]
    assert not one.needs_refetch()


def test_only_an_empty_reserve_calls_for_a_fetch() -> None:
    one = window(3, range(100))
    for _ in range(one.reserve):
        one.remove(one.entries[0])
        assert not one.needs_refetch()
    one.remove(one.entries[0])
    assert one.needs_refetch()


def test_a_completely_known_window_never_fetches() -> None:
    one = window(3, range(5))
    while one.entries:
        one.remove(one.entries[0])
    assert not one.needs_refetch()
    assert one.insert(entry(1_000_000))


def test_a_window_that_grew_is_trimmed_and_bounded() -> None:
    one = window(3, range(5))
    for value in range(10, 30):
        one.insert(entry(value))
    dropped = one.trim()
    assert len(one.entries) == one.capacity
    assert rowids(dropped) == list(range(11, 30))
    assert not one.insert(entry(12))
    assert one.insert(entry(9))


def test_a_window_within_twice_its_reserve_is_left_alone() -> None:
    one = window(3, range(5))
    one.insert(entry(10))
    assert one.trim() == ()
    assert one.bound is None


def test_a_window_that_runs_dry_fetches_farther_ahead_each_time() -> None:
    one = window(1000, range(5))
    reserves = []
    for _ in range(8):
        one = one.successor()
        reserves.append(one.reserve)
    assert reserves == sorted(reserves)
    assert (reserves[0], reserves[-1]) == (4 * _RESERVE, MAX_RESERVE)


def test_rows_between_two_ends_of_the_visible_part() -> None:
    one = window(4, range(100))
    end = one.last_visible()
    one.limit = 2
    earlier = one.last_visible()
    assert earlier is not None
    assert rowids(one.between(earlier, end)) == [2, 3]
    assert rowids(one.between(earlier, None)) == list(range(2, 8))


def test_the_end_of_the_visible_part_is_open_while_there_is_room() -> None:
    assert window(3, range(2)).last_visible() is None
    assert window(0, range(2)).last_visible() == BEFORE_ALL


def test_removing_a_row_that_is_not_there_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="filed under"):
        window(3, range(5)).remove(entry(77))


def test_random_changes_give_the_first_rows_of_a_sorted_list() -> None:
    """With a refetch where the window asks for one, as its owner must."""
    choose = random.Random(5)
    for limit in (0, 1, 3, 25):
        truth = sorted(entry(choose.randrange(50), i) for i in range(60))
        one = Window(limit, _KEY, max(1, min(_RESERVE, limit)))
        one.load(truth[: one.capacity])
        for rowid in range(100, 600):
            if truth and choose.random() < 0.55:
                gone = choose.choice(truth)
                truth.remove(gone)
                if gone in one.entries:
                    one.remove(one.entries[one.entries.index(gone)])
            else:
                fresh = entry(choose.randrange(50), rowid)
                truth = sorted([*truth, fresh])
                one.insert(fresh)
            one.trim()
            if one.needs_refetch():
                one.load(truth[: one.capacity])
            assert one.visible() == truth[:limit]

"""Readers that are pooled, and commits that are held on to by as few of them as possible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.view_syncer.ivm.cases import TABLES, changes, seed_rows
from tests.view_syncer.ivm.replica import Replica
from view_syncer.ivm.snapshot import ReaderPool, SnapshotReader


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    one = Replica(tmp_path / "replica.db", TABLES, seed_rows())
    yield one
    one.close()


@pytest.fixture
def pool(replica: Replica) -> Iterator[ReaderPool]:
    one = ReaderPool(replica.path, 4)
    yield one
    one.close()


def begun(pool: ReaderPool) -> SnapshotReader:
    reader = pool.take()
    reader.begin()
    return reader


def titles(reader: SnapshotReader) -> list[str]:
    return [title for (title,) in reader.db.execute("SELECT title FROM task ORDER BY id")]


def test_those_who_pin_one_commit_share_a_reader_and_the_others_are_free(pool: ReaderPool) -> None:
    first, second = begun(pool), begun(pool)
    assert pool.pin(first) is first
    assert pool.pin(second) is first
    assert pool.take() is second
    assert not second.db.in_transaction
    pool.unpin(first)
    assert first.db.in_transaction
    pool.unpin(first)
    assert not first.db.in_transaction
    assert pool.take() is first
    first.close()
    second.close()


def test_another_commit_is_pinned_apart(pool: ReaderPool, replica: Replica) -> None:
    old = pool.pin(begun(pool))
    before = titles(old)
    replica.commit(changes("t1.title:=other", replica))
    new = pool.pin(begun(pool))
    assert new is not old
    assert titles(old) == before
    assert titles(new) == ["other", *before[1:]]
    pool.unpin(old)
    assert titles(new) == ["other", *before[1:]]
    pool.unpin(new)


def test_a_commit_that_was_let_go_can_be_pinned_again(pool: ReaderPool) -> None:
    pool.unpin(pool.pin(begun(pool)))
    again = pool.pin(begun(pool))
    assert again.db.in_transaction
    pool.unpin(again)
    assert not again.db.in_transaction

"""Short runs of the model checker (tests/fuzz/model.py): fixed seeds, and one that is new.

A failure names its seed; ``python -m tests.fuzz.model --seed`` plays longer ones.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import PostgresCluster
from tests.fuzz.model import run_plan
from tests.fuzz.model_plan import Choice, Count, make_plan

_GROUPS = 3


@pytest.mark.parametrize(
    ("fixed_seed", "length", "kill", "store", "two"),
    [
        ("one", 40, False, "postgres", False),
        ("two", 25, True, "sqlite", False),
        (None, 25, False, "postgres", True),
        ("rules4", 30, False, "sqlite", False),  # permissions change all the time
    ],
)
def test_every_client_shows_what_postgresql_answers(
    postgres: PostgresCluster,
    tmp_path: Path,
    fixed_seed: str | None,
    length: int,
    kill: bool,
    store: str,
    two: bool,
) -> None:
    seed = fixed_seed or f"{random.SystemRandom().getrandbits(32):08x}"
    plan = replace(make_plan(seed, Choice(length, _GROUPS, kill, store)), two=two)
    count = Count()
    problem = run_plan(plan, postgres, tmp_path / "episode", count)
    print(f"seed {seed}: {count}")
    assert problem is None, f"seed {seed}: {problem}"
    assert count.compared > 0

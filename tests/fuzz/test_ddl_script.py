"""Which failures count as the same when a script is cut down."""

from __future__ import annotations

import pytest

from tests.fuzz.ddl_script import Script, Step, kind_of, shrink

_STALE = AssertionError("another schema: ('table t75 was added',)\nthe log")


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (AssertionError("another schema: ('table t8 was added',)\nanother log"), True),
        (AssertionError("another schema: ('table t75 is gone',)"), False),
        (AssertionError("other rows: (Difference(),)"), False),
        (RuntimeError("another schema: ('table t75 was added',)"), False),
    ],
)
def test_failures_are_alike_but_for_names_that_are_chance(other: Exception, same: bool) -> None:
    assert (kind_of(other) == kind_of(_STALE)) is same


def test_a_script_keeps_the_step_without_which_it_does_not_fail() -> None:
    steps = [Step("transaction"), Step("start"), Step("check")]
    steps += [Step("transaction", (f"SELECT {number}",)) for number in range(20)]
    small = shrink(Script(False, tuple(steps)), lambda script: steps[12] in script.steps, 60)
    assert small.steps == (*steps[:3], steps[12])

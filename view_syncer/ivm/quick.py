"""Hydration on the engine's own thread and snapshot, of queries that are over at once.

Handing a query to another thread and taking its result in costs about as much as a page of rows
does. So the engine computes a query itself if that takes next to no time, which is found out by
trying: a try ends when it has used up its share, and the query then goes the long way. Owns which
plans are worth a try. Invariant: a try that did not succeed has changed nothing.
"""

from __future__ import annotations

import time

import apsw

from view_syncer.ivm.hydration import STEPS_BETWEEN_CHECKS
from view_syncer.ivm.pipeline import Pipeline
from view_syncer.ivm.plan import Plan
from zerocache.errors import QueryError
from zerocache.failpoints import Place, reach
from zerocache.zql.shape import Instance

QUICK_CPU_S = 0.002
"""What a try may cost."""
QUICK_S = 0.02
"""How long it may take, if it waits for the disk or the interpreter meanwhile."""
MOST_PASSED_OVER = 64


def hydrate_quickly(
    db: apsw.Connection, plan: Plan, instance: Instance, most_rows: int
) -> Pipeline | None:
    """The query at the snapshot of ``db``; None if it takes longer than a try may, needs more rows
    than ``most_rows`` at one level, or cannot be served (the long way finds out why)."""
    pipeline = Pipeline(plan, instance, max_rows=most_rows)
    cpu_end, end = time.thread_time() + QUICK_CPU_S, time.monotonic() + QUICK_S
    db.set_progress_handler(
        lambda: time.thread_time() > cpu_end or time.monotonic() > end, STEPS_BETWEEN_CHECKS
    )
    try:
        pipeline.hydrate(db)
    except (apsw.InterruptError, apsw.SQLError, QueryError):
        return None
    finally:
        db.set_progress_handler(None)
    reach(Place.MID_HYDRATION)
    return pipeline


class QuickTries:
    """After a try in vain the next queries of the plan are passed over, twice as many each time:
    another owner's rows may be few, but most instances of a plan cost alike."""

    def __init__(self) -> None:
        # By plan: how many to pass over now, and how many the last time.
        self._passing: dict[Plan, tuple[int, int]] = {}

    def worth(self, plan: Plan) -> bool:
        left, last = self._passing.get(plan, (0, 0))
        if left:
            self._passing[plan] = left - 1, last
        return not left

    def note(self, plan: Plan, *, succeeded: bool) -> None:
        if succeeded:
            self._passing.pop(plan, None)
        else:
            _, last = self._passing.get(plan, (0, 0))
            passed_over = min(max(4, 2 * last), MOST_PASSED_OVER)
            self._passing[plan] = passed_over, passed_over

    def keep_only(self, plans: set[Plan]) -> None:
        """The others are gone."""
        self._passing = {plan: state for plan, state in self._passing.items() if plan in plans}

"""The model checker's scenario (tests/fuzz/model.py), small, with the official clients.

Tabs of several client groups come, go, reload and change what they ask while rows are written at
random and processes of the server are killed. At every rest each view shows PostgreSQL's answer
and each local store holds nothing else. A failure names its seed: put it into ``SEEDS``.
"""

# ruff: noqa: S608 (every part of a statement is made here)
from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field

import pytest

from tests.e2e.cases import CASES, Case
from tests.e2e.client import Client, Driver, View
from tests.e2e.comparison import Subscriber, follow, left_over
from tests.e2e.node import Node
from tests.e2e.upstream import Upstream

SEEDS = ("one", None)
STEPS = 40
GROUPS = 3
MAX_TABS = 3
# The client waits 5 s before it tries again to reach a server that refused it.
RECONNECT_S = 30.0
# Beside other queries the client shows every issue there is for this one.
_ALONE = {"issues.uncommented"}
_SHARED = [case for case in CASES if case.name not in _ALONE]


def transaction(choose: random.Random) -> list[str]:
    issue, other = (f"'i{choose.randrange(12)}'" for _ in range(2))
    person, team = f"'p{choose.randrange(5)}'", f"'t{choose.randrange(4)}'"
    label, rank = f"'l{choose.randrange(4)}'", choose.randrange(90)
    options = [
        f"UPDATE issues SET open = NOT open WHERE id = {issue}",
        f"UPDATE issues SET rank = {rank}, title = 'r{rank}' WHERE id IN ({issue}, {other})",
        f"UPDATE issues SET owner_id = {person} WHERE id = {issue}",
        f"INSERT INTO issues VALUES ({issue}, 'new', true, {rank}, {person}, 'epoch', '[{rank}]') "
        "ON CONFLICT (id) DO UPDATE SET rank = excluded.rank",
        f"DELETE FROM issues WHERE id = {issue}",
        f"INSERT INTO comments VALUES ('c{rank}', {issue}, 'said', {rank % 7}) "
        f"ON CONFLICT (id) DO UPDATE SET likes = comments.likes + 1, issue_id = {other}",
        f"DELETE FROM comments WHERE issue_id = {issue}",
        f"UPDATE people SET team_id = {team} WHERE id = {person}",
        f"INSERT INTO issue_labels VALUES ({issue}, {label}) ON CONFLICT DO NOTHING",
        f"DELETE FROM issue_labels WHERE label_id = {label}",
        "TRUNCATE comments",
        f"UPDATE issues SET rank = {rank} - coalesce(rank, 0)",
    ]
    weights = [4] * (len(options) - 2) + [1, 1]
    return choose.choices(options, weights, k=choose.choice([1, 1, 2, 5]))


@dataclass
class Tab:
    """One client with some views; ``beat`` is the clock it shows."""

    client: Client
    beat: View
    subscribers: list[Subscriber] = field(default_factory=list)

    def show(self, case: Case) -> None:
        if all(one.case is not case for one in self.subscribers):
            view = self.client.view(case.name, case.args, ttl="none")
            self.subscribers.append(Subscriber(self.client, case, view, self.beat))

    def hide(self, number: int) -> None:
        if self.subscribers:
            self.subscribers.pop(number % len(self.subscribers)).view.destroy()


@dataclass
class Group:
    """Tabs with one store. A tab that closed may leave its queries behind for a while."""

    driver: Driver
    name: str
    tabs: list[Tab] = field(default_factory=list)
    tidy: bool = True


class Life:
    def __init__(self, seed: str, drivers: dict[str, Driver], upstream: Upstream, node: Node):
        self._choose = random.Random(seed)
        self._upstream = upstream
        self._node = node
        by_number = list(drivers.values())
        self._groups = [
            Group(by_number[n % len(by_number)], f"life-{uuid.uuid4().hex[:8]}")
            for n in range(GROUPS)
        ]
        self.compared = 0

    def play(self) -> None:
        for group in self._groups:
            self._open(group)
        self._rest()
        for number in range(STEPS):
            self._step()
            if number % 6 == 5:
                self._rest()
            if number % 12 == 8:
                self._disturb()
        self._rest()

    def close(self) -> None:
        for group in self._groups:
            for tab in group.tabs:
                tab.client.close()

    def _step(self) -> None:
        group = self._choose.choice(self._groups)
        tab = self._choose.choice(group.tabs)
        number = self._choose.randrange(100)
        match self._choose.choice(["write"] * 4 + ["show"] * 3 + ["hide", "open", "reload"]):
            case "write":
                self._upstream.write(*transaction(self._choose))
            case "show":
                tab.show(self._choose.choice(_SHARED))
            case "hide":
                tab.hide(number)
            case "open" if len(group.tabs) < MAX_TABS:
                self._open(group)
            case "reload":
                group.tabs.remove(tab)
                group.tidy = False
                tab.client.close()
                self._open(group)

    def _open(self, group: Group) -> None:
        client = group.driver.open(self._node.url, group=group.name)
        tab = Tab(client, client.view("beat"))
        tab.show(self._choose.choice(_SHARED))
        group.tabs.append(tab)

    def _disturb(self) -> None:
        kind = self._choose.choice(["worker", "node", "restart"])
        if kind == "worker":
            self._choose.choice(self._node.sync_workers()).kill()
            return
        if kind == "node":
            self._node.kill9()
        else:
            assert self._node.stop() == 0
        self._upstream.write(*transaction(self._choose))
        self._node.start()

    def _rest(self) -> None:
        """Everyone shows the truth of the last write."""
        beat = self._upstream.write()
        for group in self._groups:
            subscribers = [s for tab in group.tabs for s in tab.subscribers]
            for subscriber in subscribers:
                expected = self._upstream.answer(subscriber.case.answer)
                subscriber.view.wait_answer(expected, deadline_s=RECONNECT_S)
            assert not follow(subscribers, self._upstream, beat, deadline_s=RECONNECT_S)
            self.compared += len(subscribers)
            for tab in group.tabs:
                assert tab.client.notices == [], "the client had to ask for a reload"
                if group.tidy:
                    self._nothing_left(tab.client, [s.case for s in subscribers])

    def _nothing_left(self, client: Client, cases: list[Case]) -> None:
        """Queries nobody shows anymore take their rows along, a moment later."""
        client.wait_rows(
            lambda _: not left_over(client, cases, self._upstream), "was rid of what nobody asks"
        )


@pytest.mark.parametrize("fixed_seed", SEEDS)
def test_every_view_shows_postgresqls_answer_whatever_happens(
    drivers: dict[str, Driver], upstream: Upstream, node: Node, fixed_seed: str | None
) -> None:
    seed = fixed_seed or f"{random.SystemRandom().getrandbits(32):08x}"
    print(f"seed {seed}")
    life = Life(seed, drivers, upstream, node)
    try:
        life.play()
    finally:
        life.close()
    assert life.compared >= 3 * GROUPS

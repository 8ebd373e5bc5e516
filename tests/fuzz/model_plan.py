"""What an episode of the model checker consists of, as plain data.

Owns the random choice of actions and their JSON form. An action is ``[name, delay in ms, seed,
*numbers]``; numbers are taken modulo what there is, so that any subset of a list of actions is
again a list of actions, which is what makes cutting down possible.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from typing import Any

Action = list[Any]

STORES = ("postgres", "sqlite")
# Groups with many tabs are rare in life and rich in cookies.
CROWD = 10


@dataclass
class Count:
    """What has been done and compared so far."""

    episodes: int = 0
    actions: int = 0
    beats: int = 0
    pokes: int = 0
    compared: int = 0
    skipped: int = 0
    quiet: int = 0
    kills: int = 0
    cuts: int = 0
    connections: int = 0


@dataclass(frozen=True)
class Plan:
    """Everything that makes an episode: replaying it repeats all but the timing.

    ``tabs`` is how many clients a group may have; ``store`` is where view records are kept;
    with ``two`` a second view-syncer serves the same groups from the same replica.
    """

    seed: str
    groups: int
    queries: int
    actions: tuple[Action, ...]
    tabs: int = 3
    store: str = "postgres"
    two: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        data = json.loads(text)
        return cls(**{**data, "actions": tuple(data["actions"])})

    @property
    def has_cuts(self) -> bool:
        """Whether connections to the database are cut, which the node then reports."""
        return any(action[0].startswith("cut_") for action in self.actions)

    @property
    def may_overload(self) -> bool:
        """Whether the server may send clients away for a moment: it has to copy a column again
        that changed its type, or cannot reach its database."""
        return self.has_cuts or any(action[0] == "ddl" for action in self.actions)


@dataclass(frozen=True)
class Choice:
    """What a plan may contain."""

    length: int
    groups: int
    kill: bool = True
    store: str = "postgres"
    two: bool = False


def make_plan(seed: str, allowed: Choice) -> Plan:
    choose = random.Random(seed)
    names = _names(choose, allowed)
    actions: list[Action] = []
    for i in range(allowed.length):
        delay = choose.choice([0, 0, 0, 1, 3, 10, 30, 100])
        numbers = [choose.randrange(1_000) for _ in range(3)]
        actions.append([choose.choice(names), delay, f"{seed}/{i}", *numbers])
    return Plan(
        seed,
        allowed.groups,
        choose.choice([6, 10, 14]),
        tuple(actions),
        tabs=choose.choice([3, 3, CROWD]),
        store=allowed.store,
        two=allowed.two and choose.random() < 0.4,
    )


def _names(choose: random.Random, allowed: Choice) -> list[str]:
    kind = choose.random()
    if kind < 0.25:
        # Queries start and stop all the time while bursts of writes go on.
        names = ["write"] * 20 + ["swap"] * 30 + ["flicker"] * 5 + ["offline", "online"] * 4
        names += ["new", "vanish", "quiet", "save", "new_saved"] * 2
    elif kind < 0.45:
        # Clients come and go, most of them with something old in hand.
        names = ["write"] * 25 + ["save"] * 6 + ["new_saved"] * 10 + ["reload"] * 10
        names += ["leave"] * 5 + ["online"] * 4 + ["vanish", "delete", "online_active"] * 4
        names += ["put"] * 8 + ["del"] * 8 + ["storm"] * 2 + ["quiet"] * 5
    elif kind < 0.6:
        # Who may see what changes all the time.
        names = ["permit"] * 25 + ["write"] * 25 + ["put"] * 12 + ["del"] * 8 + ["swap"] * 8
        names += ["save", "new_saved", "reload", "offline", "quiet"] * 3 + ["online"] * 6
        names += ["leave", "vanish", "stall", "storm"]
    else:
        names = ["write"] * 30 + ["put"] * 18 + ["del"] * 10 + ["swap"] * 6 + ["offline"] * 6
        names += ["online"] * 6 + ["online_active"] * 2 + ["new"] * 4 + ["new_saved"] * 2
        names += ["save"] * 2 + ["vanish"] + ["delete"] * 2 + ["stall"] * 3 + ["flicker"] * 2
        names += ["quiet"] * 5 + ["leave", "reload", "storm", "flood"]
    if allowed.kill:
        names += ["kill_worker"] * 2 + ["kill_replicator", "kill_node", "restart"]
        if choose.random() < 0.25:
            names += ["cut_store"] * 3 + ["cut_all"]
    if choose.random() < 0.3:
        names += ["ddl"] * 4
    if choose.random() < 0.4:
        names += ["permit"] * 6
    return names

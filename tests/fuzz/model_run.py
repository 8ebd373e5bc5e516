"""Runs one episode of the model checker and judges it.

Owns a node, its database and its clients for the length of one list of actions. Actions overlap:
writes, restarts and connections go on while the next actions are already taken. Every poke is
judged by the client; as many as affordable, and every client once all is quiet, are compared with
PostgreSQL at exactly the state that they show.
"""

from __future__ import annotations

import asyncio
import copy
import os
import random
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.protocol_client import DesiredQuery, ast_query
from benchmarks.sync_state import SyncState
from tests.fuzz import model_rules as rules
from tests.fuzz import model_world as world
from tests.fuzz.model_clients import Group, Seen, Tab
from tests.fuzz.model_plan import Count, Plan
from tests.fuzz.model_server import Broken, Server
from tests.fuzz.model_upstream import Rows, Upstream
from zerocache.zql import ast

_QUIET_TIMEOUT_S = 120.0
_QUEUED = 120
_TTLS = (0, 0, 200, 300_000, None)


class Episode:
    """See the module docstring; ``run`` raises :class:`Broken`."""

    def __init__(self, plan: Plan, database: str, folder: Path, count: Count) -> None:
        self._plan = plan
        self._database = database
        self._count = count
        self._app_id = f"model_{os.urandom(4).hex()}"
        folder.mkdir(parents=True, exist_ok=True)
        # What the engine hydrates itself: as much as usual, hardly anything, nothing.
        quick_rows = random.Random(plan.seed + "/quick").choice([300, 2, 0])
        self._server = Server(
            folder, database, self._app_id, plan.store, two=plan.two, quick_rows=quick_rows
        )
        self._groups: list[Group] = []
        self._asts: dict[str, ast.Query] = {}
        self._seen: deque[Seen] = deque()
        self._more = asyncio.Event()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writes: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self._background: list[asyncio.Task[None]] = []
        self._node_lock = asyncio.Lock()
        self._restarts: list[asyncio.Task[None]] = []
        self._log: list[str] = []

    @property
    def log(self) -> str:
        return "\n".join(self._log)

    async def run(self) -> None:
        self._upstream = await asyncio.to_thread(Upstream, self._database, self._app_id)
        try:
            await asyncio.to_thread(self._server.start)
            await asyncio.to_thread(self._upstream.deploy_permissions)
            self._make_groups()
            self._spawn(self._write())
            self._spawn(self._judge())
            work = asyncio.create_task(self._act())
            await asyncio.wait([work, self._broken], return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                work.cancel()
                await asyncio.wait([work])
                self._broken.result()
            await work
            self._server.check_log(cuts=self._plan.has_cuts)
        finally:
            await self._close()

    async def _close(self) -> None:
        for group in self._groups:
            for tab in group.tabs:
                self._counted(tab)
                await tab.go_offline()
        for task in [*self._background, *self._restarts]:
            task.cancel()
        await asyncio.gather(*self._background, *self._restarts, return_exceptions=True)
        async with self._node_lock:
            await asyncio.to_thread(self._server.end)
        self._count.beats += self._upstream.beat
        await asyncio.to_thread(self._upstream.close)
        if self._broken.done():
            self._broken.exception()  # was or will be told elsewhere

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(self._guard(coroutine))
        self._background.append(task)

    async def _guard(self, coroutine: Any) -> None:
        try:
            await coroutine
        except Exception as error:
            self._break(error)

    def _break(self, error: Exception) -> None:
        if not self._broken.done():
            self._broken.set_exception(error)

    def _note(self, text: str) -> None:
        now = asyncio.get_running_loop().time()
        self._log.append(f"{now:.3f} {text}")

    # -- clients ---------------------------------------------------------------------------------

    def _make_groups(self) -> None:
        """Queries are drawn from one pool, so that groups ask the same."""
        choose = random.Random(self._plan.seed + "/pool")
        pool: dict[str, tuple[ast.Query, int | None]] = {
            f"q{i}": (world.query(f"{self._plan.seed}/query/{i}"), choose.choice(_TTLS))
            for i in range(self._plan.queries)
        }
        # Two hashes of one query, and whole tables: their hydration overlaps with advances.
        pool["q0again"] = (pool["q0"][0], 0)
        pool["items"] = (ast.Query(table="item"), 0)
        hop = ast.Correlation(["id"], ["node"])
        children = ast.CorrelatedSubquery(hop, ast.Query(table="item", alias="items"))
        pool["nodes"] = (ast.Query(table="node", related=[children]), 200)
        pool["beat"] = (ast.Query(table="beat"), None)
        self._asts = {name: query for name, (query, _) in pool.items()}
        for number in range(self._plan.groups):
            queries: dict[str, DesiredQuery] = {}
            for name, (query, ttl) in pool.items():
                wire = ast_query(_plain(query)).ast
                queries[name] = DesiredQuery(name, ast=wire, ttl_ms=ttl)
            group = Group(f"g{number}", 1 if number % 3 == 2 else 0, queries)
            self._groups.append(group)
            self._new_tab(group, None, number)

    def _new_tab(self, group: Group, state: SyncState | None, number: int) -> None:
        state = state or SyncState(self._upstream.schemas.declared[group.variant])
        version = (51, 52, 51, 45)[number % 4]
        tab = Tab(
            self._server.urls, group, state, version, self._on_seen, self._on_broken,
            overload=self._plan.may_overload,
        )  # fmt: skip
        tab.wanted = {"beat"}
        names = sorted(group.queries)
        tab.want(names[(number + step) % len(names)] for step in (0, 5))
        group.tabs.append(tab)
        tab.go_online()

    def _on_broken(self, tab: Tab, error: Exception) -> None:
        self._break(Broken(f"{tab.id} at {tab.state.cookie}: {type(error).__name__}: {error}"))

    def _on_seen(self, seen: Seen) -> None:
        if len(self._seen) >= _QUEUED:
            self._count.skipped += 1
            return
        self._seen.append(seen)
        self._more.set()

    # -- actions ---------------------------------------------------------------------------------

    async def _act(self) -> None:
        await self._quiet()
        for group in self._groups:
            group.permitted = True
        for action in self._plan.actions:
            name, delay, seed, *numbers = action
            self._count.actions += 1
            await asyncio.sleep(delay / 1000)
            group = self._groups[numbers[0] % len(self._groups)]
            if name == "write":
                self._writes.put_nowait((seed, (1, 1, 2, 3, 8, 25)[numbers[1] % 6]))
            elif name in ("ddl", "permit"):
                self._writes.put_nowait((f"{name}/{seed}", 1))
            elif name == "quiet":
                await self._quiet()
            elif name.startswith(("kill_", "cut_", "restart")):
                self._note(name)
                self._count.kills += not name.startswith("cut_")
                self._count.cuts += name.startswith("cut_")
                self._restarts.append(
                    asyncio.create_task(self._guard(self._disturb(name, numbers[1])))
                )
            elif name == "storm":
                await self._storm()
            else:
                await self._client_action(name, group, numbers[1], numbers[2])
        for tab in self._tabs():
            tab.away = 0
        await self._quiet()

    def _tabs(self) -> list[Tab]:
        return [tab for group in self._groups for tab in group.tabs]

    async def _storm(self) -> None:
        """Everybody's network fails and comes back."""
        online = [tab for tab in self._tabs() if tab.online]
        await asyncio.gather(*(tab.go_offline() for tab in online))
        for tab in online:
            tab.go_online()

    async def _client_action(self, name: str, group: Group, a: int, b: int) -> None:
        tab = group.tabs[a % len(group.tabs)]
        names = sorted(set(group.queries) - {"beat"})
        query, other = names[b % len(names)], names[(a + b) % len(names)]
        self._note(f"{name} {tab.id} {query}")
        wanted = sorted(tab.wanted - {"beat"})
        match name:
            case "put":
                tab.want([query])
            case "del":
                tab.want(delete=wanted[b % len(wanted) :][:1] if wanted else ())
            case "swap":
                tab.want([query, other], set(wanted) - {query, other})
            case "flicker":
                tab.want([query])
                tab.want(delete=[query])
                tab.want([query])
            case "offline":
                await tab.go_offline()
            case "online" | "online_active":
                if not tab.online:
                    tab.go_online(tell_active=name == "online_active")
            case "leave":
                await self._leave(tab, b)
            case "new":
                self._join(group, None, b)
            case "new_saved":
                self._join(group, group.saved[a % len(group.saved)] if group.saved else None, b)
            case "reload":
                state = tab.copy_of_state()
                await self._remove(group, tab, tell=False, at_least=1)
                self._new_tab(group, state, b)
                group.tabs[-1].go_online(tell_active=b % 2 == 0)
            case "save":
                group.save(tab.copy_of_state())
            case "stall":
                tab.stall(0.1 + b / 1000)
            case "flood":
                tab.stall(2)
                self._writes.put_nowait((f"flood/{a}/{b}", 8))
            case "vanish" | "delete":
                await self._remove(group, tab, tell=name == "delete", at_least=2)

    def _join(self, group: Group, state: SyncState | None, number: int) -> None:
        if len(group.tabs) < self._plan.tabs:
            self._new_tab(group, copy.deepcopy(state), number)

    async def _leave(self, tab: Tab, number: int) -> None:
        """A closed laptop: the others come to rest without it, several times."""
        tab.away = 1 + number % 3
        tab.group.doubtful |= tab.ever_wanted
        await tab.go_offline()

    async def _remove(self, group: Group, tab: Tab, *, tell: bool, at_least: int) -> None:
        """A page goes away for good; perhaps another one tells the server."""
        if len(group.tabs) < at_least:
            return
        group.tabs.remove(tab)
        self._counted(tab)
        await tab.go_offline()
        # Which of its messages arrived is not known, nor whether this one will.
        group.doubtful |= tab.ever_wanted
        if tell:
            group.tabs[0].send_delete_clients([tab.id, "never-heard-of"])

    def _counted(self, tab: Tab) -> None:
        self._count.pokes += tab.pokes
        self._count.connections += tab.connections

    async def _disturb(self, name: str, number: int) -> None:
        async with self._node_lock:
            await asyncio.to_thread(self._server.disturb, name, number)

    async def _write(self) -> None:
        while True:
            seed, transactions = await self._writes.get()
            for i in range(transactions):
                statements = _statements(seed, i)
                group = self._groups[len(seed) % len(self._groups)]
                client = f"{group.id}c{1 + i % group.made}"
                mutation = (group.id, client) if i % 3 == 0 else None
                beat = await asyncio.to_thread(self._upstream.write, statements, mutation)
                self._note(f"beat {beat} {statements if len(statements) < 3 else len(statements)}")
            self._writes.task_done()

    # -- judgement -------------------------------------------------------------------------------

    async def _judge(self) -> None:
        while True:
            self._more.clear()
            while self._seen:
                seen = self._seen.popleft()
                await asyncio.to_thread(self._compare, seen)
            await self._more.wait()

    def _compare(self, seen: Seen) -> bool:
        """Raises :class:`Broken`; False if the state is too old to be asked about."""
        group = seen.tab.group
        with self._upstream.at(seen.beat) as snapshot:
            if snapshot is None:
                self._count.skipped += 1
                return False
            expected: Rows = {}
            for name in sorted(seen.got):
                answer = self._upstream.answer(snapshot, name, self._asts[name], group.variant)
                expected.update(answer)
            ids, results = self._upstream.mutations(snapshot, group.id)
        problem = self._difference(seen, expected)
        if seen.last_mutation_ids != ids:
            problem += f"\n  last mutation ids {seen.last_mutation_ids}, expected {ids}"
        if seen.results != results:
            problem += f"\n  mutation results {seen.results ^ results} differ"
        if problem:
            where = f"{seen.tab.id} at {seen.cookie}, beat {seen.beat}, got {sorted(seen.got)}"
            raise Broken(f"{where}:{problem}")
        self._count.compared += 1
        return True

    def _difference(self, seen: Seen, expected: Rows) -> str:
        schema = self._upstream.schemas.declared[seen.tab.group.variant]
        missing = [k for k in expected if k not in seen.rows]
        extra = [k for k in seen.rows if k not in expected]
        wrong = [
            (k, row, seen.rows[k])
            for k, row in expected.items()
            if k in seen.rows
            and row != {c: seen.rows[k].get(c) for c in schema.tables[k[0]].columns}
        ]
        problem = ""
        for what, found in (("missing", missing), ("left over", extra), ("different", wrong)):
            if found:
                problem += f"\n  {len(found)} {what}: {found[:5]}"
        return problem

    async def _quiet(self) -> None:
        """Let everything come to rest, and compare every client."""
        self._note("quiet")
        await self._writes.join()
        await asyncio.gather(*self._restarts)
        self._restarts.clear()
        await asyncio.to_thread(self._upstream.write, [])
        tabs = []
        for tab in self._tabs():
            tab.away -= tab.away > 0
            if not tab.away:
                tabs.append(tab)
                tab.resume()
                tab.go_online()
        deadline = asyncio.get_running_loop().time() + _QUIET_TIMEOUT_S
        for tab in tabs:
            while (why := self._restless(tab)) is not None:
                for each in tabs:
                    each.reassert()
                if asyncio.get_running_loop().time() > deadline:
                    raise Broken(
                        f"{tab.id} at {tab.state.cookie} does not come to rest: {why}; "
                        f"others: {[(t.id, t.state.cookie, self._restless(t)) for t in tabs]}"
                    )
                await asyncio.sleep(0.02)
        for tab in tabs:
            await asyncio.to_thread(self._compare, tab.seen(self._upstream.beat))
            tab.was_interrupted = False
        self._count.quiet += 1
        self._note("was quiet")

    def _restless(self, tab: Tab) -> str | None:
        """What is still to come, if anything."""
        group, state = tab.group, tab.state
        if tab.client is None or not tab.client.session.poke_count:
            return "the connection has not been poked"
        row = state.rows.get(("beat", (1,)))
        if row is None or row["n"] < self._upstream.beat:
            return f"{row} is older than {self._upstream.beat}"
        desired = state.desired.get(tab.id, set())
        if desired != tab.wanted:
            return f"desired {sorted(desired)}, wanted {sorted(tab.wanted)}"
        # A server need not hear what clients of another one ask before it has to write itself.
        heard = [tab] if self._plan.two else [other for other in group.tabs if not other.away]
        needed = {h for other in heard for h in other.wanted}
        if not needed <= state.got:
            return f"not got: {sorted(needed - state.got)}"
        expired = {h for h, q in group.queries.items() if q.ttl_ms is not None and q.ttl_ms < 1000}
        late = (state.got & expired) - needed - group.doubtful
        return f"not expired: {sorted(late)}" if late and not self._plan.two else None


def _statements(seed: str, number: int) -> list[str]:
    if seed.startswith("flood/"):
        return world.wide(number)
    if seed.startswith("ddl/"):
        return world.schema_change(seed)
    if seed.startswith("permit/"):
        return rules.change(seed)
    return world.transaction(f"{seed}/{number}")


def _plain(query: ast.Query) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(query))
    return plain

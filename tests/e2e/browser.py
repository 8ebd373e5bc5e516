"""Headless Chromium and the demo page in it, as Python objects.

Owns the selectors and what the page shows; ``driver/browser.mjs`` does the clicking.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.javascript import node_binary, playwright_package
from tests.e2e.lines import DEADLINE_S, LineProcess, Row

_DRIVER = Path(__file__).parent / "driver" / "browser.mjs"
_LISTED = """[...document.querySelectorAll('[data-testid=issue-row]')].map(row => ({
  id: row.dataset.id,
  title: row.querySelector('.title span').textContent,
  open: row.dataset.open === 'true',
  labels: [...row.querySelectorAll('.chip')].map(chip => chip.textContent),
}))"""

# With the keys in one order, whatever order they came in.
_JSON = "(rows => JSON.stringify(rows, ['id', 'title', 'open', 'labels']))"


def chromium() -> str:
    found = os.environ.get("ZEROCACHE_CHROMIUM") or shutil.which("chromium")
    if found is None:
        raise RuntimeError(
            "chromium is not on PATH, so the demo page cannot be tested in a browser. Install "
            "Debian's package chromium, set ZEROCACHE_CHROMIUM, or leave these tests out with: "
            "pytest -m 'not browser'"
        )
    return found


class Browser:
    """One Chromium. Pages of one ``profile`` are tabs of one browser: one client group."""

    def __init__(self, log: Path) -> None:
        self._problems: dict[str, list[str]] = defaultdict(list)
        command = [str(node_binary()), str(_DRIVER), str(playwright_package()), chromium()]
        self.lines = LineProcess(command, log, self._store)

    def _store(self, event: Row) -> None:
        self._problems[event["tab"]].append(event["text"])

    def problems(self, tab: str) -> list[str]:
        """What the page wrote to its console as an error, or threw."""
        return list(self._problems[tab])

    def open(self, url: str, profile: str | None = None) -> Page:
        tab = f"tab-{uuid.uuid4().hex[:6]}"
        own = profile or tab
        self.lines.command("open", tab=tab, profile=own, url=url, deadline_s=30)
        return Page(self, tab)

    def stop(self) -> None:
        self.lines.stop()


@dataclass(frozen=True)
class Page:
    """The demo page in one tab."""

    browser: Browser
    tab: str

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """Call a JavaScript function, given as text, in the page."""
        return self.browser.lines.command(
            "evaluate", tab=self.tab, script=script, argument=argument
        )

    def until(self, script: str, argument: Any = None, *, deadline_s: float = DEADLINE_S) -> None:
        """Wait until a JavaScript function returns something true in the page."""
        self.browser.lines.command(
            "until",
            tab=self.tab,
            script=script,
            argument=argument,
            timeout=deadline_s * 1000,
            deadline_s=deadline_s + 5,
        )

    def click(self, test_id: str, *, within: str = "") -> None:
        self.browser.lines.command(
            "click", tab=self.tab, selector=f"[data-testid={test_id}]{within}"
        )

    def fill(self, test_id: str, text: str) -> None:
        selector = f"[data-testid={test_id}]"
        self.browser.lines.command("fill", tab=self.tab, selector=selector, text=text)

    def select(self, test_id: str, value: str) -> None:
        selector = f"[data-testid={test_id}]"
        self.browser.lines.command("select", tab=self.tab, selector=selector, value=value)

    def close(self) -> None:
        self.browser.lines.command("close", tab=self.tab)

    def wait_state(self, test_id: str, state: str, *, deadline_s: float = DEADLINE_S) -> None:
        self.until(
            "([id, state]) => document.querySelector(`[data-testid=${id}]`)"
            "?.dataset.state === state",
            [test_id, state],
            deadline_s=deadline_s,
        )

    def listed(self) -> list[Row]:
        """The issues on the page, from top to bottom."""
        found: list[Row] = self.evaluate(f"() => {_LISTED}")
        return found

    def wait_listed(self, expected: list[Row], *, deadline_s: float = DEADLINE_S) -> None:
        """Wait until the page lists exactly these issues in this order."""
        try:
            self.until(
                f"expected => {_JSON}({_LISTED}) === {_JSON}(expected)",
                expected,
                deadline_s=deadline_s,
            )
        except Exception as error:
            listed = self.listed()
            wrong = [pair for pair in zip(listed, expected, strict=False) if pair[0] != pair[1]]
            raise AssertionError(
                f"{len(listed)} issues are listed, {len(expected)} expected;"
                f" the first that differ (listed, expected): {wrong[:3]}"
            ) from error

    def stored(self, table: str) -> list[Row]:
        """Every row of the client's local store."""
        found: list[Row] = self.evaluate(
            "table => window.demo.zero.inspector.client.rows(table)", table
        )
        return found

    def wait_activity(self, name: str, state: str) -> str:
        """Wait until the newest change is ``name`` in ``state``; what the page says about it."""
        self.until(
            "([name, state]) => {"
            " const item = document.querySelector('[data-testid=activity-item]');"
            " return item?.dataset.name === name && item.dataset.state === state; }",
            [name, state],
        )
        found: str = self.evaluate(
            "() => document.querySelector('[data-testid=activity-item]').textContent"
        )
        return found

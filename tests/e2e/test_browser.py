"""The demo page in headless Chromium: what a person sees is what PostgreSQL says."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import PostgresCluster, free_port
from tests.e2e.browser import Browser, Page
from tests.e2e.demo import (
    CLOSED_BUGS,
    OPEN,
    OPEN_100,
    OPEN_BY_CREATION,
    STORED,
    UNCOMMENTED,
    Demo,
    running_demo,
)
from tests.e2e.javascript import cache_folder

pytestmark = pytest.mark.browser

# The client waits 5 s before it tries again to reach a server that refused it.
RECONNECT_S = 25.0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser") / "browser.log")
    yield browser
    browser.stop()


@pytest.fixture(scope="module")
def demo(postgres: PostgresCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(postgres, tmp_path_factory.mktemp("demo")) as demo:
        yield demo


@pytest.fixture
def page(browser: Browser, demo: Demo) -> Iterator[Page]:
    """The page in a fresh profile, once it shows the list for the first time."""
    if demo.node.process is None:
        demo.node.start()
    page = open_page(browser, demo)
    yield page
    page.close()


def open_page(browser: Browser, demo: Demo, profile: str | None = None) -> Page:
    page = browser.open(demo.page_url, profile)
    page.wait_state("connection", "connected", deadline_s=RECONNECT_S)
    page.wait_state("list-state", "complete")
    return page


def test_list_follows_changes_made_with_sql(browser: Browser, page: Page, demo: Demo) -> None:
    page.wait_listed(demo.issues(OPEN))
    last = demo.issues(OPEN)[-1]["id"]
    outside = demo.answer("SELECT id FROM issue WHERE open ORDER BY modified_at, id LIMIT 1")
    closed = demo.answer("SELECT id FROM issue WHERE NOT open ORDER BY id LIMIT 1")
    for statement, *params in (
        ("UPDATE issue SET title = 'moved to the top' WHERE id = %s", last),
        ("UPDATE issue SET title = 'entered the window' WHERE id = %s", outside),
        ("UPDATE issue SET open = true WHERE id = %s", closed),
        ("UPDATE issue SET open = false WHERE id = %s", last),
        ("DELETE FROM issue WHERE id = %s", outside),
        ("INSERT INTO issue (id, title, creator_id) VALUES ('sql', 'from psql', 'u1')",),
        ("INSERT INTO issue_label SELECT 'sql', id FROM label",),
        ("UPDATE label SET name = 'defect' WHERE name = 'bug'",),
        ("UPDATE label SET name = 'bug' WHERE name = 'defect'",),
        ("DELETE FROM issue_label WHERE issue_id = 'sql'",),
        ("UPDATE issue SET id = 'renamed' WHERE id = 'sql'",),
        ("DELETE FROM issue WHERE id = 'renamed'",),
    ):
        demo.sql(statement, *params)
        page.wait_listed(demo.issues(OPEN))
    stored = sorted(page.stored("issue"), key=lambda row: str(row["id"]))
    assert stored == demo.issues(STORED)
    assert browser.problems(page.tab) == []


def test_filters_show_postgres_answer(page: Page, demo: Demo) -> None:
    bug = demo.answer("SELECT id FROM label WHERE name = 'bug'")
    page.select("sort", "created")
    page.wait_listed(demo.issues(OPEN_BY_CREATION))
    page.select("sort", "modified")
    page.click("load-more")
    page.wait_listed(demo.issues(OPEN_100))

    # EXISTS through a hidden junction.
    page.select("filter-status", "closed")
    page.select("filter-label", bug)
    page.wait_listed(demo.issues(CLOSED_BUGS))
    gone = demo.issues(CLOSED_BUGS)[3]["id"]
    demo.sql("DELETE FROM issue_label WHERE issue_id = %s", gone)
    page.wait_listed(demo.issues(CLOSED_BUGS))

    # NOT EXISTS in a named query.
    page.click("filter-uncommented")
    page.wait_listed(demo.issues(UNCOMMENTED))
    talked_about = demo.issues(UNCOMMENTED)[0]["id"]
    demo.sql("INSERT INTO comment VALUES ('first', %s, 'u1', 'hello')", talked_about)
    page.wait_listed(demo.issues(UNCOMMENTED))
    demo.sql("DELETE FROM comment WHERE id = 'first'")
    page.wait_listed(demo.issues(UNCOMMENTED))


def test_change_shows_at_once_and_is_confirmed(page: Page, demo: Demo) -> None:
    page.fill("new-issue-title", "written by a person")
    page.click("new-issue-submit")
    page.wait_activity("issues.create", "confirmed")
    page.wait_listed(demo.issues(OPEN))
    created = page.listed()[0]
    assert created["title"] == "written by a person"
    assert demo.answer("SELECT title FROM issue WHERE id = %s", created["id"]) == created["title"]

    page.wait_state("issue-detail", "complete")
    page.fill("comment-body", "a remark")
    page.click("comment-submit")
    page.wait_activity("comments.add", "confirmed")
    page.click("detail-label", within=":first-of-type")
    page.wait_activity("issues.setLabel", "confirmed")
    page.wait_listed(demo.issues(OPEN))
    assert page.listed()[0]["labels"] != []
    page.click("detail-toggle")
    page.wait_activity("issues.update", "confirmed")
    page.wait_listed(demo.issues(OPEN))
    assert page.listed()[0]["id"] != created["id"]


def test_forbidden_change_is_undone_and_says_why(page: Page, demo: Demo) -> None:
    before = demo.issues(OPEN)
    page.wait_listed(before)
    page.evaluate(
        """() => {
          window.titles = new Set();
          new MutationObserver(() => {
            const row = document.querySelector('[data-testid=issue-row] .title span');
            if (row) window.titles.add(row.textContent);
          }).observe(document.getElementById('issues'), {childList: true, subtree: true});
        }"""
    )
    page.click("issue-row", within=":first-child")
    page.wait_state("issue-detail", "complete")
    page.click("error-demo")
    said = page.wait_activity("issues.shout", "rejected")
    assert "may not be shouted" in said
    page.wait_listed(before)
    assert f"{before[0]['title'].upper()}!!!" in page.evaluate("() => [...window.titles]")


def test_tabs_of_one_browser_form_a_group_and_see_each_others_changes(
    browser: Browser, demo: Demo
) -> None:
    tabs = [open_page(browser, demo, "shared") for _ in range(2)]
    groups = {tab.evaluate("() => window.demo.zero.clientGroupID") for tab in tabs}
    assert len(groups) == 1
    tabs[0].fill("new-issue-title", "from the first tab")
    tabs[0].click("new-issue-submit")
    tabs[0].wait_activity("issues.create", "confirmed")
    for tab in tabs:
        tab.wait_listed(demo.issues(OPEN))
    for tab in tabs:
        tab.close()


def test_page_catches_up_after_kill_9_with_writes_in_between(page: Page, demo: Demo) -> None:
    page.wait_listed(demo.issues(OPEN))
    demo.node.kill9()
    shown = [issue["id"] for issue in demo.issues(OPEN)]
    demo.sql("DELETE FROM issue WHERE id IN (%s, %s)", shown[0], shown[7])
    demo.sql("UPDATE issue SET open = false WHERE id IN (%s, %s)", shown[1], shown[20])
    demo.sql("UPDATE issue SET title = 'meanwhile' WHERE id = %s", shown[30])
    demo.sql("INSERT INTO issue (id, title, creator_id) VALUES ('meanwhile', 'meanwhile', 'u2')")
    demo.node.start()
    page.wait_listed(demo.issues(OPEN), deadline_s=RECONNECT_S)
    stored = sorted(page.stored("issue"), key=lambda row: str(row["id"]))
    assert stored == demo.issues(STORED)


def test_zerocache_dev_serves_a_page_that_follows_psql(browser: Browser, tmp_path: Path) -> None:
    data = tmp_path / "data"
    # As at the second start: npm has been asked before.
    shutil.copytree(cache_folder() / "demo-npm", data / "npm")
    page_port = free_port()
    with dev_command(data, page_port) as process:
        assert process.stdout is not None
        # The announcement ends with how to end it.
        while "Ctrl-C ends everything" not in (line := process.stdout.readline()):
            assert line, "zerocache dev ended before it was ready"
        page = browser.open(f"http://127.0.0.1:{page_port}")
        page.wait_state("connection", "connected")
        page.wait_state("list-state", "complete")
        update = "UPDATE issue SET title = 'Hello from SQL' WHERE id = 'i2000'"
        subprocess.run([data / "psql", "-c", update], check=True, stdout=subprocess.DEVNULL)
        page.until(
            "() => document.querySelector('[data-testid=issue-row] .title span')"
            "?.textContent === 'Hello from SQL'"
        )
        page.fill("new-issue-title", "written by a person")
        page.click("new-issue-submit")
        page.wait_activity("issues.create", "confirmed")
        page.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@contextmanager
def dev_command(data: Path, page_port: int) -> Iterator[subprocess.Popen[str]]:
    start = "import sys; from zerocache.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", start, "dev", "--data-dir", data, "--demo-port", str(page_port)],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("ZERO_")},
            "ZERO_PORT": str(free_port()),
            "ZERO_CHANGE_STREAMER_PORT": str(free_port()),
        },
        cwd=data.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(20)

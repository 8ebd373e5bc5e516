"""What ``zerocache dev`` says on the terminal once everything runs.

Owns the words only. Must never contain a password: terminals are shared and recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zerocache.config import Config

_CHANGE_A_ROW = "UPDATE issue SET title = 'Hello from SQL' WHERE id = 'i2000'"
_LATEST_ROWS = "SELECT id, title, open FROM issue ORDER BY modified_at DESC LIMIT 5"


@dataclass(frozen=True)
class Demo:
    config: Config
    demo_port: int
    data_dir: Path
    database_port: int


def demo_text(demo: Demo, seconds: float, page_problem: str | None) -> str:
    """``page_problem`` says why the page does not work, None if it does."""
    page = f"http://localhost:{demo.demo_port}"
    sync = f"http://localhost:{demo.config.port}"
    source = Path(__file__).parent
    note = "open it in two windows" if page_problem is None else "NOT AVAILABLE, see below"
    problem = "" if page_problem is None else f"\n  The page: {page_problem}\n"
    psql = _relative(demo.data_dir / "psql")
    return f"""
  zerocache dev is ready ({seconds:.1f} s)

    page       {page}    {note}
    sync       {sync}    what clients connect to (cacheURL)
    API        {page}/api/query and /api/mutate
    database   PostgreSQL 18 on 127.0.0.1:{demo.database_port}, data in {demo.data_dir / "pg"}
    replica    {demo.config.replica.file}
{problem}
  Try next

    1. Change a row in SQL and watch the page:
         {psql} -c "{_CHANGE_A_ROW}"
    2. Create, close and label issues on the page; see them in SQL:
         {psql} -c "{_LATEST_ROWS}"
    3. Connect a client of your own (npm install @rocicorp/zero):
         new Zero({{cacheURL: "{sync}", schema, mutators}})
    4. Read the application: {source}
         demo_schema.py, demo_queries.py, demo_mutators.py, page/model.js
    5. Use your own database (wal_level=logical):
         ZERO_UPSTREAM_DB=postgres://user:password@host/name zerocache dev

  Ctrl-C ends everything. The data stays in {demo.data_dir}; delete that folder to start over.
"""


def own_database(config: Config) -> str:
    return f"""
  zerocache dev is ready, on the database of ZERO_UPSTREAM_DB (no demo application)

    sync       http://localhost:{config.port}    what clients connect to (cacheURL)
    replica    {config.replica.file}
    queries    {", ".join(config.query.url) or "ZERO_QUERY_URL is not set"}
    mutations  {", ".join(config.mutate.url) or "ZERO_MUTATE_URL is not set"}

  Ctrl-C ends it.
"""


def _relative(file: Path) -> str:
    """A path that a shell runs as a command."""
    return str(file) if file.is_absolute() else f"./{file}"

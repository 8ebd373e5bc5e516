"""The write load of the crash tests: small, large and rolled back transactions, keys that move."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import LiteralString

import psycopg

HEAVY = 4_000
"""Rows of the table whose updates fill the replica's log file."""
_PAUSE_S = 0.02

SCHEMA: LiteralString = """
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, note text);
CREATE TABLE event (id bigserial PRIMARY KEY, account int, at timestamptz DEFAULT now());
CREATE TABLE plain (n int);
CREATE TABLE heavy (id int PRIMARY KEY, n int NOT NULL, filler text NOT NULL);
CREATE SCHEMA hidden;
CREATE TABLE hidden.elsewhere (n int);
INSERT INTO account SELECT i, 100, 'x' FROM generate_series(1, 50) i;
INSERT INTO heavy SELECT i, 0, repeat('x', 900) FROM generate_series(1, 4000) i;
CREATE INDEX ON heavy (n);
"""


def _published(connection: psycopg.Connection[object], rng: random.Random) -> None:
    a, b = rng.randint(1, 50), rng.randint(1, 50)
    with connection.transaction(force_rollback=rng.random() < 0.1):
        connection.execute("UPDATE account SET balance = balance - 1 WHERE id = %s", [a])
        connection.execute("UPDATE account SET balance = balance + 1 WHERE id = %s", [b])
        connection.execute(
            "INSERT INTO event (account) SELECT %s FROM generate_series(1, %s)",
            [a, rng.choice([1, 2, 100])],
        )
        connection.execute("INSERT INTO plain VALUES (%s)", [a])
        chance = rng.random()
        if chance < 0.2:
            connection.execute("DELETE FROM event WHERE id %% 7 = %s", [a % 7])
        elif chance < 0.25:
            connection.execute("UPDATE event SET id = -id WHERE account = %s", [b])
        elif chance < 0.5:
            connection.execute(
                "UPDATE heavy SET n = n + 1, filler = %s || left(filler, 899) WHERE id %% 4 = %s",
                [rng.choice("abc"), a % 4],
            )
        elif chance < 0.52:
            connection.execute("TRUNCATE plain")


def _write(url: str, stop: threading.Event, seed: int, published: bool) -> None:
    rng = random.Random(seed)
    while not stop.wait(_PAUSE_S):
        # The server may be killed as well.
        with (
            suppress(psycopg.OperationalError),
            psycopg.connect(url, autocommit=True) as connection,
        ):
            while not stop.wait(_PAUSE_S):
                if published:
                    _published(connection, rng)
                else:
                    connection.execute("INSERT INTO hidden.elsewhere VALUES (1)")


@contextmanager
def write_heavily(url: str, seed: int, *, published: bool = True) -> Iterator[None]:
    """Write in a thread of its own; without ``published`` only what is not replicated."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(_write, url, stop, seed, published)
        try:
            yield
        finally:
            stop.set()
    writer.result()

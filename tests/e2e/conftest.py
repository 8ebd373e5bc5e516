"""Fixtures of the end-to-end tests: official clients, a node, an application, a database.

The database, the application and the node are shared by all tests of a module, the driver
processes by the whole session; every test starts from ``seed.sql`` and opens clients of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PostgresCluster
from tests.e2e.app import App
from tests.e2e.client import Driver
from tests.e2e.javascript import CLIENT_VERSIONS, client_package, node_binary
from tests.e2e.node import Node, server_kind
from tests.e2e.upstream import Upstream

# Left out when the tests are checked against the reference server, and only then.
NOT_FOR_THE_REFERENCE = frozenset(
    {
        # Its workers go on without their parent, and keep its port and its replication slot.
        "test_orphans_of_a_killed_supervisor_end_and_a_new_node_takes_over",
        # One worker's death ends the whole node.
        "test_killed_sync_worker_is_replaced_and_its_clients_come_back",
        # It has no such command.
        "test_zerocache_dev_serves_a_page_that_follows_psql",
    }
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything here but the browser tests needs Node 22 and the official client."""
    here = Path(__file__).parent
    ours = [item for item in items if item.path.is_relative_to(here)]
    for item in ours:
        if item.get_closest_marker("browser") is None:
            item.add_marker("js")
    if server_kind() == "reference":
        left_out = [i for i in ours if getattr(i, "originalname", i.name) in NOT_FOR_THE_REFERENCE]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Driver]]:
    logs = tmp_path_factory.mktemp("drivers")
    started: dict[str, Driver] = {}
    try:
        for version in CLIENT_VERSIONS:
            package = client_package(version)
            started[version] = Driver(node_binary(), package, version, logs / f"{version}.log")
        yield started
    finally:
        for driver in started.values():
            driver.stop()


@pytest.fixture(params=CLIENT_VERSIONS)
def driver(drivers: dict[str, Driver], request: pytest.FixtureRequest) -> Driver:
    """The official client, in every release under test."""
    return drivers[request.param]


@pytest.fixture(scope="module")
def upstream_db(postgres: PostgresCluster) -> Iterator[Upstream]:
    """A database with the schema, published in full."""
    name = postgres.create_database()
    upstream = Upstream(postgres.url_of(name))
    upstream.create_schema()
    yield upstream
    upstream.close()
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def app(upstream_db: Upstream) -> Iterator[App]:
    app = App(upstream_db.url)
    app.start()
    yield app
    app.stop()


@pytest.fixture(scope="module")
def node(
    upstream_db: Upstream, app: App, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    node = Node(
        directory=tmp_path_factory.mktemp("node"),
        upstream=upstream_db.url,
        app_id=f"e2e_{uuid.uuid4().hex[:8]}",
        api=app.url,
    )
    node.start()
    try:
        yield node
    finally:
        # Whether it can end gracefully is for test_recovery; here it is only in the way.
        node.kill9()


@pytest.fixture
def upstream(upstream_db: Upstream, node: Node) -> Upstream:
    """The upstream database as ``seed.sql`` leaves it, with a node replicating it."""
    upstream_db.seed()
    return upstream_db

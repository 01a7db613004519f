"""What holds for all tests."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.beside import Beside, run_of
from tests.servers.kubernetes import KubeCluster

# Nothing is asserted by timing: a busy machine makes examples slow, not wrong. The examples are the same in every run, so
# that a change is what a failure comes from; `make soak` looks for others. What is found is printed to be repeated.
SEARCH = bool(os.environ.get("CLOUDHUB_TEST_SEARCH"))
settings.register_profile(
    "cloudhub",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not SEARCH,
    max_examples=2000 if SEARCH else 100,
)
settings.load_profile("cloudhub")


IDLE = Beside("test_idle.py::test_an_idle_node_keeps_its_bounds", ["-m", "tests.soak.idle"])


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(IDLE)


@pytest.fixture
def idle(pytestconfig: pytest.Config) -> dict[str, Any]:
    """What `tests.soak.idle` has found beside the tests of this run."""
    found: dict[str, Any] = json.loads(IDLE.wait(run_of(pytestconfig)))
    return found


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[KubeCluster]:
    """A Kubernetes control plane without nodes, for tests that keep to namespaces and nodes of their own and take nothing
    of it down. Started once per worker, in about five seconds."""
    with KubeCluster() as made:
        yield made

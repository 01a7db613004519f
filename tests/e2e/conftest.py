"""Fixtures of the end-to-end tests."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import ApiFailure, Cluster, kubectl_binaries, running_cluster
from tests.e2e.hostile import Identity, enrolled
from tests.e2e.hostile_fleet import Fleet, undisturbed
from tests.e2e.kube import Kube
from tests.e2e.starts import Starts, counting
from tests.e2e.steady import Steady, steady


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose processes end with the test."""
    with running_cluster(tmp_path) as made:
        yield made


@pytest.fixture
def starts() -> Iterator[Starts]:
    """Counts the starts of workloads."""
    with counting() as made:
        yield made


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A hub and the nodes n1 and n2, for tests that keep to a namespace of their own and put nodes back in order."""
    with running_cluster(tmp_path_factory.mktemp("shared")) as made:
        made.hub()
        made.agent("n1", wait=False)
        made.agent("n2")
        made.wait_ready("n1")
        yield made


@pytest.fixture(params=["current", "debian-1.20"])
def kube(request: pytest.FixtureRequest, shared_cluster: Cluster) -> Iterator[Kube]:
    """kubectl, each of the two, in a namespace of its own, which is taken away afterwards."""
    binary = kubectl_binaries()[["current", "debian-1.20"].index(request.param)]
    # Unique on this machine: tests find processes by marks that are made of it.
    made = Kube(shared_cluster, binary, f"t-{os.urandom(4).hex()}")
    yield made
    with contextlib.suppress(ApiFailure):  # a test may have deleted it
        shared_cluster.main.api("DELETE", f"/api/v1/namespaces/{made.namespace}")


@pytest.fixture(scope="session")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A hub with one agent at work, for tests of hostile peers."""
    with running_cluster(tmp_path_factory.mktemp("peers")) as made:
        yield Fleet(made)


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, which no test of hostile peers may disturb."""
    with undisturbed(shared_fleet):
        yield shared_fleet


@pytest.fixture(scope="session")
def calm(shared_fleet: Fleet) -> Identity:
    """The node whose heartbeats and reports are timed."""
    return enrolled(shared_fleet.hub, "calm", shared_fleet.cluster.root / "calm")


@pytest.fixture
def watched(fleet: Fleet, calm: Identity) -> Iterator[Steady]:
    """A node that is served in time whatever the test does to the hub."""
    with steady(fleet.hub, calm) as watch:
        yield watch

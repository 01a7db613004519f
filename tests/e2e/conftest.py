"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, running_cluster
from tests.e2e.starts import Starts, counting


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

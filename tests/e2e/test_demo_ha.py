"""`make demo-ha`, as the README promises it."""

import subprocess
import sys

from tests.e2e.cluster import ROOT
from tests.e2e.test_demo import assert_nothing_is_left, environment, place  # noqa: F401 - a fixture

DEMO = [sys.executable, str(ROOT / "examples/demo_ha.py")]


def test_once_shows_that_a_replica_can_be_lost_and_leaves_nothing(place) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    done = subprocess.run(
        [*DEMO, "--once"], env=environment(place, True), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("hello from the edge", "hub-1", "hub-2", "hub-3", "kill -9 of hub-3", "2 nodes"):
        assert expected in done.stdout, done.stdout
    assert_nothing_is_left(place)

"""A short run with every kind of fault and every assertion; `make chaos` and `make soak` do long ones."""

from pathlib import Path

import pytest

from tests.chaos.run import Chaos, Size, as_json

SHORT = Size(
    nodes=24, processes=1, agents=1, seconds=20.0, ttl_s=2.0, slots=64, threads=2, pods_each=25, statuses_per_s=15.0,
    settle_s=120.0, gap_s=1.0,
)  # fmt: skip


@pytest.mark.timeout(400)
def test_nothing_is_lost_doubled_or_restarted_whatever_fails(tmp_path: Path) -> None:
    report = Chaos(tmp_path, 20261121, SHORT).run()
    print(as_json(report))
    assert report["violations"] == []
    assert report["load"]["acknowledged"]["create"] > 10
    assert report["history"]["fenced writes"] > 10

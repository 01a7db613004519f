"""`make agent-check`: every promise of the Windows runtime, under wine."""

from pathlib import Path

from tests.edgelite.windows import promises_names
from tests.edgelite.windows.test_windows import EXPECTED_SKIPS, LAUNCHING, kept, told
from tests.wine import Wine, wine  # noqa: F401


def test_the_runtime_keeps_all_its_promises_under_wine(wine: Wine, tmp_path: Path) -> None:  # noqa: F811
    found = kept(wine, tmp_path)
    assert sorted(found) == sorted(promises_names())
    skipped = {name: one["skip"] for name, one in found.items() if "skip" in one}
    print(f"{len(found) - len(skipped)} of {len(found)} kept; wine lacks {sorted(skipped.values())}")
    assert set(skipped) <= set(EXPECTED_SKIPS)


def test_the_launcher_keeps_all_its_promises_under_wine(wine: Wine, tmp_path: Path) -> None:  # noqa: F811
    assert sorted(told(wine, LAUNCHING, tmp_path)) == sorted(promises_names("launching.py"))

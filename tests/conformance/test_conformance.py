"""The agent's conformance suite, shortened; `make conformance` runs it whole."""

from pathlib import Path

import pytest

from tests.conformance import platforms, suite
from tests.conformance.scenarios import SCENARIOS

pytestmark = pytest.mark.timeout(600)
BOARD = {"enrol": platforms.BOARD_JOINS, "expired": platforms.BOARD_RENEWS}


def test_every_platform_passes_every_scenario_and_skips_only_what_it_says(tmp_path: Path) -> None:
    results = suite.run(tmp_path, full=False, only=("CPython 3.11", "Board"))
    print(results.table())
    assert not results.failed, "\n".join(
        f"--- {platform}: {name}\n{trouble}" for (platform, name), trouble in results.failed.items()
    )
    names = {scenario.name for scenario in SCENARIOS}
    skipped: dict[str, dict[str, str]] = {}
    for (platform, name), why in results.skipped.items():
        skipped.setdefault(platform, {})[name] = why
    assert skipped.pop("Board") == BOARD
    for platform, found in skipped.items():
        if found != {"heap": platforms.LARGE["heap"]}:
            assert platform != f"CPython {platforms.NEEDED}" and set(found.values()) == {platforms.ABSENT}
            assert set(found) == names
    assert len(results.passed) + len(results.skipped) == len(results.platforms) * len(names)


def test_the_table_shows_and_counts_what_was_skipped() -> None:
    results = suite.Results()
    results.platforms = ["A", "Bb"]
    for scenario in SCENARIOS:
        results.add("A", scenario.name, "")
        results.skipped["Bb", scenario.name] = "it cannot"
    results.skipped.pop(("Bb", "sync"))
    results.add("Bb", "sync", "Traceback")
    lines = results.table().splitlines()
    assert lines[1].split() == ["A"] + ["ok"] * len(SCENARIOS)
    assert lines[2].split() == ["Bb", "skip", "FAILED"] + ["skip"] * (len(SCENARIOS) - 2)
    assert lines[3].startswith(f"Bb skips {len(SCENARIOS) - 1} (enrol, heap") and lines[3].endswith(
        ": it cannot"
    )
    assert lines[4] == f"{len(SCENARIOS)} passed, 1 failed, {len(SCENARIOS) - 1} skipped"

"""Every target for a minute, all at once and at a lower priority.

From the committed corpus and with one seed, so that a change is what a failure comes from; `make fuzz SECONDS=...` tries
what nobody has tried yet, and goes on from what its last run kept.
"""

import os
from pathlib import Path

import pytest

from tests.fuzz import engine
from tests.fuzz.__main__ import CORPUS, TARGETS, fuzz

SECONDS = 60
SEED = 1


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_of_a_target_passes(target: str) -> None:
    check = engine.load(target)
    seeds = sorted((CORPUS / target).iterdir())
    assert seeds, f"tests/fuzz/corpus/{target} is empty"
    for seed in seeds:
        check(seed.read_bytes())


@pytest.mark.timeout(SECONDS + 540)
def test_a_minute_of_fuzzing_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = fuzz(TARGETS, SECONDS, tmp_path, SEED)
    with capsys.disabled():
        print("", *(f"{one.target}: {one.inputs} inputs" for one in outcomes), sep="\n  ")
    assert [one.failure for one in outcomes if one.failure] == []
    for one in outcomes:
        assert one.inputs > len(os.listdir(CORPUS / one.target)), f"{one.target} tried nothing of its own"


def test_a_fault_is_found_and_its_replay_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle at work: a target that is broken on purpose."""
    (outcome,) = fuzz(("_broken",), 30, tmp_path)
    assert "Uncaught Python exception" in outcome.failure and "found you" in outcome.failure
    replay = next(line for line in outcome.failure.splitlines() if line.startswith("replay: "))
    assert "python -m tests.fuzz.engine _broken" in replay
    with pytest.raises(RuntimeError, match="found you"):
        engine.load("_broken")(Path(replay.split()[-1]).read_bytes())

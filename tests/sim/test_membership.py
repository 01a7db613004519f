"""Membership under any interleaving. More: `python -m tests.sim.membership --schedules 1000000`; a seed that fails is
replayed by `python -m tests.sim.membership --replay SEED`."""

import subprocess
import sys

import pytest

from tests.sim.membership import simulate

FOUND = {
    771: "a write of an earlier claim was refused late, and the claim that followed was given up for ever",
    914: "a read that the watch had overtaken was taken for a store that had gone back",
    7734: "a claim whose answer was lost had been shown by the watch meanwhile, and nobody adopted it",
    24886: "a claim that was carried out late was shown while the next one was under way, which never left",
    102648: "the watch showed a claim after it had been released, and it was adopted again",
    121227: "the load of a slot that was lost and taken up again counted for the second time",
}
"""Schedules that once failed."""


@pytest.mark.parametrize("thousand", range(10))
def test_ten_thousand_schedules_hold_and_settle(thousand):
    refused = accepted = restored = 0
    for seed in range(thousand * 1000, thousand * 1000 + 1000):
        outcome = simulate(seed)
        assert not outcome.problem, f"seed {seed}: {outcome.problem}"
        refused += outcome.refused
        accepted += outcome.accepted
        restored += outcome.restored
    # Else the schedules are too tame to show anything.
    assert refused > 50
    assert accepted > 10_000
    assert restored > 50


def test_without_the_fence_it_fails_within_a_thousand_schedules():
    problems = (simulate(seed, fenced=False).problem for seed in range(1000))
    assert "was accepted in epoch" in next(problem for problem in problems if problem)


def test_the_fence_alone_keeps_writes_of_old_epochs_out():
    for seed in range(500):
        outcome = simulate(seed, deadline=False)
        assert not outcome.problem, f"seed {seed}: {outcome.problem}"


@pytest.mark.parametrize("seed", sorted(FOUND))
def test_schedules_that_once_failed_hold(seed):
    assert not simulate(seed).problem


def test_a_seed_is_one_story():
    assert simulate(7) == simulate(7)


def test_the_command_tells_the_seed_that_fails():
    run = [sys.executable, "-m", "tests.sim.membership", "--no-fence"]
    many = subprocess.run(
        [*run, "--schedules", "100", "--processes", "1"], capture_output=True, text=True, check=False
    )
    assert many.returncode == 1, many.stderr
    seed = many.stdout.split()[1].rstrip(":")
    one = subprocess.run([*run, "--replay", seed], capture_output=True, text=True, check=False)
    assert one.returncode == 1
    assert one.stdout.splitlines()[-1].startswith(f"seed {seed}: slot")

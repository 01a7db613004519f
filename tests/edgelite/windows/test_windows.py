"""The agent on Windows: Windows' CPython under wine, with wine's job objects, consoles and files. What wine lacks is skipped by
name (EXPECTED_SKIPS), on a real Windows nothing is.

Here a few promises of the runtime and one life of a node with a real hub; all promises are kept by `make agent-check`.
"""

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wine import Wine, wine  # noqa: F401

PROMISES = str(Path(__file__).with_name("promises.py"))
LAUNCHING = str(Path(__file__).with_name("launching.py"))
EXPECTED_SKIPS = {
    "limits_are_set_where_job_objects_have_them": "the limits of a job",
    "stop_asks_by_ctrl_break_and_the_program_ends_by_itself": "Ctrl-Break",
    "memory_above_the_limit_is_not_given": "the memory limit of a job",
    "a_volume_is_shown_by_a_junction": "junctions",
    "what_a_container_uses_is_told_while_it_runs": "cpu time of a job",
}
SHORT = (
    "arguments_environment_and_exit_code_arrive_as_they_are",
    "what_does_not_listen_is_killed_with_all_its_children_after_its_grace",
    "a_shim_that_is_killed_takes_its_workload_along",
    "a_failed_start_says_why_and_leaves_nothing",
    "a_file_that_is_open_keeps_its_content_and_that_is_said",
    "the_boot_id_stays_the_same_until_a_reboot",
    "windows_splits_command_lines_into_what_they_were_made_of",
)

SHORT_LAUNCHING = (
    "a_trial_that_was_kept_is_started_anew_and_ends_as_the_agent_ends",
    "a_trial_that_crashes_is_given_up_and_the_installed_release_runs",
    "a_trial_that_hangs_is_ended_and_what_was_good_runs",
    "the_decisions_hold_on_a_disk_of_windows",
)


def lines() -> list[list[str]]:
    """Argument vectors of every kind that a command line can say."""
    found: list[list[str]] = []
    hard = st.text(alphabet='ab \t"\\\n%^&\u00e9\U0001f600', max_size=12)

    @settings(
        max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )  # fmt: skip
    @given(st.lists(hard, max_size=5))
    def collect(arguments: list[str]) -> None:
        found.append(["C:\\some program", *arguments])

    collect()
    return found


def kept(wine: Wine, directory: Path, *names: str) -> dict[str, Any]:  # noqa: F811
    """What Windows' Python said of these promises, of all without names; none may be broken, or skipped but for a known reason."""
    (directory / "lines.json").write_text(json.dumps(lines()))
    found = told(wine, PROMISES, directory, *names)
    for name, one in found.items():
        if "skip" in one:
            print(f"skipped: {name}: {one['skip']}")
            assert one["skip"].startswith(EXPECTED_SKIPS.get(name, "nothing")), one
    return found


def told(wine: Wine, script: str, directory: Path, *names: str) -> dict[str, Any]:  # noqa: F811
    """What Windows' Python said of the promises of a script, of all without names; none may be broken."""
    # A broken one is told here with what it said, and not by the exit code.
    done = wine.ask(script, str(directory / "promises"), *names)
    said = [json.loads(line) for line in done.splitlines() if line.startswith("{")]
    broken = [one for one in said if "error" in one]
    assert said and not broken, "\n".join(f"{one['name']}: {one['error']}" for one in broken) or done[-4000:]
    found = {one["name"]: one for one in said}
    print({name: one["seconds"] for name, one in found.items()})
    return found


def test_the_runtime_keeps_its_promises_under_wine(wine: Wine, tmp_path: Path) -> None:  # noqa: F811
    assert sorted(kept(wine, tmp_path, *SHORT)) == sorted(SHORT)


def test_the_launcher_keeps_its_promises_under_wine(wine: Wine, tmp_path: Path) -> None:  # noqa: F811
    assert sorted(told(wine, LAUNCHING, tmp_path, *SHORT_LAUNCHING)) == sorted(SHORT_LAUNCHING)

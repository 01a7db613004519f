"""Carries out the conformance suite: every scenario for every platform that is here, and a table of what came of it.

python -m tests.conformance                       everything
python -m tests.conformance --platform Board      one platform
python -m tests.conformance --power-cuts          nothing but the power cuts, which need no hub
python -m tests.conformance --short               as in the tests: every fault and assertion, less of each
"""

import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.conformance.platforms import Node, nodes
from tests.conformance.scenarios import SCENARIOS, Scenario, World, power_cuts

PASSED = "passed"
NOT_REACHED = "an earlier scenario has failed here"


class Results:
    """By platform and scenario: `passed`, a traceback, or why it was skipped."""

    def __init__(self) -> None:
        self.passed: set[tuple[str, str]] = set()
        self.failed: dict[tuple[str, str], str] = {}
        self.skipped: dict[tuple[str, str], str] = {}
        self.platforms: list[str] = []
        self.took_s: dict[str, float] = {}

    def add(self, platform: str, scenario: str, trouble: str) -> None:
        if trouble:
            self.failed[platform, scenario] = trouble
        else:
            self.passed.add((platform, scenario))

    def table(self) -> str:
        """A line a platform, then every skip with its reason, and the sums."""
        seen = {name for _, name in [*self.passed, *self.failed, *self.skipped]}
        names = [scenario.name for scenario in SCENARIOS if scenario.name in seen]
        width = max(len(platform) for platform in self.platforms)
        lines = [" " * width + "  " + "  ".join(names)]
        for platform in self.platforms:
            marks = []
            for name in names:
                key = (platform, name)
                word = "ok" if key in self.passed else "FAILED" if key in self.failed else "skip"
                marks.append(word.ljust(len(name)))
            lines.append(platform.ljust(width) + "  " + "  ".join(marks).rstrip())
        reasons: dict[tuple[str, str], list[str]] = {}
        for (platform, name), why in self.skipped.items():
            reasons.setdefault((platform, why), []).append(name)
        for (platform, why), which in reasons.items():
            lines.append(f"{platform} skips {len(which)} ({', '.join(which)}): {why}")
        if self.took_s:
            lines.append("seconds: " + ", ".join(f"{name} {took:.1f}" for name, took in self.took_s.items()))
        lines.append(f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped")
        return "\n".join(lines)


def run(
    root: Path,
    full: bool,
    only: tuple[str, ...] = (),
    seed: int = 1,
    scenarios: tuple[Scenario, ...] = SCENARIOS,
) -> Results:
    """Carries it out below `root`. only: platforms."""
    results = Results()
    world = World(root, full, seed)
    here, absent = nodes(root, only)
    results.platforms = [node.platform for node in here] + list(absent)
    for platform, why in absent.items():
        results.skipped.update({(platform, scenario.name): why for scenario in scenarios})
    world.nodes = list(here)
    try:
        world.hub.start()
        for node in here:
            if "join" in node.lacks:
                node.provide(world.hub)
        for scenario in scenarios:
            for node in here:
                if node not in world.nodes:
                    results.skipped[node.platform, scenario.name] = NOT_REACHED
            _carry_out(world, scenario, results)
    finally:
        if world.hostile is not None:
            world.hostile.close()
        for node in here:
            node.close()
        if world.hub.process is not None:
            world.hub.kill9()
    return results


def _carry_out(world: World, scenario: Scenario, results: Results) -> None:
    taking: list[Node] = []
    for node in list(world.nodes):
        why = next((node.lacks[need] for need in scenario.needs if need in node.lacks), "")
        if why:
            results.skipped[node.platform, scenario.name] = why
        else:
            taking.append(node)
    began = time.monotonic()
    shared = _trouble(lambda: scenario.before(world))
    found: dict[str, str] = {}
    if not shared:

        def act(node: Node) -> None:
            found[node.platform] = _trouble(lambda: scenario.act(world, node))

        threads = [threading.Thread(target=act, args=(node,), name=node.platform) for node in taking]
        _all(threads)
        shared = _trouble(lambda: scenario.after(world))
    results.took_s[scenario.name] = time.monotonic() - began
    for node in taking:
        results.add(node.platform, scenario.name, found.get(node.platform, "") or shared)
    for node in taking:
        if (node.platform, scenario.name) in results.failed:
            node.kill()  # the others are not to wait for it
            world.nodes.remove(node)


def _all(threads: Iterable[threading.Thread]) -> None:
    started = list(threads)
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def _trouble(action: Callable[[], None]) -> str:
    """The traceback of what it raises, "" for nothing."""
    try:
        action()
    except BaseException as error:  # pytest's failures are no Exceptions
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return traceback.format_exc()
    return ""


def main(full: bool, only: tuple[str, ...], seed: int, cuts_alone: bool) -> int:
    """Prints failures and the table; the exit code."""
    scenarios = tuple(one for one in SCENARIOS if one.act is power_cuts or not cuts_alone)
    with tempfile.TemporaryDirectory(prefix="conformance-") as directory:
        root = Path(directory)
        root.chmod(0o755)  # workloads run as nobody
        results = run(root, full, only, seed, scenarios)
    for (platform, name), trouble in results.failed.items():
        print(f"--- {platform}: {name}\n{trouble}")
    print(results.table())
    return int(bool(results.failed))

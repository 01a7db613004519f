"""`make soak`: what CI runs shortened, in full; the report is one JSON object per part.

Parts, in this order: `membership` (a million simulated schedules), `chaos` (five minutes, a fleet of 300), `kubernetes`
(an API server that is away for ten minutes, forgets, refuses and closes every watch), `storm` (10,000 agents
that come back at once), `fuzz` (half an hour of every target), `properties` (2,000 examples, at random, of every property),
`rotation` (a new root for 1,000 nodes while the hub is killed twice), `conformance` (the agent on every platform), `powercuts` (1,000
on every kind of disk, on every platform), `metered` (an idle node for an hour). The report
goes to reports/soak.json, which is committed. Exit code 1 when a part failed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.chaos.run import machine

ROOT = Path(__file__).resolve().parents[2]
TAIL_CHARS = 4000


AWAY_S = 600
"""For `tests/e2e/test_kubernetes_ha.py`."""
ROTATION_NODES = 1000
"""For `tests/e2e/test_rotation_fleet.py`."""


def parts(seed: int, processes: int, directory: Path) -> dict[str, list[str]]:
    """The command of each part; what it prints last is kept."""
    spread = ["--processes", str(processes)]
    return {
        "membership": ["tests.sim.membership", "--schedules", "1000000", "--seed", str(seed), *spread],
        "chaos": [
            "tests.chaos",
            "--seed",
            str(seed),
            "--minutes",
            "5",
            "--report",
            str(directory / "chaos.json"),
        ],
        "kubernetes": ["pytest", "-q", "-s", "--timeout=3600", "tests/e2e/test_kubernetes_ha.py"],
        "storm": ["tests.bench.storm", "10000"],
        "fuzz": ["tests.fuzz", "--seconds", "1800"],
        "properties": ["pytest", "-q", "--timeout=3600", *properties()],
        "rotation": ["pytest", "-q", "-s", "--timeout=3600", "tests/e2e/test_rotation_fleet.py"],
        "conformance": ["tests.conformance", "--seed", str(seed)],
        "powercuts": ["tests.conformance", "--power-cuts", "--seed", str(seed)],
        "metered": ["tests.soak.idle", "--minutes", "60"],
    }


def properties() -> list[str]:
    """The test files in which hypothesis looks for examples."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "from hypothesis import" in path.read_text()]


def run(argv: list[str]) -> tuple[int, str]:
    """Runs a part; (exit code, all it printed). A failure is shown when it is found, not hours later."""
    said = ""
    environment = {
        **os.environ,
        "CLOUDHUB_TEST_AWAY_S": str(AWAY_S),
        "CLOUDHUB_TEST_SEARCH": "1",
        "CLOUDHUB_TEST_ROTATION_NODES": str(ROTATION_NODES),
    }
    with subprocess.Popen(
        [sys.executable, "-m", *argv], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as part:
        assert part.stdout is not None
        for line in part.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            said += line
    return part.returncode, said


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of all parts (default: 1)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="of the simulation (default: the cores)"
    )
    parser.add_argument("--only", metavar="PART", help="one part alone (default: all)")
    parser.add_argument("--reports", metavar="DIR", default="reports", help="(default: reports)")
    options = parser.parse_args()
    directory = ROOT / options.reports
    directory.mkdir(exist_ok=True)
    chosen = {
        n: a
        for n, a in parts(options.seed, options.processes, directory).items()
        if options.only in (None, n)
    }
    if not chosen:
        parser.error(f"--only {options.only}: there is no such part")
    path = directory / "soak.json"
    # Parts that are run one by one, on other days perhaps, are one report.
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    failed = False
    for name, argv in chosen.items():
        print(f"{name}: python -m {' '.join(argv)}", file=sys.stderr, flush=True)
        began, started = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        code, said = run(argv)
        failed = failed or code != 0
        report["parts"][name] = {
            "machine": machine(),
            "command": argv,
            "began": began,
            "took s": round(time.monotonic() - started),
            "exit code": code,
            "said": said[-TAIL_CHARS:].splitlines(),
        }
        path.write_text(json.dumps(report, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

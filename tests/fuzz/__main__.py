"""`make fuzz [SECONDS=60] [TARGET=name]`: fuzzes every target at once, each in a process of its own, or the one that is named.

Seeds lie in tests/fuzz/corpus. What a run finds worth keeping goes to $CLOUDHUB_CACHE/fuzz/TARGET, where the next run
begins; inputs that break something go to $CLOUDHUB_CACHE/fuzz/found and are printed with the command that replays them.
"""

import argparse
import base64
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "corpus"
TARGETS = tuple(sorted(p.stem for p in (Path(__file__).parent / "targets").glob("[a-z]*.py")))
SHOWN_BYTES_MAX = 2048
OUTPUT_CHARS = 6000
NICE = "10"
"""Tests beside it go first, and it is not starved on a busy machine."""


def cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("CLOUDHUB_CACHE") or os.path.join(home, "cloudhub")) / "fuzz"


@dataclass(frozen=True)
class Outcome:
    """Of one target. `failure`: empty, or what is to be read and how it is replayed."""

    target: str
    inputs: int
    corpus: int
    failure: str


class Run:
    """One target that runs for so many seconds, at a lower priority than whatever else runs."""

    def __init__(self, target: str, seconds: int, kept: Path, seed: int | None) -> None:
        self.target = target
        self._grown = kept / target
        self._found = kept / "found"
        for directory in (self._grown, self._found):
            directory.mkdir(parents=True, exist_ok=True)
        self._prefix = f"{self._found}/{target}-{os.getpid()}-"
        seeded = [] if seed is None else [f"-seed={seed}"]
        self._process = subprocess.Popen(
            ["nice", "-n", NICE, sys.executable, "-m", "tests.fuzz.engine", target, f"-max_total_time={seconds}",
             f"-artifact_prefix={self._prefix}", *seeded, str(self._grown), str(CORPUS / target)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip

    def outcome(self) -> Outcome:
        """Waits for its end."""
        said, _ = self._process.communicate()
        counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
        inputs = int(counted[1]) if counted else 0
        failure = "" if self._process.returncode == 0 and inputs else self._failure(said)
        return Outcome(self.target, inputs, len(list(self._grown.iterdir())), failure)

    def stop(self) -> None:
        """Ends it, when nobody waits for its outcome."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _failure(self, said: str) -> str:
        lines = [f"{self.target}: ended with {self._process.returncode}", said[-OUTPUT_CHARS:]]
        for path in sorted(self._found.glob(os.path.basename(self._prefix) + "*")):
            raw = path.read_bytes()
            lines.append(f"replay: python -m tests.fuzz.engine {self.target} {path}")
            if len(raw) <= SHOWN_BYTES_MAX:
                encoded = base64.b64encode(raw).decode()
                lines.append(f"or, elsewhere: echo {encoded} | base64 -d > input, and replay that")
        return "\n".join(lines)


def fuzz(targets: tuple[str, ...], seconds: int, kept: Path, seed: int | None = None) -> list[Outcome]:
    """Runs all of them side by side. `seed`: of the fuzzer's chance, so that two runs try much the same; None: any."""
    runs: list[Run] = []
    try:
        runs += [Run(target, seconds, kept, seed) for target in targets]
        return [run.outcome() for run in runs]
    finally:
        for run in runs:
            run.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)"
    )
    parser.add_argument("--seconds", type=int, default=60, help="of wall time, for each (default: 60)")
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    outcomes = fuzz(tuple(options.targets) or TARGETS, options.seconds, cache())
    for one in outcomes:
        print(
            f"{one.target}: {one.inputs} inputs, {one.corpus} kept; {'broken' if one.failure else 'nothing found'}"
        )
    for one in outcomes:
        print(one.failure, end="\n" if one.failure else "", file=sys.stderr)
    return int(any(one.failure for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())

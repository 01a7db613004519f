"""`make agent-check`: the macOS runtime keeps every promise of a runtime, here with /proc in place of libproc."""

import os
import subprocess
import sys

from edgelite.release.sources import ROOT


def test_the_runtime_keeps_all_promises_of_a_runtime() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "macos", "tests/contract/test_runtimes.py",
         "tests/contract/test_inside.py"],
        cwd=ROOT, env={**os.environ, "CLOUDHUB_ALL_RUNTIMES": "1"}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-8000:] + done.stderr
    print(done.stdout.splitlines()[-1])

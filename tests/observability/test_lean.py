"""A hub that exports nothing holds nothing of the export."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
import hub.app
print([m for m in sys.modules if m.split(".")[0] in ("opentelemetry", "prometheus_client", "grpc")])
"""


def test_without_an_endpoint_neither_opentelemetry_nor_grpc_is_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")

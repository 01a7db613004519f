"""`make demo`, as the README promises it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.cluster import ROOT, kubectl_binaries, wait_for

DEMO = [sys.executable, str(ROOT / "examples/demo.py")]


@pytest.fixture
def place() -> Iterator[Path]:
    """A short directory that an ordinary user may write to, for everything that the demo makes."""
    path = Path(tempfile.mkdtemp(prefix="demo-", dir="/tmp"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def environment(place: Path, kubectl: bool) -> dict[str, str]:
    bin_dir = place / "bin"
    bin_dir.mkdir(exist_ok=True)
    if kubectl:
        (bin_dir / "kubectl").symlink_to(kubectl_binaries()[0])
    system = "/usr/sbin:/usr/bin:/sbin:/bin"
    for name in ("kubectl",):
        if not kubectl and shutil.which(name, path=system):
            # A kubectl of the system is hidden behind a directory of links to all else.
            for folder in system.split(":"):
                for tool in os.listdir(folder):
                    link = bin_dir / tool
                    if tool != name and not link.exists() and not link.is_symlink():
                        link.symlink_to(os.path.join(folder, tool))
            system = ""
    return {
        "PATH": f"{bin_dir}:{system}".rstrip(":"),
        "TMPDIR": str(place),
        "HOME": str(place),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def leftovers(place: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(place) in " ".join(process.cmdline()) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def assert_nothing_is_left(place: Path) -> None:
    wait_for(
        lambda: not leftovers(place), "every process of the demo has ended", detail=lambda: leftovers(place)
    )
    assert not list(place.glob("cloudhub-demo-*"))


@pytest.mark.parametrize("kubectl", [True, False], ids=["kubectl", "no-kubectl"])
def test_once_reports_and_leaves_nothing(place: Path, kubectl: bool) -> None:
    done = subprocess.run(
        [*DEMO, "--once"], env=environment(place, kubectl), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("edge-1", "edge-2", "hello from the edge", "till-", "watch-", "Running"):
        assert expected in done.stdout, done.stdout
    assert ("kubectl apply" in done.stdout) is kubectl
    assert_nothing_is_left(place)


def ordinary_user() -> list[str]:
    """Becomes nobody, who may still read root's files: the interpreter can lie in root's home. Already done without root."""
    if os.geteuid() != 0:
        return []
    reading = "+dac_read_search"
    return [
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all,+dac_read_search",
        f"--inh-caps=-all,{reading}", f"--ambient-caps=-all,{reading}", "--",
    ]  # fmt: skip


def test_an_ordinary_user_needs_no_root(place: Path) -> None:
    done = subprocess.run(
        [*ordinary_user(), *DEMO, "--once"],
        env=environment(place, True), capture_output=True, text=True, timeout=240, cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert_nothing_is_left(place)


def test_ctrl_c_stops_everything(place: Path) -> None:
    process = subprocess.Popen(
        DEMO, env=environment(place, True), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Running until Ctrl-C" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, "".join(lines) + rest
    assert any("kubectl logs -f hello" in line for line in lines)
    assert_nothing_is_left(place)


def test_a_workload_that_cannot_run_is_the_reason(place: Path) -> None:
    manifests = place / "manifests"
    manifests.mkdir()
    (manifests / "bad.yaml").write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: Bad_Name}\nspec: {}\n")
    done = subprocess.run(
        [*DEMO, "--once", "--manifests", str(manifests)],
        env=environment(place, True), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Bad_Name" in done.stderr
    assert_nothing_is_left(place)

"""edgelite's pure modules and its journal run unmodified in a real MicroPython VM, with the tests CPython runs.

Which files: those in tests/edgelite whose docstring says that they run "in the MicroPython VM". The VM comes from npm
(package.json pins it); CLOUDHUB_MICROPYTHON names the folder it was installed into, $CLOUDHUB_CACHE/micropython otherwise.
"""

import ast
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
MARK = "in the MicroPython VM"


def portable() -> dict[str, list[str]]:
    """{module: its test functions} of the portable test files."""
    found = {}
    for file in sorted((REPOSITORY / "tests" / "edgelite").glob("test_*.py")):
        tree = ast.parse(file.read_text())
        if MARK in (ast.get_docstring(tree) or ""):
            names = [
                n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")
            ]
            found["tests.edgelite." + file.stem] = sorted(names)
    return found


def vm() -> Path:
    cache = Path(os.environ.get("CLOUDHUB_CACHE") or Path.home() / ".cache/cloudhub")
    folder = Path(os.environ.get("CLOUDHUB_MICROPYTHON") or cache / "micropython")
    package = folder / "node_modules/@micropython/micropython-webassembly-pyscript/package.json"
    if not shutil.which("node") or not package.exists():
        pytest.fail(
            f"needs Node.js and the MicroPython VM in {folder}: run `make deps-ci`, or "
            f"`npm install --prefix {folder} {HERE}` and name the folder in CLOUDHUB_MICROPYTHON"
        )
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    version = json.loads(package.read_text())["version"]
    assert version == next(iter(wanted.values())), (
        "another version of the VM is installed than package.json pins"
    )
    return folder


def run(modules: list[str], repository: Path = REPOSITORY) -> dict[str, dict[str, str]]:
    """{module: {test: error or ""}} from the VM."""
    done = subprocess.run(
        ["node", str(HERE / "run.mjs"), str(vm()), str(repository), *modules],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    results: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"'):
            result = json.loads(line)
            results.setdefault(result["module"], {})[result["test"]] = result["error"]
    return results


@pytest.mark.parametrize("module", sorted(portable()))
def test_the_same_tests_pass_in_the_vm(module: str) -> None:
    results = run([module])
    failures = {test: error for test, error in results.get(module, {}).items() if error}
    assert not failures, "\n".join(f"{test}:\n{error}" for test, error in failures.items())
    assert sorted(results.get(module, {})) == portable()[module]


def test_the_core_modules_are_among_those_that_run_in_the_vm() -> None:
    assert {f"tests.edgelite.test_{name}" for name in ("wire", "session", "journal")} <= set(portable())

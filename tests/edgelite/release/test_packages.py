"""The agent's packages, as `make agent` builds them, but for the one-file executable and the real Windows Python: those take
minutes or a download, and `make agent-check` has them."""

import ast
import bz2
import hashlib
import io
import json
import os
import plistlib
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from edgelite import __version__ as VERSION
from edgelite import launchd, wire
from edgelite.release import __main__ as release
from edgelite.release import boards, manifest, pyz, sources, windows
from edgelite.release.archives import tarred, zipped
from tests.edgelite.scripted_hub import Hub, until
from tests.edgelite.test_cli import answer_join, join_token

AT = 1_700_000_000
RSS_MAX = 20 << 20
OUT = ["executable", "windows"]


@pytest.fixture(scope="module")
def built() -> dict[str, bytes]:
    return release.build(OUT, AT)


@pytest.fixture(scope="module")
def archive(built, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pyz") / "edgelite.pyz"
    path.write_bytes(built["edgelite.pyz"])
    return path


def test_another_process_builds_the_same_bytes_and_all_are_within_their_bounds(built, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "edgelite.release", "--out", str(tmp_path), "--without", "executable", "--without", "windows"],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(AT), "PYTHONHASHSEED": "7"}, cwd=sources.ROOT, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == built
    sizes = {"edgelite.pyz": len(built["edgelite.pyz"]), "board byte code": boards.code_bytes(boards.build())}
    print(sizes)
    assert sizes["edgelite.pyz"] <= 150_000 and sizes["board byte code"] <= 48 << 10


def test_what_is_too_large_or_not_for_the_oldest_python_is_not_built(monkeypatch):
    monkeypatch.setattr(sources, "agent", lambda: {"edgelite/x.py": "x = 1\n"})
    monkeypatch.setattr(pyz, "BYTES_MAX", 1000)
    with pytest.raises(sources.BuildError, match=r"edgelite.pyz has \d+ bytes, at most 1000 are allowed"):
        release.build(OUT, AT)
    monkeypatch.setattr(sources, "agent", lambda: {"edgelite/x.py": "match 1:\n    case 1: pass\n"})
    with pytest.raises(sources.BuildError, match=r"edgelite/x.py is not for Python 3.9"):
        sources.packed()
    monkeypatch.undo()
    with pytest.raises(sources.BuildError, match="is not for MicroPython"):
        boards.compiled("edgelite/x.py", "match 1:\n    case 1: pass\n")


def test_packed_sources_are_the_same_program_on_the_same_lines(built):
    with zipfile.ZipFile(io.BytesIO(built["edgelite.pyz"])) as archive:
        packed = json.loads(bz2.decompress(archive.read("edgelite.json.bz2")))

    def typing_alone(node):
        return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse

    def compiled(text, path):
        """Without what the packed one has not: texts that are statements of their own, annotations, what is for type checkers."""
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                node.annotation = None
            if isinstance(node, ast.FunctionDef):
                node.returns = None
            if isinstance(node, ast.Module):
                node.body = [one for one in node.body if not typing_alone(one)]
            body = getattr(node, "body", None)
            if isinstance(body, list):
                for one in list(body):
                    if (
                        isinstance(one, ast.Expr)
                        and isinstance(one.value, ast.Constant)
                        and isinstance(one.value.value, str)
                    ):
                        body.remove(one)
                if not body and not isinstance(node, ast.Module):
                    body.append(ast.copy_location(ast.Pass(lineno=one.lineno, end_lineno=one.lineno), one))
        return compile(tree, path, "exec", dont_inherit=True)

    def lines(code):
        """Of a module and all that is in it."""
        inside = [lines(one) for one in code.co_consts if hasattr(one, "co_code")]
        return [code.co_name, code.co_code, [line for _, _, line in code.co_lines()], inside]

    assert set(sources.agent()) - set(packed) == sources.BOARDS_ONLY
    for path in packed:
        source = sources.agent()[path]
        if source.strip() and packed[path].strip() != "pass":
            assert lines(compiled(packed[path], path)) == lines(compiled(source, path)), path
        assert "#" not in packed[path].partition("\n")[0] and len(packed[path]) <= len(source)


def test_nothing_in_the_archive_wants_what_is_for_boards_alone(built):
    with zipfile.ZipFile(io.BytesIO(built["edgelite.pyz"])) as archive:
        packed = json.loads(bz2.decompress(archive.read("edgelite.json.bz2")))
    wanted = {one: path for path, source in packed.items() for one in boards.imported(source)}
    assert {one: path for one, path in wanted.items() if one in sources.BOARDS_ONLY} == {}
    assert "edgelite/agent.py" in wanted, "it reads imports"


def test_the_archive_joins_runs_small_and_starts_again_from_what_it_unpacked(archive, tmp_path):
    hub, started = Hub(tmp_path / "ca"), []

    def edgelite(*words):
        started.append(
            subprocess.Popen([sys.executable, str(archive), *words], stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    def ended(process):
        return process.wait(30), process.stderr.read()

    data = tmp_path / "node"
    try:
        thread = threading.Thread(target=answer_join, args=(hub,))
        thread.start()
        joining = edgelite(
            "join",
            "--no-run",
            "--hub",
            hub.address,
            "--token",
            join_token(hub),
            "--runtime",
            "process",
            "--data-dir",
            str(data),
        )
        assert ended(joining)[0] == 0
        thread.join(20)
        status = data / "status.json"
        for turn in range(3):
            if turn == 2:  # as a power cut may leave it
                torn = next((data / "code").glob("*/edgelite/__pycache__/agent.*.pyc"))
                torn.write_bytes(torn.read_bytes()[:1000])
            began = time.monotonic()
            process = edgelite("run", "--data-dir", str(data))
            connection = hub.accept()
            connection.expect(wire.HELLO)
            connection.welcome()
            until(lambda: json.loads(status.read_text())["state"] == "connected")
            took_s, used = time.monotonic() - began, psutil.Process(process.pid).cpu_times()
            print(
                f"start {turn + 1} to synchronised: {took_s:.3f} s, of it {used.user + used.system:.3f} s on a processor"
            )
            command = psutil.Process(process.pid).cmdline()
            folders = list((data / "code").iterdir())
            assert len(folders) == 1 and command[1:4] == [
                "-I",
                "-S",
                str(folders[0] / "edgelite/__main__.py"),
            ]
            rss = psutil.Process(process.pid).memory_info().rss
            print(f"resident: {rss / 2**20:.1f} MiB")
            assert rss <= RSS_MAX
            (data / "code" / "older").mkdir()  # of a former release; the next start removes it
            process.send_signal(signal.SIGTERM)
            assert ended(process)[0] == 0
    finally:
        for process in started:
            process.kill()
            process.communicate()
        hub.close()


def test_a_traceback_from_the_archive_names_the_line_in_the_repository(archive, tmp_path):
    code = (
        "import runpy, sys, traceback; sys.argv[2:] = ['--version']; archive = sys.argv.pop(1)\n"
        "try: runpy.run_path(archive, run_name='__main__')\nexcept SystemExit: pass\n"
        "from edgelite import wire\n"
        "try: wire.Decoder(frame_bytes_max=8).feed(b'\\0\\0\\0\\0\\xff\\xff\\xff\\xff')\n"
        "except wire.WireError: print(traceback.format_exc())"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(archive), "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    lines = said.stdout.splitlines()
    (at,) = [n for n, line in enumerate(lines) if "edgelite.pyz/edgelite/wire.py" in line][-1:]
    number = int(lines[at].split("line ")[1].split(",")[0])
    source = (sources.ROOT / "edgelite/wire.py").read_text().splitlines()
    assert source[number - 1].strip() == lines[at + 1].strip() != ""


IN_THE_VM = """
import json
import os
from edgelite import board
from edgelite.callables import Functions
from edgelite.firmware import Firmware

board.entropy = lambda size: bytes(range(size))  # this VM has none
ran, said = [], []

def blink(task):
    while not task.stopping:
        ran.append(task.args)
        yield 0

def test_the_firmware_runs_what_is_in_its_journal_and_says_why_it_does_not_connect():
    os.mkdir("/node")
    with open("/node/node.json", "w") as file:
        file.write(json.dumps({"hub": "hub.x", "edge": "nowhere:1"}))
    functions = Functions()
    functions.register("blink", blink)
    made = Firmware("/node", functions, built=0.0, say=said.append)
    spec = {"containers": [{"name": "led", "image": "callable:blink", "args": ["red"]}]}
    document = json.dumps({"kind": "Pod", "ns": "d", "name": "p", "uid": "u", "spec": spec}).encode()
    assert made.work.pods.admit("pod/d/p/u", document) is None
    made.work.pods.set("pod/d/p/u", document, 0.0)
    for _ in range(3):
        made.turn()
    assert ran[0] == ["red"] and len(ran) >= 3
    assert "cannot connect to nowhere:1" in said[0], said
    assert len(made.board.upstream) >= 1
    made.board.close()
    assert len(Firmware("/node", functions, built=0.0, say=said.append).board.upstream) >= 1
"""


def test_the_board_package_says_what_mip_fetches_and_loads_in_a_real_vm(built, tmp_path):
    with tarfile.open(fileobj=io.BytesIO(built[release.BOARD])) as tar:
        files = {one.name: tar.extractfile(one).read() for one in tar.getmembers()}
        assert {one.mtime for one in tar.getmembers()} == {AT}
    package = json.loads(files["package.json"])
    assert package["version"] == VERSION
    more = [url for _, url in json.loads(files["devices.json"])["urls"]]
    updates = [url for _, url in json.loads(files["updates.json"])["urls"]]
    urls = [url for _, url in package["urls"]]
    assert (
        sorted(urls + more + updates) == sorted(name for name in files if name.endswith(".mpy"))
        and "edgelite/twins.mpy" in more
    )
    assert "edgelite/firmware.mpy" in files and "edgelite/session.mpy" in files
    ast.parse(files["main.py"])
    from tests.micropython import test_vm

    # The portable tests, with the package's byte code in place of the sources.
    (tmp_path / "tests/edgelite").mkdir(parents=True)
    for name in (
        "test_journal.py",
        "test_wire.py",
        "test_boardpods.py",
        "test_updater.py",
        "updated_node.py",
        "memory_files.py",
        "powercuts.py",
        "__init__.py",
    ):
        (tmp_path / "tests/edgelite" / name).write_text((sources.ROOT / "tests/edgelite" / name).read_text())
    (tmp_path / "edgelite").mkdir()
    for name, content in files.items():
        if name.endswith(".mpy"):
            (tmp_path / name).write_bytes(content)
    for name in ("port.py",):  # which the tests of pods use besides
        (tmp_path / "edgelite" / name).write_text((sources.ROOT / "edgelite" / name).read_text())
    # This VM has no network: what is asked of it is refused, as on a board without a link.
    (tmp_path / "edgelite/socket.py").write_text("SOCK_STREAM = 1\ndef getaddrinfo(*a): raise OSError(-2)\n")
    (tmp_path / "edgelite/ssl.py").write_text("")
    (tmp_path / "edgelite/select.py").write_text("")
    first = "import sys\nsys.path.insert(0, '/repo/edgelite')\n"
    (tmp_path / "tests/edgelite/test_firmware.py").write_text(first + IN_THE_VM)
    tests = [
        f"tests.edgelite.test_{name}" for name in ("firmware", "wire", "journal", "boardpods", "updater")
    ]
    results = test_vm.run(tests, tmp_path)
    assert len(results) == 5 and sum(len(tests) for tests in results.values()) > 40
    assert not {test: error for tests in results.values() for test, error in tests.items() if error}


def test_the_macos_layout_has_the_daemon_that_the_service_command_installs(built, tmp_path):
    with tarfile.open(fileobj=io.BytesIO(built["edgelite-macos.tar.gz"])) as tar:
        files = {one.name: tar.extractfile(one).read() for one in tar.getmembers()}
        modes = {one.name: one.mode for one in tar.getmembers()}
    assert files["edgelite/edgelite.pyz"] == built["edgelite.pyz"]
    assert modes["edgelite/install.sh"] == modes["edgelite/edgelite.pyz"] == 0o755
    daemon = plistlib.loads(files[f"edgelite/{launchd.LABEL}.plist"])
    assert daemon["ProgramArguments"][:3] == [
        "/usr/bin/python3",
        "/usr/local/lib/edgelite/edgelite.pyz",
        "run",
    ]
    script = tmp_path / "install.sh"
    script.write_bytes(files["edgelite/install.sh"])
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=30)


def test_the_windows_folder_is_the_embeddable_python_and_the_archive(tmp_path):
    embeddable = zipped(
        {"python.exe": b"MZ", "python313.zip": b"z", "sqlite3.dll": b"s", "_ssl.pyd": b"p"}, AT
    )
    source = tmp_path / "embeddable.zip"
    source.write_bytes(embeddable)
    digest = hashlib.sha256(embeddable).hexdigest()
    made = windows.build(b"archive", AT, str(source), digest)
    assert windows.build(b"archive", AT, str(source), digest.upper()) == made
    with zipfile.ZipFile(io.BytesIO(made)) as folder:
        assert sorted(folder.namelist()) == [
            "edgelite/_ssl.pyd", "edgelite/edgelite.cmd", "edgelite/edgelite.pyz", "edgelite/install.ps1",
            "edgelite/python.exe", "edgelite/python313.zip",
        ]  # fmt: skip
        assert folder.read("edgelite/edgelite.pyz") == b"archive"
    with pytest.raises(sources.BuildError, match="has the SHA-256"):
        windows.build(b"archive", AT, str(source), "0" * 64)
    with pytest.raises(sources.BuildError, match="no embeddable Python"):
        other = zipped({"readme": b""}, AT)
        source.write_bytes(other)
        windows.build(b"archive", AT, str(source), hashlib.sha256(other).hexdigest())


def test_sums_and_sbom_name_every_file(built, tmp_path):
    for name, content in built.items():
        (tmp_path / name).write_bytes(content)
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", manifest.SUMS], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(built) - 1, done
    bom = json.loads(built[manifest.SBOM])
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.5", 1)
    assert bom["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    files = {one["name"]: one["hashes"][0]["content"] for one in bom["components"] if one["type"] == "file"}
    assert files == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in built.items()
        if name not in (manifest.SUMS, manifest.SBOM)
    }
    refs = {one["bom-ref"] for one in bom["components"]} | {"edgelite"}
    assert {one["ref"] for one in bom["dependencies"]} <= refs
    with_python = json.loads(
        manifest.sbom({"edgelite-linux-x86_64": b"", windows.NAME: b""}, AT, "3.11.7", ())
    )
    found = {one["bom-ref"]: one["version"] for one in with_python["components"] if one["type"] == "library"}
    assert found == {"cpython-linux": "3.11.7", "cpython-windows": "3.13.0"}


def test_archives_depend_on_nothing_but_contents_and_time(tmp_path):
    files = {"b": b"2", "a": b"1"}
    assert zipped(files, AT) == zipped(dict(sorted(files.items())), AT)
    assert tarred(files, AT, frozenset("a")) == tarred(dict(sorted(files.items())), AT, frozenset("a"))
    assert zipped(files, 0) != zipped(files, AT), "before 1980 is not an error"
    done = subprocess.run(
        [sys.executable, "-m", "edgelite.release", "--without", "executable", "--out", str(tmp_path)],
        env={**os.environ, "SOURCE_DATE_EPOCH": "now"}, cwd=sources.ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, list(tmp_path.iterdir())) == (1, []) and "has to be unix seconds" in done.stderr

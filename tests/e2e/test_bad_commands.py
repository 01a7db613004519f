"""Wrong commands, settings and directories: exit code 2 for wrong usage, 1 for what failed, 3 for a directory in use, 4 for one
that has not joined; one line that says what to do, never a traceback."""

import concurrent.futures
import ctypes
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.cluster import ROOT, Agent, Cluster, Hub, running_cluster, wait_for
from tests.e2e.hostile import objects
from tests.ports import free_port

DONE, FAILED, USAGE, IN_USE, NOT_JOINED = 0, 1, 2, 3, 4
ANY = ("--api-address", "127.0.0.1:0", "--edge-address", "127.0.0.1:0")

_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2


def without_overriding() -> None:
    """Takes from root, in the child, the right to pass over file modes."""
    libc = ctypes.CDLL(None)
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def run(
    program: str, *arguments: str, preexec: Callable[[], None] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", program, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, preexec_fn=preexec,
    )  # fmt: skip


def check(program: str, arguments: Sequence[str], code: int, message: str) -> None:
    """Runs it and looks at the exit code and the last message; parsers show their usage before it or a hint behind."""
    done = run(program, *arguments)
    shown = f"{program} {' '.join(arguments)}: {done.returncode}: {done.stderr}"
    assert done.returncode == code, shown
    assert "Traceback" not in done.stderr, shown
    lines = [t for t in done.stderr.splitlines() if t.startswith(("cloudhub", "edgelite"))]
    assert len(lines) == 1 and message in lines[0], shown
    assert not done.stdout, shown


def check_all(program: str, cases: Sequence[tuple[Sequence[str], int, str]]) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for checked in [pool.submit(check, program, *case) for case in cases]:
            checked.result()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("commands")) as cluster:
        cluster.hub()
        yield cluster


# -- options -------------------------------------------------------------------------------------------------------------


def test_wrong_options_of_cloudhub_are_usage_errors() -> None:
    check_all(
        "hub",
        [
            (["fly"], USAGE, "invalid choice: 'fly'"),
            (["serve", "--nope"], USAGE, "unrecognized arguments: --nope"),
            (["serve", "--api-address", "here"], USAGE, "api_address: 'here' is not HOST:PORT"),
            (["serve", "--edge-address", "127.0.0.1:99999"], USAGE, "edge_address: '127.0.0.1:99999' is not HOST:PORT"),
            (["serve", "--advertise-edge", "0.0.0.0:1"], USAGE, "no address that an edge can connect to"),
            (["token"], USAGE, "required: COMMAND"),
            (["token", "create"], USAGE, "one of the arguments --node --pool --from-file is required"),
            (["token", "create", "--node", "a", "--pool", "b"], USAGE, "not allowed with argument --node"),
            (["token", "create", "--pool", "p", "--count", "x"], USAGE, "invalid int value: 'x'"),
            (["token", "create", "--pool", "p"], USAGE, "--pool needs --count: how many nodes may join"),
            (["token", "create", "--node", "a", "--ttl", "soon"], USAGE, "--ttl: 'soon' is no duration; write it as 30s"),
            (["confirm"], USAGE, "one of the arguments --node --all is required"),
        ],
    )  # fmt: skip


def test_wrong_options_of_edgelite_are_usage_errors(tmp_path: Path) -> None:
    at = ["--data-dir", str(tmp_path / "x")]
    joining = ["join", "--hub", "h:1", "--token", "t", *at]
    check_all(
        "edgelite",
        [
            (["fly"], USAGE, "there is no command 'fly'; `edgelite --help` names them all"),
            (["join"], USAGE, "--hub HOST:PORT is required"),
            (["join", "--nope"], USAGE, "edgelite join knows no --nope; it takes --hub, --token"),
            (["join", "--hub"], USAGE, "--hub needs a value"),
            (["join", "--hub", "a", "--hub", "b"], USAGE, "--hub is given twice"),
            ([*joining, "--runtime", "vm"], USAGE, "runtime is 'vm'; it has to be one of auto, process, container"),
            ([*joining, "--pods-max", "0"], USAGE, "pods_max is 0; it has to be 1 to 256"),
            ([*joining, "--pods-max", "x"], USAGE, "--pods-max x is no number"),
            ([*joining, "--label", "x"], USAGE, "--label x: write it as KEY=VALUE"),
            ([*joining, "--log-level", "loud"], USAGE, "log_level is 'loud'; it has to be one of debug"),
            (["run", "extra"], USAGE, "edgelite run knows no extra"),
            (["run", *at], NOT_JOINED, "has not joined a hub; `edgelite join --help` says how"),
            (["stop", "--workloads=1", *at], USAGE, "--workloads takes no value"),
            (["stop", "--timeout", "x", *at], USAGE, "--timeout x is no number of seconds"),
            (["stop", *at], DONE, "no agent runs on"),
            (["status", *at], NOT_JOINED, "has not joined a hub"),
            (["status", "-o", "yaml", *at], USAGE, "--output is 'yaml'; it has to be text or json"),
            (["logs", *at], NOT_JOINED, "has not joined a hub"),
            (["logs", "--tail", "all", *at], USAGE, "--tail all is no number of lines"),
            (["logs", "--previous", *at], USAGE, "--container and --previous are about a pod"),
            (["diagnose", *at], NOT_JOINED, "has not joined a hub; with --hub HOST:PORT"),
        ],
    )  # fmt: skip
    assert not (tmp_path / "x").exists(), "nothing was made"


def test_no_command_at_all_prints_the_help_and_is_an_error() -> None:
    for program in ("hub", "edgelite"):
        done = run(program)
        assert done.returncode == USAGE and "join" in done.stdout + done.stderr


# -- config files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heartbeets: 5s", "unknown setting heartbeets; there are advertise_edge, api_address"),
        ("heartbeat: 5", "heartbeat: 5 is no text; write it in quotes"),
        ("heartbeat: 2h", "heartbeat: 2h is not between 1s and 600s"),
        ("slots: many", "slots: 'many' is no whole number"),
        ("tls_san: hub.example", "tls_san: a list of names is expected"),
        ("tls_san: ['no name']", "tls_san: 'no name' is neither an IP address nor a DNS name"),
        ("trust_domain: A_b", "trust_domain: trust domain 'A_b' is not an RFC 1123 subdomain"),
        ("- a", "a mapping of settings is expected"),
        ("a: [", "is no YAML: line 1, column 5"),
    ],
)
def test_a_bad_config_file_is_refused_by_its_key_and_nothing_is_made(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "hub.yaml").write_text(text)
    data = tmp_path / "data"
    check(
        "hub",
        ["serve", "--config", str(tmp_path / "hub.yaml"), "--data-dir", str(data), *ANY],
        USAGE,
        message,
    )
    assert not data.exists()


def test_a_missing_config_file_is_said(tmp_path: Path) -> None:
    check("hub", ["serve", "--config", str(tmp_path / "none")], USAGE, "cannot read the config file")


# -- a hub that is not there, or cannot be ---------------------------------------------------------------------------------


def test_commands_that_need_a_hub_say_that_it_does_not_run(served: Cluster, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    config = Path(served.main.kubeconfig).read_text()
    nowhere = f"https://127.0.0.1:{free_port()}"
    (gone / "kubeconfig").write_text(config.replace(f"https://127.0.0.1:{served.main.api_port}", nowhere))
    (tmp_path / "broken").write_text("a: b")
    missing = str(tmp_path / "none")
    create = ["token", "create", "--node", "a"]
    check_all(
        "hub",
        [
            ([*create, "--data-dir", missing], FAILED, "No such file or directory; is the hub of this data directory running?"),
            ([*create, "--kubeconfig", str(tmp_path / "broken")], FAILED, "has no current-context; choose one with kubectl config use-context"),
            ([*create, "--data-dir", str(gone)], FAILED, f"cannot reach the API at {nowhere}: Connection refused; is the hub"),
            (["confirm", "--all", "--data-dir", str(gone)], FAILED, f"cannot reach the API at {nowhere}"),
        ],
    )  # fmt: skip


def test_the_api_refuses_tokens_and_confirmations_that_make_no_sense(served: Cluster) -> None:
    before = objects(served.main)
    at = ["--data-dir", str(served.main.data_dir)]
    create = ["token", "create"]
    check_all(
        "hub",
        [
            ([*create, "--node", "A_a", *at], FAILED, 'spec.node: Invalid value: "A_a"'),
            ([*create, "--node", "a", "--ttl", "60d", *at], FAILED, "spec.ttlSeconds: Invalid value: 5184000: must be between"),
            ([*create, "--pool", "p", "--count", "0", *at], FAILED, "spec.count: Invalid value: 0: must be between"),
            (["confirm", "--node", "nobody", *at], FAILED, 'nodes "nobody" not found'),
        ],
    )  # fmt: skip
    assert objects(served.main) == before


def test_a_port_that_is_taken_is_said_with_its_setting(served: Cluster, tmp_path: Path) -> None:
    hub = served.main
    api, edge = f"127.0.0.1:{hub.api_port}", hub.edge
    for n, (options, message) in enumerate(
        (
            (
                ["--api-address", api, "--edge-address", "127.0.0.1:0"],
                f"cannot listen at {api}: Address already in use",
            ),
            (
                ["--api-address", "127.0.0.1:0", "--edge-address", edge],
                f"cannot listen at {edge}: Address already in use",
            ),
            (
                ["--api-address", "192.0.2.1:1", "--edge-address", "127.0.0.1:0"],
                "cannot listen at 192.0.2.1:1: ",
            ),
        )
    ):
        done = run("hub", "serve", "--data-dir", str(tmp_path / f"d{n}"), *options)
        assert done.returncode == FAILED and "Traceback" not in done.stderr, done.stderr
        setting = "edge_address" if edge in options else "api_address"
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"cloudhub: {message}") and setting in last, done.stderr
        assert not (tmp_path / f"d{n}/endpoints.json").exists()


def test_a_second_hub_on_the_same_data_directory_is_refused_and_the_first_goes_on(served: Cluster) -> None:
    hub = served.main
    assert hub.process is not None
    before = objects(hub), (hub.data_dir / "endpoints.json").read_text(), Path(hub.kubeconfig).read_text()
    check(
        "hub", ["serve", "--data-dir", str(hub.data_dir), *ANY], FAILED,
        f"{hub.data_dir} is in use by another hub (pid {hub.process.pid}); stop it, or give this one its own --data-dir",
    )  # fmt: skip
    after = objects(hub), (hub.data_dir / "endpoints.json").read_text(), Path(hub.kubeconfig).read_text()
    assert after == before and hub.process.poll() is None


def test_a_second_agent_on_the_same_data_directory_is_refused_and_the_first_goes_on(served: Cluster) -> None:
    agent = served.agent("only")
    assert agent.process is not None
    message = f"in use by the agent with process id {agent.process.pid}; `edgelite stop --data-dir {agent.data_dir}`"
    check("edgelite", ["run", "--data-dir", str(agent.data_dir)], IN_USE, message)
    served.wait_ready("only")
    assert agent.process.poll() is None
    agent.stop()


def test_directories_that_cannot_be_used_are_said_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    closed = tmp_path / "closed"
    closed.mkdir()
    inside = closed / "data"
    closed.chmod(0)
    if os.geteuid() == 0:
        os.chown(closed, 65534, 65534)
    try:
        for where, why in (
            (tmp_path / "file", "it is a file"),
            (tmp_path / "file/below", "Not a directory"),
            (inside, "Permission denied"),
        ):
            done = run("hub", "serve", "--data-dir", str(where), *ANY, preexec=without_overriding)
            assert done.returncode == FAILED, done.stderr
            assert done.stderr == (
                f"cloudhub: cannot use the data directory {where}: {why}; correct that, or set data_dir to another\n"
            )
        join = ["join", "--hub", "127.0.0.1:1", "--token", "t", "--data-dir"]
        for arguments in (
            [*join, str(inside)],
            [*join, str(tmp_path / "file")],
            ["run", "--data-dir", str(inside)],
        ):
            done = run("edgelite", *arguments, preexec=without_overriding)
            assert done.returncode in (FAILED, USAGE), done.stderr
            assert done.stderr.startswith("edgelite: cannot ") and done.stderr.count("\n") == 1, done.stderr
            assert str(tmp_path) in done.stderr
    finally:
        closed.chmod(0o700)


def test_a_damaged_agents_directory_is_said_and_left_as_it_is(served: Cluster) -> None:
    agent = served.agent("frail")
    agent.stop()
    for name, text, code, message in (
        ("config.json", '{"colour": 1}', USAGE, "'colour' is no setting; there are runtime, engine_socket"),
        ("config.json", '{"labels": 1}', USAGE, "labels is 1; it has to be a dict"),
        ("config.json", "{", USAGE, "cannot read"),
        (
            "node.json",
            "{}",
            USAGE,
            "is damaged (KeyError('node')): restore it, or join again into an empty directory",
        ),
        ("journal", "garbage" * 20, FAILED, "is not an edgelite journal; move it away"),
    ):
        path = agent.data_dir / name
        kept = path.read_bytes()
        path.write_text(text)
        check("edgelite", ["run", "--data-dir", str(agent.data_dir)], code, message)
        assert path.read_text() == text
        path.write_bytes(kept)
    agent.run()
    wait_for(lambda: agent.log().count('"message": "connected"') == 2, "repaired, it runs", detail=agent.log)
    (agent.data_dir / "identity.pem").rename(agent.data_dir / "identity.kept")
    agent.stop()
    agent.run()
    wait_for(
        lambda: "identity.pem: No such file or directory; restore it or join anew" in agent.log(), "said"
    )
    agent.stop()


def test_a_damaged_authority_is_never_replaced(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub").start()
    try:
        assert hub.stop() == DONE
    finally:
        hub.kill9()
    key = hub.data_dir / "ca/ca.key"
    serve = ["serve", "--data-dir", str(hub.data_dir), *ANY]
    key.chmod(0o644)
    check("hub", serve, FAILED, f"{key} is open to others (mode 644): run `chmod 600 {key}`")
    kept = key.read_bytes()
    key.unlink()
    check("hub", serve, FAILED, f"{key} does not: restore {key} from a backup")
    assert not key.exists()
    key.write_bytes(kept[:100])
    key.chmod(0o600)
    check("hub", serve, FAILED, str(key))


# -- what is installed -----------------------------------------------------------------------------------------------------

PACKAGES = {"hub", "shards", "security", "observability", "edgelite"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from a copy of the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "pyproject.toml", "README.md"):
        found = ROOT / name
        if found.is_dir():
            shutil.copytree(found, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif found.exists():
            shutil.copy(found, source / name)
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), str(source)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: setuptools of the test extra is missing?"
    return next(out.glob("cloudhub-*.whl"))


def test_the_wheel_holds_all_packages_and_needs_nothing(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        metadata = archive.read(next(n for n in held if n.endswith(".dist-info/METADATA"))).decode()
    expected = {
        str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    }
    building = {name for name in expected if name.startswith("edgelite/release/")}
    assert building and not building & held, "what builds the agent's packages is in none"
    # What is served as it is: the fleet page, and the table of Kubernetes' protobuf fields.
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "hub/fleet/static").iterdir()}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "hub/api").glob("*.json")}
    assert expected - building <= held, expected - building - held
    assert not {name for name in held if name.startswith("tests/")}
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    assert required and all("extra ==" in line for line in required), required


def test_without_the_hub_extra_edgelite_works_and_cloudhub_names_it(
    served: Cluster, wheel: Path, tmp_path: Path
) -> None:
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=120)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(home / "bin/python"), "install", "--no-index", "--no-deps",
         "--quiet", "--disable-pip-version-check", str(wheel)],
        check=True, timeout=120,
    )  # fmt: skip
    for arguments in (["serve"], ["token", "create", "--node", "a"], ["confirm", "--all"]):
        done = subprocess.run(
            [str(home / "bin/cloudhub"), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == USAGE, done.stderr
        assert "pip install 'cloudhub[hub]'" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    agent = served.agents["bare"] = Agent("bare", tmp_path / "agent-bare")
    with open(agent.log_path, "ab") as log:
        agent.process = subprocess.Popen(
            [str(home / "bin/edgelite"), "join", "--hub", served.main.edge, "--token", served.main.token("--node", "bare"),
             "--data-dir", str(agent.data_dir), "--runtime", "process"],
            cwd=tmp_path, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    served.wait_ready("bare")
    agent.stop()

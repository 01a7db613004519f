"""`cloudhub simulate` against a real hub."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hub.cli import main
from hub.simulate import command as hub_simulate_command
from tests.e2e.cluster import ROOT, ApiFailure, Hub, running_cluster, wait_for

Run = Callable[..., tuple[str, str]]
Report = Callable[..., Any]
PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_cluster(tmp_path_factory.mktemp("simulate")) as cluster:
        yield cluster.hub(heartbeat="1s")


def argv(hub: Hub, *options: str) -> list[str]:
    return ["simulate", "--data-dir", str(hub.data_dir), "--cache-dir", str(cache(hub)), *options]


def cache(hub: Hub) -> Path:
    return hub.data_dir.parent / "cache"


@pytest.fixture
def run(hub: Hub, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, which spares its start; (standard output, standard error)."""

    def run(*options: str, code: int = 0) -> tuple[str, str]:
        got = main(argv(hub, *options))
        out, err = capsys.readouterr()
        assert got == code, f"{got}: {out}\n{err}"
        return out, err

    return run


@pytest.fixture
def report(run: Run) -> Report:
    return lambda *options, code=0: json.loads(run(*options, "-o", "json", code=code)[0])


def test_a_fleet_joins_gets_pods_changes_comes_back_from_storms_and_leaves_no_pod_behind(
    hub: Hub, run: Run, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_simulate_command, "POOL_COUNT_MAX", 10)  # three tokens, one after the other
    options = ("--nodes", "24", "--processes", "2", "--pods", "2", "--churn", "40", "--updates", "40")
    told = report(*options, "--storm", "1s", "--duration", "2s")

    assert told["ended"] == "completed"
    assert told["nodes"] == {"wanted": 24, "synced": 24}
    assert told["phases"]["joined"]["done"] == 24
    assert told["phases"]["connected"]["done"] == 24
    assert told["phases"]["pods delivered"]["done"] == 48
    assert told["phases"]["back after storm 1"]["done"] == 24
    counts, seconds = told["counts"], told["seconds"]
    assert counts["resumed"] > 0
    assert counts["ended: cut"] >= 24
    # Each pod once at most, and what the API changed, where its node was connected.
    assert 0 < seconds["pod delivered"]["count"] <= 48 + seconds["api: pod changed"]["count"]
    assert seconds["heartbeat"]["count"] > 0
    assert counts["reports stored"] > 24, "nothing but the nodes' own"
    assert "reports refused" not in counts
    assert told["simulator"]["cpu_seconds"] > 0
    assert hub.api("GET", PODS)["items"] == []
    assert hub.api("GET", "/apis/cloudhub.dev/v1alpha1/jointokens")["items"] == []
    with pytest.raises(ApiFailure):
        hub.api("GET", f"{PODS}/sim-0-0")

    (folder,) = cache(hub).iterdir()
    modes = {stat.S_IMODE(os.stat(path).st_mode) for path in folder.iterdir()}
    assert (stat.S_IMODE(folder.stat().st_mode), modes) == (0o700, {0o600})

    again = run("--nodes", "24", "--duration", "0s")
    assert "24 of 24 nodes synchronised; ended: completed" in again[0]
    assert "joined" not in again[0], "identities of the first run were not used again"


def test_an_authority_on_this_machine_issues_instead_and_bad_links_are_felt(hub: Hub, report: Report) -> None:
    # So many nodes that some link is lost in the first half, but for one run in 60,000: a node loses one in a minute.
    ca = ("--ca", str(hub.data_dir / "ca"), "--prefix", "bad", "--nodes", "150", "--remove")
    told = report(
        *ca, "--latency", "0.2s", "--slow", "0.2", "--slow-rate", "4096", "--link-loss", "1", "--outage", "3.5s",
        "--duration", "8s",
    )  # fmt: skip
    # TCP, two flights of TLS and HELLO: three round trips, of which the node waits for two and a half or more.
    assert told["seconds"]["welcomed"]["p50"] > 0.5
    assert told["seconds"]["heartbeat"]["p50"] > 0.19
    assert told["counts"]["links lost"] > 0
    # A silent link is found out by the agent's own rule: three heartbeats.
    assert told["counts"]["ended: silent"] > 0
    assert not [
        n for n in hub.api("GET", "/api/v1/nodes")["items"] if n["metadata"]["name"].startswith("bad-")
    ]


def test_an_interrupt_ends_the_run_with_a_report(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    with open(tmp_path / "progress", "wb") as progress:
        process = subprocess.Popen(
            [sys.executable, "-m", "hub", *argv(
                hub, "--ca", str(hub.data_dir / "ca"), "--prefix", "int", "--nodes", "6", "--pods", "1",
                "--report-file", str(file), "--duration", "1h",
            )],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=progress, start_new_session=True, text=True,
        )  # fmt: skip
    wait_for(
        lambda: "pods delivered: 6 of 6 synced" in (tmp_path / "progress").read_text(), "the pods are there"
    )
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "6 of 6 nodes synchronised; ended: interrupted" in out
    assert json.loads(file.read_text())["ended"] == "interrupted"
    assert hub.api("GET", PODS)["items"] == []


def test_a_token_alone_is_enough_and_a_used_up_one_is_told(
    hub: Hub, run: Run, report: Report, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(hub.token("--pool", "few", "--count", "3"))
    common = (
        "--hub",
        hub.edge,
        "--token-file",
        str(tmp_path / "token"),
        "--prefix",
        "few",
        "--duration",
        "0s",
    )
    assert report(*common, "--nodes", "3")["nodes"]["synced"] == 3
    refused = run(*common, "--nodes", "4", code=1)
    assert "few-3 was not let in" in refused[1]


def test_a_hub_that_does_not_answer_fails_after_the_patience_with_why(hub: Hub, report: Report) -> None:
    ca = ("--ca", str(hub.data_dir / "ca"), "--prefix", "away", "--nodes", "2", "--duration", "0s")
    told = report(*ca, "--hub", "127.0.0.1:1", "--patience", "1s", code=1)
    assert told["nodes"] == {"wanted": 2, "synced": 0, "waiting": 2}
    assert told["counts"]["ended: connect: ECONNREFUSED"] >= 2


def test_wrong_usage_is_said_before_anything_is_done(run: Run, tmp_path: Path) -> None:
    for options, said in (
        (("--nodes", "0"), "--nodes 0: 1 to"),
        (("--ca", str(tmp_path)), "there is no ca.crt"),
        (("--ca", str(tmp_path), "--token", "x"), "leave --token away"),
        (("--token", "nonsense"), "--token: not a join token"),
    ):
        assert said in run(*options, code=2)[1]

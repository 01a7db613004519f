"""A hub started from what the chart renders: command line, environment and files. Chart and program cannot drift apart."""

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nats as nats_client
import pytest

from hub import config
from hub.config import HubConfig
from tests.helm import chart
from tests.helm.chart import FULL, ROOT, VALUE_SETS, Object, merged, one, pod_spec, rendered
from tests.helm.pod import Pod, bundled_hosts
from tests.servers.etcd import EtcdCluster, Tls, wheel_etcd
from tests.servers.nats import NatsServers, nats_server

HUB = [sys.executable, "-m", "hub"]
OWN = {"source": "own"}
CONNECTED = "NATS: connected to"


def hub(objects: list[Object], root: Path, **options: object) -> Pod:
    assert pod_spec(objects)["containers"][0]["command"] == ["cloudhub"]
    root.mkdir()
    return Pod(objects, FULL, root, program=HUB, **options)  # type: ignore[arg-type]


def status(pod: Pod) -> Object:
    """`cloudhub status`, with the data directory that the config file names."""
    argv = [*HUB, "status", "-o", "json", "--data-dir", pod.path("/data/cloudhub")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout
    found: Object = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", sorted(VALUE_SETS))
def test_the_hub_knows_every_key_and_option_that_is_rendered(name: str) -> None:
    objects = rendered(VALUE_SETS[name])
    known = {f.name for f in dataclasses.fields(HubConfig)}
    for file, settings in chart.config_files(objects).items():
        assert set(settings) <= known, file
        HubConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    args = pod_spec(objects)["containers"][0]["args"]
    assert args[0] == "serve"
    for option in args[1:]:
        key = option.removeprefix("--").partition("=")[0].replace("-", "_")
        assert key in ("config", *config.OPTIONS)


def test_the_chart_offers_every_setting_of_the_hub_or_says_why_not() -> None:
    more = {
        "hub": {"audit": {"policyConfigMap": "audit"}},
        "edge": {"advertise": "edge.example.com:8444"},
        "telemetry": {"otlpEndpoint": "http://collector.example.com:4317"},
        "kubernetes": {
            "kubelet": {"advertise": "192.0.2.1:10250", "clientCaConfigMap": "client-ca"},
            "nodeTaints": ["edge:NoSchedule"],
        },
    }
    offered = {"data_dir"}
    for values in [*VALUE_SETS.values(), more]:
        objects = rendered(values)
        for settings in chart.config_files(objects).values():
            offered |= set(settings)
        for option in pod_spec(objects)["containers"][0]["args"][1:]:
            offered.add(option.removeprefix("--").partition("=")[0].replace("-", "_"))
    # All replicas of a StatefulSet are of one size, a pod is given its way to the API server, and the image has no library
    # of an HSM. Nobody else runs in the hub's pod who could use a Workload API there.
    withheld = {"weight", "kubeconfig", "ca_key", "workload_identity", "workload_socket", "workload_group"}
    assert {f.name for f in dataclasses.fields(HubConfig)} - offered == withheld


def test_commands_in_the_container_find_the_hubs_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = rendered({})
    for variable in pod_spec(objects)["containers"][0]["env"]:
        if "value" in variable:
            monkeypatch.setenv(variable["name"], variable["value"])
    monkeypatch.setattr(os, "geteuid", lambda: pod_spec(objects)["securityContext"]["runAsUser"])
    files = chart.config_files(objects)
    assert {settings["data_dir"] for settings in files.values()} == {config.default_data_dir()}


def test_a_single_hub_serves_from_what_is_rendered_and_stops_within_its_grace_period(tmp_path: Path) -> None:
    objects = rendered(VALUE_SETS["single"])
    with hub(objects, tmp_path / "hub") as pod:
        pod.wait_ready()
        assert [pod.probe(p) for p in ("startupProbe", "livenessProbe", "readinessProbe")] == [200] * 3
        assert pod.get("api", "/metrics", "HTTPS")[0] == 401
        with socket.create_connection(tuple(pod.address("edge").split(":"))) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        pod.wait(
            lambda: "cloudhub_edge_closed_total" in pod.get("metrics", "/metrics")[1],
            "a closed connection counted",
        )
        figures = pod.get("metrics", "/metrics")[1]
        assert "\ncloudhub_edge_nodes " in figures  # what the scaler reads
        (member,) = status(pod)["members"]
        assert member["name"] == f"{FULL}-0"
        assert pod.terminate() == 0


def certificates() -> dict[str, str]:
    """ca.crt, tls.crt, tls.key, client.crt, client.key as the chart makes them."""
    data = one(rendered({}), "Secret", f"{FULL}-etcd-tls")["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[Tls, dict[str, str]]]:
    """Files for servers, and what a user's Secret for clients holds."""
    made = certificates()
    for key, text in made.items():
        (tmp_path / key).write_text(text)
    paths = [str(tmp_path / key) for key in ("ca.crt", "tls.crt", "tls.key")]
    yield (
        Tls(*paths),
        {"ca.crt": made["ca.crt"], "tls.crt": made["client.crt"], "tls.key": made["client.key"]},
    )


def test_replicas_on_external_etcd_and_nats_with_tls_are_one_hub(
    tmp_path: Path, tls: tuple[Tls, dict[str, str]]
) -> None:
    server, client = tls
    demanded = f'tls {{ cert_file: "{server.cert}", key_file: "{server.key}", ca_file: "{server.ca}", verify: true }}'
    given = {
        "etcd-client": client,
        "nats-client": client,
        "fleet-key": {"replicas.key": "5" * 64},
    }
    with EtcdCluster(1, tls=server) as etcd, NatsServers(1, demanded, "tls") as nats:
        values = merged(
            VALUE_SETS["external"],
            OWN,
            {"replicas": 2, "etcd": {"external": {"endpoints": etcd.endpoints}}},
            {"nats": {"external": {"urls": nats.urls}}, "hub": {"slots": 16}},
        )
        objects = rendered(values)
        with (
            hub(objects, tmp_path / "0", given=given) as first,
            hub(objects, tmp_path / "1", given=given, ordinal=1) as second,
        ):
            first.wait_ready()
            second.wait_ready()

            def both() -> bool:
                members = {m["name"]: m for m in status(first)["members"]}
                return set(members) == {f"{FULL}-0", f"{FULL}-1"} and all(m["bus"] for m in members.values())

            first.wait(both, "both members")
            for pod in (first, second):
                pod.wait(lambda p=pod: CONNECTED in p.log(), "connected to NATS")  # type: ignore[misc]
            assert first.terminate() == 0
            second.wait(lambda: len(status(second)["members"]) == 1, "alone")
            assert second.terminate() == 0


async def denied(url: str, context: ssl.SSLContext) -> bool:
    """Whether a NATS server turns a client with this certificate away."""

    async def said(failure: Exception) -> None:
        """What it says; the library would log it."""

    try:
        client = await nats_client.connect(
            url, tls=context, allow_reconnect=False, connect_timeout=10, error_cb=said
        )
    except (nats_client.errors.Error, OSError) as refused:
        return "authorization" in str(refused).lower()
    await client.close()
    return False


def test_a_hub_runs_on_the_etcd_and_the_nats_that_the_chart_bundles(tmp_path: Path) -> None:
    objects = rendered(merged(OWN, {"replicas": 1, "hub": {"slots": 16}}))
    pods = {}
    for part, program in (("etcd", wheel_etcd()), ("nats", nats_server())):
        for ordinal in range(one(objects, "StatefulSet", f"{FULL}-{part}")["spec"]["replicas"]):
            root = tmp_path / f"{part}-{ordinal}"
            root.mkdir()
            pods[root.name] = Pod(objects, f"{FULL}-{part}", root, program=[program], ordinal=ordinal)
    assert sorted(pods) == ["etcd-0", "etcd-1", "etcd-2", "nats-0", "nats-1"]
    hosts: dict[str, str] = {}
    for name, pod in pods.items():
        hosts |= bundled_hosts(objects, name.partition("-")[0], pod)
    with contextlib.ExitStack() as started:
        for pod in pods.values():
            pod.knows(hosts)
            started.enter_context(pod)
        for pod in pods.values():
            pod.wait_ready()
            assert pod.probe("livenessProbe") == 200
        first = pods["nats-0"]
        first.wait(
            lambda: json.loads(first.get("monitor", "/routez")[1])["num_routes"] > 0, "joined by the other"
        )

        own = ssl.create_default_context(cafile=first.path("/etc/nats-tls/ca.crt"))
        own.load_cert_chain(first.path("/etc/nats-tls/tls.crt"), first.path("/etc/nats-tls/tls.key"))
        assert asyncio.run(denied(f"tls://{first.address('client')}", own)), (
            "a server's certificate is no hub's"
        )

        with hub(objects, tmp_path / "hub", hosts=hosts) as pod:
            pod.wait_ready()
            pod.wait(lambda: CONNECTED in pod.log(), "connected to NATS")
            (member,) = status(pod)["members"]
            assert member["name"] == f"{FULL}-0"
            assert pod.terminate() == 0

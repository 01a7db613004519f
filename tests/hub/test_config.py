"""Settings that cannot be used are refused by name, on one line."""

import socket
from pathlib import Path

import pytest

from hub.config import ConfigError, load, names_of_this_host


@pytest.mark.parametrize("name", ["bad name", "Upper.example", "a_b", "", "-x", "*"])
def test_a_name_that_no_certificate_can_hold_is_refused_before_anything_is_made(name: str) -> None:
    with pytest.raises(ConfigError, match=r"tls_san: .* is neither an IP address nor a DNS name"):
        load(None, {"tls_san": [name]})


def test_names_and_addresses_of_certificates_are_taken() -> None:
    names = ("hub.example.com", "*.example.com", "10.0.0.1", "fd00::1")
    assert load(None, {"tls_san": list(names)}).tls_san == names


def test_more_names_than_a_certificate_holds_are_refused() -> None:
    with pytest.raises(ConfigError, match="tls_san: 49 names, at most 48"):
        load(None, {"tls_san": [f"h{n}.example" for n in range(49)]})


def test_broken_yaml_is_one_line_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "hub.yaml"
    path.write_text("heartbeat: 5s\na: [\n")
    with pytest.raises(ConfigError) as wrong:
        load(str(path), {})
    assert str(wrong.value).startswith(f"{path} is no YAML: line 3, column 1: ")
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize(
    ("own", "names"),
    [("Till-7", ["localhost", "till-7"]), ("my_machine", ["localhost"]), ("localhost", ["localhost"])],
)
def test_a_host_whose_name_is_no_dns_name_can_be_a_hub(
    own: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: own)
    assert names_of_this_host() == names


def test_replicas_need_the_key_file_and_say_how_to_make_it(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cloudhub key create"):
        load(None, {"data_dir": str(tmp_path), "etcd": ["127.0.0.1:2379"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"etcd": ["0.0.0.0:2379"], "key_file": "k"}, "etcd: "),
        ({"etcd": ["http://127.0.0.1:2379"], "key_file": "k"}, "etcd: "),
        ({"nats": ["nats://127.0.0.1:4222"]}, "goes with etcd"),
        ({"etcd": ["a:1"], "key_file": "k", "nats": ["127.0.0.1:4222"]}, "nats://127"),
        ({"etcd": ["a:1"], "key_file": "k", "etcd_cert": "c"}, "etcd_cert and etcd_key"),
        ({"name": "Not A Name"}, "name: "),
        ({"weight": 0.0}, "weight: 0"),
        ({"weight": "1"}, "weight: '1' is no number"),
        ({"lease_ttl": "1s"}, "lease_ttl"),
        ({"replica_edge": "0.0.0.0:1"}, "replica_edge"),
        ({"advertise_edge": "a:1,0.0.0.0:1"}, "advertise_edge"),
    ],
)
def test_settings_of_replicas_that_cannot_be_used_are_named(tmp_path, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, {"data_dir": str(tmp_path), **options})


def test_a_replica_is_named_after_its_host_and_a_lone_hub_is_standalone(tmp_path) -> None:
    assert load(None, {"data_dir": str(tmp_path)}).replica == "standalone"
    several = load(None, {"data_dir": str(tmp_path), "etcd": ["a:1"], "key_file": "k", "name": "hub-1"})
    assert several.replica == "hub-1"
    assert several.key_file.startswith("/")


@pytest.mark.parametrize(
    "text",
    ["edge", "edge:Never", "e=v=w:NoSchedule", "-x:NoExecute", "a/b/c:NoSchedule", "edge:NoSchedule\n"],
)
def test_what_is_no_taint_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"node_taints: .* is no taint"):
        load(None, {"source": "kubernetes", "node_taints": [text]})


def test_taints_are_taken_apart() -> None:
    texts = ["cloudhub.dev/edge:NoSchedule", "site=berlin:NoExecute", "empty=:PreferNoSchedule"]
    assert load(None, {"source": "kubernetes", "node_taints": texts}).taints == (
        ("cloudhub.dev/edge", "", "NoSchedule"),
        ("site", "berlin", "NoExecute"),
        ("empty", "", "PreferNoSchedule"),
    )


@pytest.mark.parametrize("name", ["node_rate", "pool_rate", "replica_rate"])
@pytest.mark.parametrize(
    "text", ["", "1000", "1000/s", "0/s 1MiB/s", "1/s 8MB/s", "1/s 8MiB", "-1/s 1B/s", "١/s 1B/s"]
)
def test_rates_are_frames_and_bytes(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match="such as 1000/s 8MiB/s"):
        load(None, {name: text})


def test_rates_reach_the_buckets() -> None:
    found = load(None, {"node_rate": "10/s 2KiB/s", "handshake_rate": "7/s"})
    assert (found.rates.node.frames_s, found.rates.node.bytes_s) == (10.0, 2048.0)
    assert found.handshakes_s == 7.0 and found.rates.pool.bytes_s == 64 << 20
    with pytest.raises(ConfigError, match="handshake_rate"):
        load(None, {"handshake_rate": "many"})

"""Credentials for an API server: from a kubeconfig, and from a pod's service account."""

import base64
import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from hub.kubeconfig import KubeconfigError
from hub.kubernetes.config import KubeConfig

GOOD: dict[str, Any] = {
    "current-context": "c",
    "contexts": [
        {"name": "other", "context": {"cluster": "x", "user": "x"}},
        {"name": "c", "context": {"cluster": "c", "user": "u"}},
    ],
    "clusters": [
        {
            "name": "c",
            "cluster": {
                "server": "https://api.example:6443/",
                "certificate-authority-data": base64.b64encode(b"ROOT").decode(),
                "tls-server-name": "kubernetes",
            },
        }
    ],
    "users": [{"name": "u", "user": {"client-certificate": "c.pem", "client-key": "k.pem"}}],
}


def write(directory: Path, data: object) -> str:
    path = directory / "config"
    path.write_text(yaml.safe_dump(data))
    return str(path)


def test_the_current_context_is_read_with_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_text("CERT")
    (tmp_path / "k.pem").write_text("KEY")
    config = KubeConfig.from_file(write(tmp_path, GOOD))
    access = config.access()
    assert (access.server, access.root_pem, access.server_name) == (
        "https://api.example:6443",
        "ROOT",
        "kubernetes",
    )
    assert (access.cert_pem, access.key_pem, access.token) == ("CERT", "KEY", None)
    assert "KEY" not in repr(access)
    (tmp_path / "c.pem").write_text("NEXT")
    assert config.access().cert_pem == "NEXT"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("current-context"), "no current-context"),
        (lambda d: d.update({"current-context": "none"}), "no context 'none'"),
        (lambda d: d["users"].clear(), "no user 'u'"),
        (lambda d: d["users"][0]["user"].clear(), "no client certificate and no token"),
        (lambda d: d["users"][0]["user"].pop("client-key"), "belong together"),
        (lambda d: d["users"][0]["user"].update({"exec": {"command": "x"}}), "'exec' of user 'u'"),
        (lambda d: d["users"][0]["user"].update({"client-key": "none.pem"}), "cannot read .*none.pem"),
        (lambda d: d["clusters"][0]["cluster"].update({"server": "http://x"}), "https://host:port"),
        (lambda d: d["clusters"][0]["cluster"].update({"proxy-url": "http://x"}), "proxy-url"),
        (lambda d: d["clusters"][0]["cluster"].update({"insecure-skip-tls-verify": True}), "insecure"),
        (lambda d: d["clusters"][0]["cluster"].pop("certificate-authority-data"), "no certificate-auth"),
        (lambda d: d["clusters"][0]["cluster"].update({"certificate-authority-data": "!"}), "no base64"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, change: Any, message: str) -> None:
    (tmp_path / "c.pem").write_text("CERT")
    (tmp_path / "k.pem").write_text("KEY")
    data = copy.deepcopy(GOOD)
    change(data)
    with pytest.raises(KubeconfigError, match=message) as refused:
        KubeConfig.from_file(write(tmp_path, data))
    assert "config" in str(refused.value)


def test_no_file_and_no_yaml_are_named(tmp_path: Path) -> None:
    with pytest.raises(KubeconfigError, match="No such file"):
        KubeConfig.from_file(str(tmp_path / "none"))
    with pytest.raises(KubeconfigError, match="no YAML"):
        path = tmp_path / "bad"
        path.write_text("a: [")
        KubeConfig.from_file(str(path))
    with pytest.raises(KubeconfigError, match="current-context"):
        KubeConfig.from_file(write(tmp_path, ["a list"]))


def test_a_pod_uses_its_service_account_and_its_token_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("ROOT")
    (tmp_path / "token").write_text("one\n")
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    config = KubeConfig.in_cluster(environ, str(tmp_path))
    assert (config.access().server, config.access().token) == ("https://[fd00::1]:443", "one")
    (tmp_path / "token").write_text("two")
    assert config.access().token == "two"
    with pytest.raises(KubeconfigError, match="--kubeconfig"):
        KubeConfig.in_cluster({}, str(tmp_path))
    (tmp_path / "token").unlink()
    with pytest.raises(KubeconfigError, match="token"):
        KubeConfig.in_cluster(environ, str(tmp_path))

"""Kubeconfig files: the hub writes one for its administrator, the command line reads one."""

import argparse
import base64
import os
from dataclasses import dataclass
from typing import Any

import yaml

from hub.config import default_data_dir, yaml_problem
from hub.files import write_atomically


class KubeconfigError(Exception):
    """A kubeconfig that cannot be used. The message names the file and what is missing."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where an API is and who asks: `server` is https://host:port, the rest PEM."""

    server: str
    root_pem: str
    cert_pem: str
    key_pem: str


def path_of(values: argparse.Namespace) -> str:
    """The kubeconfig that the options of a command name (`sharedoptions.add_api_options`)."""
    return values.kubeconfig or os.path.join(values.data_dir or default_data_dir(), "kubeconfig")


def write(path: str, credentials: Credentials, user: str = "admin") -> None:
    """Writes `path` (0600) at once or not at all. `user`: what the file calls who asks."""
    data = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "cloudhub",
                "cluster": {
                    "server": credentials.server,
                    "certificate-authority-data": _encode(credentials.root_pem),
                },
            }
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": _encode(credentials.cert_pem),
                    "client-key-data": _encode(credentials.key_pem),
                },
            }
        ],
        "contexts": [{"name": "cloudhub", "context": {"cluster": "cloudhub", "user": user}}],
        "current-context": "cloudhub",
    }
    write_atomically(path, yaml.safe_dump(data, sort_keys=False).encode())


def read(path: str) -> Credentials:
    """The current context's credentials. Raises KubeconfigError."""
    try:
        with open(path, "rb") as file:
            data = yaml.safe_load(file.read(1 << 20))
    except OSError as failure:
        raise KubeconfigError(
            f"cannot read {path}: {failure.strerror}; is the hub of this data directory running?"
        ) from failure
    except yaml.YAMLError as wrong:
        raise KubeconfigError(f"{path} is no YAML: {yaml_problem(wrong)}") from wrong
    try:
        context = _named(data, "contexts", data["current-context"])["context"]
        cluster = _named(data, "clusters", context["cluster"])["cluster"]
        user = _named(data, "users", context["user"])["user"]
        return Credentials(
            cluster["server"],
            _pem(cluster, "certificate-authority", path),
            _pem(user, "client-certificate", path),
            _pem(user, "client-key", path),
        )
    except (KeyError, TypeError, StopIteration, ValueError) as missing:
        raise KubeconfigError(
            f"{path} is no kubeconfig with a client certificate for its current context"
        ) from missing


def _named(data: dict[str, Any], section: str, name: str) -> dict[str, Any]:
    return next(item for item in data[section] if item["name"] == name)


def _pem(section: dict[str, Any], name: str, path: str) -> str:
    inline = section.get(f"{name}-data")
    if inline is not None:
        return base64.b64decode(inline, validate=True).decode()
    file_name = os.path.join(os.path.dirname(path), section[name])
    try:
        with open(file_name, encoding="ascii") as file:
            return file.read(1 << 20)
    except OSError as failure:
        raise KubeconfigError(f"{path} names {file_name}: {failure.strerror}") from failure


def _encode(pem: str) -> str:
    return base64.b64encode(pem.encode()).decode()

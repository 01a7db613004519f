"""Where a Kubernetes API server is and who asks it: from a kubeconfig file, or from the files that a pod is given.

`KubeConfig.access()` reads the files again at every call: tokens of service accounts live for an hour, certificates are
rotated. Programs that print credentials (`exec`, `auth-provider`), passwords, proxies and unverified servers are
refused by name.

Sources: the kubeconfig format (client-go's clientcmd/api/v1), "Accessing the Kubernetes API from a Pod".
"""

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import yaml

from hub.config import yaml_problem
from hub.kubeconfig import KubeconfigError

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
FILE_BYTES_MAX = 1 << 20
NOT_SERVED_USER = ("exec", "auth-provider", "username", "password", "as", "as-groups", "as-user-extra")


@dataclass(frozen=True, slots=True)
class Access:
    """What a connection needs. `server` is https://host:port (and perhaps a path), `server_name` what its certificate has
    to say where that is not the host, the rest PEM or None. None of it is shown by repr."""

    server: str
    root_pem: str = field(repr=False)
    server_name: str | None = None
    cert_pem: str | None = field(default=None, repr=False)
    key_pem: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


class KubeConfig:
    """See the module; made by `from_file` or `in_cluster`."""

    def __init__(self, path: str, server: str = "") -> None:
        """`path`: a kubeconfig file; with `server` the directory of a service account."""
        self._path = path
        self._server = server

    @classmethod
    def from_file(cls, path: str) -> "KubeConfig":
        """The current context of a kubeconfig file. Raises KubeconfigError."""
        config = cls(path)
        config.access()
        return config

    @classmethod
    def in_cluster(cls, environ: Mapping[str, str], directory: str = SERVICE_ACCOUNT) -> "KubeConfig":
        """What a pod's environment and service account say. Raises KubeconfigError."""
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
        if not host or not port:
            raise KubeconfigError(
                "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is no pod of a cluster; "
                "name a kubeconfig file with --kubeconfig"
            )
        host = f"[{host}]" if ":" in host else host
        config = cls(directory, f"https://{host}:{port}")
        config.access()
        return config

    def __str__(self) -> str:
        return self._path

    def access(self) -> Access:
        """What the files say now. Raises KubeconfigError."""
        if self._server:
            root = _text(self._path, os.path.join(self._path, "ca.crt"))
            token = _text(self._path, os.path.join(self._path, "token")).strip()
            return Access(self._server, root, token=token)
        return _of_kubeconfig(self._path)


def _of_kubeconfig(path: str) -> Access:
    try:
        data = yaml.safe_load(_text(path, path))
    except yaml.YAMLError as wrong:
        raise KubeconfigError(f"{path} is no YAML: {yaml_problem(wrong)}") from wrong
    current = data.get("current-context") if isinstance(data, dict) else None
    if not current:
        raise KubeconfigError(f"{path} has no current-context; choose one with kubectl config use-context")
    context = _named(path, data, "contexts", current, "context")
    cluster = _named(path, data, "clusters", context.get("cluster"), "cluster")
    user = _named(path, data, "users", context.get("user"), "user")
    for name in NOT_SERVED_USER:
        if user.get(name):
            raise KubeconfigError(
                f"{path}: {name!r} of user {context['user']!r} is not served; use a client certificate, a token or a tokenFile"
            )
    if cluster.get("insecure-skip-tls-verify"):
        raise KubeconfigError(f"{path}: insecure-skip-tls-verify is not served; give certificate-authority")
    if cluster.get("proxy-url"):
        raise KubeconfigError(f"{path}: proxy-url is not served; name the API server itself")
    server = str(cluster.get("server") or "").rstrip("/")
    if urlsplit(server).scheme != "https" or not urlsplit(server).hostname:
        raise KubeconfigError(f"{path}: server has to be https://host:port, it is {server!r}")
    root = _pem(path, cluster, "certificate-authority")
    if root is None:
        raise KubeconfigError(f"{path}: cluster {context['cluster']!r} has no certificate-authority")
    cert, key = _pem(path, user, "client-certificate"), _pem(path, user, "client-key")
    token = _token(path, user)
    if (cert is None) != (key is None):
        raise KubeconfigError(f"{path}: client-certificate and client-key belong together, one is missing")
    if cert is None and token is None:
        raise KubeconfigError(f"{path}: user {context['user']!r} has no client certificate and no token")
    return Access(server, root, cluster.get("tls-server-name") or None, cert, key, token)


def _named(path: str, data: dict[str, Any], section: str, name: object, part: str) -> dict[str, Any]:
    for item in data.get(section) or ():
        if isinstance(item, dict) and item.get("name") == name and isinstance(item.get(part), dict):
            found: dict[str, Any] = item[part]
            return found
    raise KubeconfigError(f"{path} has no {part} {name!r} among its {section}")


def _token(path: str, user: dict[str, Any]) -> str | None:
    """A file comes before a text beside it, as in client-go."""
    if user.get("tokenFile"):
        return _text(path, _beside(path, user["tokenFile"])).strip()
    return str(user["token"]) if user.get("token") else None


def _pem(path: str, section: dict[str, Any], name: str) -> str | None:
    inline = section.get(f"{name}-data")
    if inline:
        try:
            return base64.b64decode(inline, validate=True).decode()
        except (binascii.Error, ValueError, TypeError) as wrong:
            raise KubeconfigError(f"{path}: {name}-data is no base64 of PEM") from wrong
    return _text(path, _beside(path, section[name])) if section.get(name) else None


def _beside(path: str, name: str) -> str:
    return os.path.join(os.path.dirname(path), name)


def _text(path: str, name: str) -> str:
    try:
        with open(name, encoding="utf-8") as file:
            return file.read(FILE_BYTES_MAX)
    except (OSError, UnicodeDecodeError) as failure:
        why = failure.strerror if isinstance(failure, OSError) else "it is no text"
        shown = "cannot read it" if name == path else f"cannot read {name}"
        raise KubeconfigError(f"{path}: {shown}: {why}") from failure

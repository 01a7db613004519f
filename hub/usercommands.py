"""`cloudhub user`: a kubeconfig for a user, and who is bound to which roles."""

import argparse
import asyncio
import os
from collections.abc import Iterable
from typing import Any, Final

from hub import kubeconfig
from hub.client import ApiClient
from hub.config import duration_s
from hub.kubeconfig import Credentials

RBAC: Final = "/apis/rbac.authorization.k8s.io/v1"
HEAD: Final = ("SUBJECT", "NAMESPACE", "ROLE", "BINDING")


def create(values: argparse.Namespace) -> int:
    """Writes the user's kubeconfig. Raises ClientError, KubeconfigError, ConfigError, OSError."""
    admin = kubeconfig.read(kubeconfig.path_of(values))
    path = values.output or f"{values.name}.kubeconfig"
    if os.path.exists(path):
        raise FileExistsError(f"{path} exists and is left alone; choose another name with --output")
    wanted = {
        "name": values.name,
        "groups": values.group or [],
        "ttlSeconds": int(duration_s(values.ttl, "--ttl")),
    }

    async def issue() -> Any:
        async with ApiClient(admin) as api:
            return await api.post("/cloudhub/users", wanted)

    made = asyncio.run(issue())
    server = values.server or admin.server
    found = Credentials(server, made["root"], made["certificate"], made["key"])
    kubeconfig.write(path, found, values.name)
    print(path)
    return 0


def show(values: argparse.Namespace) -> int:
    """Prints every subject of every binding. Raises as `create`."""

    async def bindings() -> list[Any]:
        async with ApiClient(kubeconfig.read(kubeconfig.path_of(values))) as api:
            found = [await api.get(f"{RBAC}/{kind}") for kind in ("clusterrolebindings", "rolebindings")]
        return [item for listed in found for item in listed["items"]]

    rows = sorted(rows_of(asyncio.run(bindings())))
    widths = [max(len(row[i]) for row in (HEAD, *rows)) for i in range(len(HEAD))]
    for row in (HEAD, *rows):
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def rows_of(bindings: Iterable[Any]) -> Iterable[tuple[str, str, str, str]]:
    """(subject, namespace or *, role, binding) of every subject. [pure]"""
    for binding in bindings:
        meta, ref = binding["metadata"], binding["roleRef"]
        for subject in binding.get("subjects") or ():
            at = (
                f"{subject.get('namespace') or meta.get('namespace', '')}/"
                if subject["kind"] == "ServiceAccount"
                else ""
            )
            who = f"{subject['kind']}/{at}{subject['name']}"
            yield who, meta.get("namespace") or "*", f"{ref['kind']}/{ref['name']}", meta["name"]

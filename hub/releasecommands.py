"""`cloudhub release keygen`, `publish` and `roll`: a release of the agent is signed, kept as ConfigMaps, and wanted by Nodes, some at a time.

`roll` holds nothing: what is to be done follows from the Nodes alone, so it can be stopped and called again. It goes on only while at most
`--max-unavailable` nodes are neither on the release nor known to have refused it, and stops at the first that has.
"""

import argparse
import asyncio
import os
import re
import time
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from edgelite import p256
from edgelite.updateplan import SIZE_MAX, UpdateError, identity
from hub.client import ApiClient, ClientError
from hub.kubernetes.client import KubeClient
from hub.releases import ANNOTATION, CONDITION, STATEMENT, annotation, configmaps, release, wanted
from hub.usage import UsageError

Api = ApiClient | KubeClient
POLL_S: Final = 1.0
PAGE: Final = 500
KEY_BYTES_MAX: Final = 64 << 10


def keygen(values: argparse.Namespace) -> int:
    """Makes a key file (0600, never over another one); prints the public key that nodes are given."""
    key = generate(SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fd = os.open(values.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "wb") as file:
        file.write(pem)
    print(p256.public_point(key.private_numbers().private_value).hex())
    return 0


async def publish(api: Api, values: argparse.Namespace) -> int:
    """Signs a file and keeps it as ConfigMaps. Exit code 0 once all of it is there."""
    data = _read(values.file, SIZE_MAX + 1)
    name = values.name or f"edgelite-{re.sub('[^a-z0-9.-]', '-', values.version.lower())}"
    try:
        said = release(
            data, values.version, _private(values.key), downgrade=values.downgrade, platform=values.platform
        )
    except UpdateError as error:
        raise UsageError(f"{values.file} cannot be released: {error.message}") from error
    path = f"/api/v1/namespaces/{values.namespace}/configmaps"
    for made in configmaps(values.namespace, name, said, data):
        await api.post(path, made)
    print(
        f"{values.namespace}/{name}: release {said['version']}, {said['size']} bytes, SHA-256 {said['sha256']}"
    )
    return 0


async def roll(api: Api, values: argparse.Namespace) -> int:
    """Has Nodes want a release, as many at a time as may be unavailable. Exit code 0 when all that were meant are on it, 1 when one
    has not become it."""
    namespace, _, name = values.release.rpartition("/")
    found = await api.get(f"/api/v1/namespaces/{namespace or 'default'}/configmaps/{name}")
    try:
        said = orjson.loads(found["data"][STATEMENT])
    except (KeyError, TypeError, ValueError) as error:
        raise ClientError(f"the ConfigMap {values.release} is no release of the agent") from error
    settings = {"deadline": values.deadline, "hold": values.hold}
    if values.attempt > 1:
        settings["attempt"] = values.attempt
    text = annotation(namespace or "default", name, said, **settings)
    shown: dict[str, str] = {}
    until = time.monotonic() + values.timeout
    while True:
        states = {n["metadata"]["name"]: state(n, text) for n in await _nodes(api, values)}
        for node, (phase, detail) in sorted(states.items()):
            line = f"{node}: {phase}{f': {detail}' if detail else ''}"
            if shown.get(node) != line:
                shown[node] = line
                print(line, flush=True)
        phases = [phase for phase, _ in states.values()]
        if "failed" in phases:
            print("stopped: nothing more is rolled out; `--attempt N` tries the same release again")
            return 1
        waiting = sorted(node for node, (phase, _) in states.items() if phase == "waiting")
        free = values.max_unavailable - phases.count("updating")
        for node in waiting[: max(0, free)]:
            patch = {"metadata": {"annotations": {ANNOTATION: text}}}
            await api.patch(f"/api/v1/nodes/{node}", patch)
        if all(phase == "updated" for phase in phases):
            print(f"{len(phases)} nodes run release {said['version']}")
            return 0
        if time.monotonic() > until:
            left = len(phases) - phases.count("updated")
            print(
                f"after {values.timeout} s {left} of {len(phases)} nodes are not on it; the command may be called again"
            )
            return 1
        await asyncio.sleep(POLL_S)


def state(node: Any, text: str) -> tuple[str, str]:
    """What has become of the wanted release on a Node: (waiting, updating, updated or failed; why)."""
    if (node["metadata"].get("annotations") or {}).get(ANNOTATION) != text:
        return "waiting", ""
    found = wanted({ANNOTATION: text})
    assert found is not None
    named = f"({identity(found.body)})"
    for condition in (node.get("status") or {}).get("conditions") or []:
        if condition.get("type") == CONDITION and named in str(condition.get("message")):
            good = condition.get("status") == "True"
            return (
                "updated" if good else "failed",
                "" if good else f"{condition['reason']}: {condition['message']}",
            )
    return "updating", ""


async def _nodes(api: Api, values: argparse.Namespace) -> list[Any]:
    """The Nodes that are meant."""
    if values.nodes:
        return [await api.get(f"/api/v1/nodes/{name}") for name in values.nodes]
    found: list[Any] = []
    token = ""
    while True:
        query = {"limit": str(PAGE), "labelSelector": values.selector or "", "continue": token}
        asked = {name: value for name, value in query.items() if value}
        if isinstance(api, ApiClient):
            page = await api.get(f"/api/v1/nodes?{urlencode(asked)}")
        else:
            page = await api.get("/api/v1/nodes", asked)
        found += page["items"]
        token = page["metadata"].get("continue") or ""
        if not token:
            return found


def _read(path: str, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)


def _private(path: str) -> int:
    """The private number of a key file. Raises UsageError."""
    pem = _read(path, KEY_BYTES_MAX)
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is no private key in PEM without a password") from error
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise UsageError(f"{path} is no key of P-256; `cloudhub release keygen` makes one")
    return key.private_numbers().private_value

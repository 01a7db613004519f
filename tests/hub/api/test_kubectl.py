"""Stock kubectl against the functions under test, behind a server just big enough for it.

kubectl is taken from the PATH; CLOUDHUB_TEST_KUBECTLS adds further ones (paths, separated by colons), such as Debian's
1.20, which reads OpenAPI v2 in protobuf only.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.hub.api.small_server import SmallServer

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: a, image: nginx, resources: {limits: {cpu: 0.5}}}]}
"""


def kubectls() -> list[str]:
    extra = [path for path in os.environ.get("CLOUDHUB_TEST_KUBECTLS", "").split(":") if path]
    return [shutil.which("kubectl") or "kubectl", *extra]


@pytest.fixture
async def server() -> AsyncIterator[SmallServer]:
    small = SmallServer()
    await small.start()
    yield small
    await small.stop()


class Kubectl:
    def __init__(self, binary: str, server: SmallServer, home: Path) -> None:
        self.binary, self.server, self.home = binary, server, home

    async def __call__(self, *args: str, stdin: str = "") -> tuple[int, str]:
        """(exit code, standard output and error)."""
        try:
            process = await asyncio.create_subprocess_exec(
                self.binary,
                f"--server={self.server.url}",
                f"--cache-dir={self.home}/cache",
                *args,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={"HOME": str(self.home), "PATH": os.environ["PATH"], "KUBECONFIG": "/dev/null"},
            )
        except FileNotFoundError:
            pytest.fail("kubectl is missing: `make deps-ci` (root) installs it, or put one into the PATH")
        out, _ = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        return process.returncode or 0, out.decode()


@pytest.fixture(params=kubectls())
def kubectl(request: pytest.FixtureRequest, server: SmallServer, tmp_path: Path) -> Kubectl:
    return Kubectl(request.param, server, tmp_path)


async def test_apply_creates_changes_and_is_idempotent(kubectl: Kubectl) -> None:
    code, out = await kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    assert (code, out.strip()) == (0, "deployment.apps/web created")
    code, out = await kubectl("apply", "-f", "-", stdin=DEPLOYMENT.replace("nginx", "nginx:2"))
    assert (code, out.strip()) == (0, "deployment.apps/web configured")
    stored = kubectl.server.objects["deployments.apps", "default", "web"]
    assert stored["spec"]["template"]["spec"]["containers"][0]["image"] == "nginx:2"
    code, out = await kubectl("get", "deploy", "-o", "wide")
    assert code == 0
    assert out.split()[:8] == [
        "NAME",
        "READY",
        "UP-TO-DATE",
        "AVAILABLE",
        "AGE",
        "CONTAINERS",
        "IMAGES",
        "SELECTOR",
    ]
    assert out.split()[8:12] == ["web", "0/1", "0", "0"]


async def test_an_unknown_field_is_refused_by_name(kubectl: Kubectl) -> None:
    code, out = await kubectl(
        "apply", "-f", "-", stdin=DEPLOYMENT.replace("spec:\n  sel", "spec:\n  repicas: 1\n  sel")
    )
    assert code != 0
    assert 'unknown field "spec.repicas"' in out or 'unknown field "repicas"' in out
    assert kubectl.server.objects == {}


async def test_an_invalid_object_is_explained(kubectl: Kubectl) -> None:
    code, out = await kubectl(
        "apply", "-f", "-", stdin=DEPLOYMENT.replace("labels: {app: web}", "labels: {app: x}")
    )
    assert code != 0
    assert 'The Deployment "web" is invalid: spec.template.metadata.labels: Invalid value' in out


async def test_explain_shows_the_published_help(kubectl: Kubectl) -> None:
    code, out = await kubectl("explain", "pods.spec.restartPolicy")
    assert code == 0
    assert "Restart policy for all containers" in out
    code, out = await kubectl("explain", "jointokens.spec")
    assert code == 0
    assert "ttlSeconds" in out


async def test_a_strategic_patch_adds_a_container(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    change = '{"spec":{"template":{"spec":{"containers":[{"name":"b","image":"x"}]}}}}'
    code, out = await kubectl("patch", "deploy", "web", "-p", change)
    assert (code, out.strip()) == (0, "deployment.apps/web patched")
    code, out = await kubectl(
        "patch", "deploy", "web", "--type=json", "-p", '[{"op":"remove","path":"/nope"}]'
    )
    assert code != 0
    code, out = await kubectl("label", "deploy", "web", "tier=front")
    assert code == 0
    code, out = await kubectl("get", "deploy", "-l", "tier=front", "-o", "name")
    assert out.strip() == "deployment.apps/web"


async def test_a_bad_selector_is_explained(kubectl: Kubectl) -> None:
    code, out = await kubectl("get", "pods", "--field-selector=foo=bar")
    assert code != 0
    assert "field label not supported: foo" in out

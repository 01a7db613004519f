#!/usr/bin/env python3
"""A whole CloudHub on this machine: a hub, two edge nodes, and the manifests beside this file running on them.

`make demo` runs it. Everything is real (TLS, join tokens, processes of their own) and lives in one temporary directory;
Ctrl-C stops all of it, workloads included, and removes the directory. Needs no root, and no kubectl.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works in a checkout that is not installed, too

from hub import kubeconfig  # noqa: E402
from hub.client import ApiClient, ClientError  # noqa: E402

NODES = ("edge-1", "edge-2")
PODS = "/api/v1/namespaces/default/pods"
STEADY_S = 1.0  # what crashes at once looks well for a moment
WORKLOADS_STOP_S = 45  # more than the 30 s of grace that a pod has by default
LOG_LINES = 5
INTERRUPTED = 130
STARTED_AT = time.monotonic()


class DemoError(Exception):
    """Why the demo cannot go on; the message says what was found."""


def say(text: str = "") -> None:
    # A reader that has gone (`| head`) is no reason to leave processes behind.
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)


def step(text: str) -> None:
    say(f"{time.monotonic() - STARTED_AT:5.1f} s  {text}")


class Demo:
    """What has been started, and how to stop it."""

    def __init__(self, directory: Path, manifests: Path, timeout_s: float) -> None:
        self.directory, self.manifests, self.timeout_s = directory, manifests, timeout_s
        self.children: dict[str, Process] = {}
        self.kubectl = shutil.which("kubectl")
        self.data_dir = directory / "hub"
        self.reported = False

    @property
    def kubeconfig(self) -> Path:
        return self.data_dir / "kubeconfig"

    # -- starting

    async def hub(self) -> ApiClient:
        """`cloudhub serve` on free ports; a client of its API."""
        step(f"starting a hub in {self.directory}")
        settings = self.directory / "hub.yaml"
        settings.write_text("heartbeat: 5s\n")  # a node that you kill is noticed soon
        await self._spawn(
            "hub", sys.executable, "-m", "hub", "serve", "--config", str(settings), "--data-dir", str(self.data_dir),
            "--api-address", "127.0.0.1:0", "--edge-address", "127.0.0.1:0",
        )  # fmt: skip
        self.edge = await self._serves(self.data_dir)
        return ApiClient(kubeconfig.read(str(self.kubeconfig)))

    async def _serves(self, data_dir: Path) -> str:
        """Waits until the hub on that directory serves; the address of its edge port."""
        endpoints = data_dir / "endpoints.json"

        async def there() -> bool:
            return endpoints.exists()

        await self._until(there, f"the hub in {data_dir} serves")
        return str(json.loads(endpoints.read_text())["edge"])

    async def nodes(self, api: ApiClient) -> None:
        """Two `edgelite join`: each makes its key, gets its certificate for the token, and goes on as the agent."""
        step(f"enrolling {' and '.join(NODES)}")
        token = await self._run(
            sys.executable, "-m", "hub", "token", "create", "--pool", "demo", "--count", str(len(NODES)),
            "--data-dir", str(self.data_dir),
        )  # fmt: skip
        for name in NODES:
            await self._spawn(
                name, sys.executable, "-m", "edgelite", "join", "--hub", self.edge, "--token", token.strip(), "--name", name,
                "--data-dir", str(self.directory / name), "--runtime", "process",
            )  # fmt: skip

        async def ready() -> bool:
            found = (await api.get("/api/v1/nodes"))["items"]
            return sum(condition(node, "Ready") for node in found) == len(NODES)

        await self._until(ready, "both nodes are ready")

    async def apply(self, api: ApiClient) -> None:
        if self.kubectl:
            step(f"kubectl apply -f {self.manifests}")
            say(indented(await self._kubectl("apply", "-f", str(self.manifests))))
        else:
            step(f"applying {self.manifests} through the API, for there is no kubectl on the PATH")
            files = [self.manifests] if self.manifests.is_file() else sorted(self.manifests.glob("*.yaml"))
            for file in files:
                for obj in yaml.safe_load_all(file.read_text()):
                    say(indented(f"{await create(api, obj)} created"))

    async def running(self, api: ApiClient) -> None:
        """Waits until all that was applied runs; says what does not, and why, when it takes too long."""
        shown = ""

        async def settled() -> bool:
            nonlocal shown
            missing = await unfinished(api)
            pods = (await api.get("/api/v1/pods"))["items"]
            text = f"{sum(map(pod_is_fine, pods))} of {len(pods)} pods run"
            if text != shown:
                step(shown := text)
            if missing or not pods:
                return False
            await asyncio.sleep(STEADY_S)
            return not await unfinished(api)

        try:
            await self._until(settled, "everything runs")
        except DemoError as late:
            raise DemoError(f"{late}\n{await diagnosis(api)}") from late

    # -- the report

    async def story(self) -> None:
        """All of it, up to the report."""
        async with await self.hub() as api:
            await self.nodes(api)
            await self.apply(api)
            await self.running(api)
            await self.report(api)
            self.reported = True

    async def report(self, api: ApiClient) -> None:
        for what, path in ((["nodes"], "/api/v1/nodes"), (["pods", "-o", "wide"], PODS)):
            say(f"\n$ kubectl get {' '.join(what)}")
            say(await (self._kubectl("get", *what) if self.kubectl else table(api, path, "wide" in what)))
        pods = (await api.get(PODS))["items"]
        if pods:
            name = pods[0]["metadata"]["name"]
            say(f"\n$ kubectl logs {name} --tail={LOG_LINES}")
            say(await self._log(api, name))
        kubectl = f"kubectl --kubeconfig {self.kubeconfig}"
        say(
            f"\nTo try next{'' if self.kubectl else ' (with a kubectl: https://kubernetes.io/docs/tasks/tools/)'}:"
        )
        for line in (
            "logs -f hello",
            """patch configmap greeting -p '{"data":{"GREETING":"changed"}}'  # its file at the edge follows""",
            "scale deployment till --replicas=5",
            "describe node edge-1",
            "delete pod hello",
        ):
            say(f"  {kubectl} {line}")

    async def _log(self, api: ApiClient, pod: str) -> str:
        text = ""

        async def written() -> bool:
            nonlocal text
            text = await api.text(f"{PODS}/{pod}/log?tailLines={LOG_LINES}")
            return bool(text)

        await self._until(written, f"{pod} has written to its log")
        return text.rstrip()

    # -- ending

    async def stop(self) -> None:
        """Stops all that was started, workloads first. Raises DemoError when something stays."""
        left = [text for text in await asyncio.gather(*map(self._stop_node, NODES)) if text]
        for name, child in reversed(self.children.items()):
            if name not in NODES:
                await end(child)
        if left:
            raise DemoError("\n".join([*left, f"{self.directory} is left as it is"]))
        shutil.rmtree(self.directory)

    async def _stop_node(self, name: str) -> str:
        """What could not be stopped, "" when all was. An agent that has died is stood in for by the command."""
        agent = self.children.get(name)
        if agent is None:
            return ""
        text = ""
        for _ in range(2):
            try:
                await self._run(
                    sys.executable, "-m", "edgelite", "stop", "--workloads", "--timeout", str(WORKLOADS_STOP_S),
                    "--data-dir", str(self.directory / name),
                )  # fmt: skip
                return ""
            except DemoError as failure:
                text = str(failure)
            finally:
                await end(agent)
        return text

    # -- helpers

    async def _spawn(self, name: str, *argv: str) -> None:
        with self._log_file(name) as log:
            # A session of its own: Ctrl-C reaches the demo alone, which stops everything in order.
            self.children[name] = await asyncio.create_subprocess_exec(
                *argv, cwd=ROOT, stdin=DEVNULL, stdout=log, stderr=STDOUT, start_new_session=True
            )  # fmt: skip

    def _log_file(self, name: str) -> BinaryIO:
        return open(self.directory / f"{name}.log", "wb")

    async def _kubectl(self, *arguments: str) -> str:
        assert self.kubectl is not None
        options = ("--kubeconfig", str(self.kubeconfig), "--cache-dir", str(self.directory / "kubectl-cache"))
        return (await self._run(self.kubectl, *arguments, *options)).rstrip()

    async def _run(self, *argv: str) -> str:
        """Runs a program to its end; its stdout. Raises DemoError with what it said."""
        child = await asyncio.create_subprocess_exec(
            *argv, cwd=ROOT, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
        )
        try:
            out, errors = await child.communicate()
        except asyncio.CancelledError:
            await end(child)
            raise
        if child.returncode:
            raise DemoError(f"{' '.join(argv[:4])} failed: {(errors or out).decode().strip()}")
        return out.decode()

    async def _until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        deadline = time.monotonic() + self.timeout_s
        while not await condition():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"not within {self.timeout_s:g} s: {what}")
            await asyncio.sleep(0.2)

    def check(self) -> None:
        """Raises DemoError when a part has ended by itself, with the end of its log."""
        for name, child in self.children.items():
            if child.returncode is not None:
                log = (self.directory / f"{name}.log").read_text(errors="replace").splitlines()
                raise DemoError(
                    f"{name} has ended with {child.returncode}:\n{indented(chr(10).join(log[-10:]))}"
                )


async def end(child: Process) -> None:
    """SIGTERM, and SIGKILL after 10 s."""
    if child.returncode is None:
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), 10)
        except TimeoutError:
            child.kill()
            await child.wait()


def indented(text: str) -> str:
    return "\n".join(f"         {line}" for line in text.splitlines())


# -- what the API says


def condition(obj: Any, kind: str) -> bool:
    held = obj.get("status", {}).get("conditions") or []
    return any(c["type"] == kind and c["status"] == "True" for c in held)


def pod_is_fine(pod: Any) -> bool:
    return condition(pod, "Ready") or pod["status"].get("phase") == "Succeeded"


async def unfinished(api: ApiClient) -> list[str]:
    """What has been applied and is not there yet."""
    missing = [p["metadata"]["name"] for p in (await api.get("/api/v1/pods"))["items"] if not pod_is_fine(p)]
    for kind, wanted, there in (
        ("deployments", "replicas", "availableReplicas"),
        ("daemonsets", "desiredNumberScheduled", "numberAvailable"),
    ):
        for obj in (await api.get(f"/apis/apps/v1/{kind}"))["items"]:
            status = obj.get("status", {})
            fresh = status.get("observedGeneration") == obj["metadata"]["generation"]
            count = obj["spec"].get(wanted, status.get(wanted, 0))
            if not fresh or status.get(there, 0) < count:
                missing.append(obj["metadata"]["name"])
    return missing


async def create(api: ApiClient, obj: Any) -> str:
    """POSTs an object where discovery says; its name as kubectl prints it."""
    version = obj["apiVersion"]
    base = f"/apis/{version}" if "/" in version else f"/api/{version}"
    kinds = (await api.get(base))["resources"]
    found = next((r for r in kinds if r["kind"] == obj["kind"] and "/" not in r["name"]), None)
    if found is None:
        raise DemoError(f"this hub has no {obj['kind']} in {version}")
    scope = f"/namespaces/{obj['metadata'].get('namespace', 'default')}" if found["namespaced"] else ""
    await api.post(f"{base}{scope}/{found['name']}?fieldValidation=Strict", obj)
    return f"{obj['kind'].lower()}/{obj['metadata']['name']}"


async def table(api: ApiClient, path: str, wide: bool) -> str:
    """What `kubectl get [-o wide]` prints: the API makes the columns."""
    found = await api.get(path, accept="application/json;as=Table;g=meta.k8s.io;v=v1")
    columns = found["columnDefinitions"]
    shown = [n for n, column in enumerate(columns) if wide or column["priority"] == 0]
    rows = [[columns[n]["name"].upper() for n in shown]]
    rows += [[str(row["cells"][n]) for n in shown] for row in found["rows"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


async def diagnosis(api: ApiClient) -> str:
    """Why pods do not run: their conditions, what their containers wait for, events, and the ends of their logs."""
    out: list[str] = []
    for pod in (await api.get("/api/v1/pods"))["items"]:
        if pod_is_fine(pod):
            continue
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        status = pod["status"]
        out.append(
            f"pod {namespace}/{name} is {status.get('phase')}: {status.get('message', '')}".rstrip(": ")
        )
        for held in status.get("conditions") or []:
            if held["status"] != "True" and held.get("message"):
                out.append(f"  {held['type']}: {held['message']}")
        for container in (status.get("initContainerStatuses") or []) + (
            status.get("containerStatuses") or []
        ):
            for state in ("waiting", "terminated"):
                found = container["state"].get(state)
                if found:
                    out.append(f"  {container['name']}: {found.get('reason')}: {found.get('message', '')}")
        events = f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name={name}"
        out += [f"  event: {e['reason']}: {e['message']}" for e in (await api.get(events))["items"][-5:]]
        with contextlib.suppress(ClientError):  # not started: there is no log
            log = await api.text(f"/api/v1/namespaces/{namespace}/pods/{name}/log?tailLines={LOG_LINES}")
            out += [f"  log: {line}" for line in log.splitlines()]
    return "\n".join(out)


# -- the command


async def show(demo: Demo, once: bool) -> None:
    await demo.story()
    if not once:
        say(f"\nRunning. Ctrl-C stops everything and removes {demo.directory}")
        while True:
            demo.check()
            await asyncio.sleep(0.5)


async def run(options: argparse.Namespace, kind: type[Demo]) -> int:
    """Shows the demo until it is done, fails or is interrupted; whatever happens, all is stopped."""
    demo = kind(Path(tempfile.mkdtemp(prefix="cloudhub-demo-")), options.manifests.resolve(), options.timeout)
    work = asyncio.create_task(show(demo, options.once), name="show")
    stopping = False

    def interrupted() -> None:
        if stopping or work.cancelling():
            say("still stopping what was started; this is bounded, please wait")
        else:
            work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupted)
    code = 0
    try:
        await work
    except asyncio.CancelledError:
        say()
        code = 0 if demo.reported else INTERRUPTED
    except (DemoError, ClientError, kubeconfig.KubeconfigError, yaml.YAMLError, OSError) as failure:
        print(f"demo: {failure}", file=sys.stderr)
        code = 1
    finally:
        stopping = True
        step("stopping workloads, nodes and all else")
        try:
            await demo.stop()
            step("all stopped and removed")
        except (DemoError, OSError) as failure:
            print(f"demo: could not clean up: {failure}", file=sys.stderr)
            code = 1
    return code


def main(
    kind: type[Demo] = Demo,
    command: str = "make demo",
    what: str = "a hub and two edge nodes",
    timeout_s: float = 120,
) -> int:
    """The command line of a demo; its exit code."""
    parser = argparse.ArgumentParser(
        prog=f"{command} ARGS=...",
        description=f"Runs {what} on this machine, applies manifests with kubectl (or without, where "
        "there is none), waits until everything runs, reports, and goes on until Ctrl-C, which stops and removes "
        "everything.",
        epilog="Exit codes: 0 shown (and stopped), 1 something did not work: the reason is on stderr, 130 interrupted "
        "before the report.",
    )
    parser.add_argument(
        "--once", action="store_true", help="stop after the report instead of waiting for Ctrl-C"
    )
    parser.add_argument(
        "--manifests",
        metavar="PATH",
        type=Path,
        default=ROOT / "examples/manifests",
        help="a YAML file, or a directory of *.yaml, to apply (default: examples/manifests)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=timeout_s,
        help=f"how long each step may take (default: {timeout_s:g})",
    )
    options = parser.parse_args()
    if not os.path.exists(options.manifests):
        parser.error(f"--manifests {options.manifests}: there is no such file or directory")
    return asyncio.run(run(options, kind))


if __name__ == "__main__":
    sys.exit(main())

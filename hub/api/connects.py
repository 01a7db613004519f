"""exec, attach and port-forward of a pod: what the query asks for, which container, and the node's stream for it.

Source: the Kubernetes API reference, PodExecOptions, PodAttachOptions and PodPortForwardOptions; of a kubelet, whose
query calls the streams input, output and error.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web
from multidict import MultiMapping

from hub import errors, objects
from hub.api.kinds import Object
from hub.api.logs import Gateway, container
from hub.api.requests import flag
from hub.duplex import DuplexStream, check_body
from hub.kubelet import portforward, remotecommand
from hub.registry import Registry

SUBRESOURCES: Final = ("exec", "attach", "portforward")
OVER: Final = ("Succeeded", "Failed")


def asked(kind: str, query: MultiMapping[str]) -> dict[str, Any]:
    """The body of OPEN but for pod and port, from the API's query; `container` is "" where none was named. Raises
    BadRequest. [pure]"""
    if kind == "portforward":
        return {"kind": kind}
    # A client that names no output means its absence; attach without anything would be nothing.
    return {
        "kind": kind,
        "container": query.get("container", ""),
        "stdin": flag(query, "stdin"),
        "stdout": flag(query, "stdout"),
        "stderr": flag(query, "stderr") and not flag(query, "tty"),
        "tty": flag(query, "tty"),
        **({"command": query.getall("command", [])} if kind == "exec" else {}),
    }


async def bound_pod(registry: Registry, namespace: str, name: str) -> Object:
    """The pod. Raises NotFound, and BadRequest for one that runs nowhere."""
    pod = (await registry.get(objects.PODS, namespace, name)).obj()
    if not pod["spec"].get("nodeName"):
        raise errors.BadRequest(f"pod {name} does not have a host assigned")
    phase = (pod.get("status") or {}).get("phase")
    if phase in OVER:
        raise errors.BadRequest(f"pod {name} has ended (its phase is {phase}): nothing of it runs any more")
    return pod


async def serve(
    request: web.BaseRequest, gateway: Gateway, pod: Object, wanted: Mapping[str, Any]
) -> web.StreamResponse:
    """Connects the client with the pod's node until one of them ends it. `wanted`: as `asked` gives it. Raises ApiError
    before the client's connection is upgraded."""
    node, uid = pod["spec"]["nodeName"], pod["metadata"]["uid"]
    if wanted["kind"] == "portforward":
        return await portforward.serve(request, _ports(gateway, node, uid))
    remotecommand.check(request)
    chosen = container(pod, wanted["container"])
    body = check_body({**wanted, "pod": uid, "container": chosen})
    stream = await gateway.open_stream(node, body)
    try:
        await stream.started()
        return await remotecommand.serve(request, stream, body)
    finally:
        stream.close()


def _ports(gateway: Gateway, node: str, uid: str) -> "Callable[[int], Any]":
    async def open_port(port: int) -> DuplexStream:
        return await gateway.open_stream(node, {"kind": "portforward", "pod": uid, "port": port})

    return open_port

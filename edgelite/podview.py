"""What the node's own API shows to the pods that run here, and the API itself, begun when the first pod needs it."""

import json

from edgelite import localdevices, localview, podservices, podstatus
from edgelite.dates import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edgelite.localserver import LocalApi
    from edgelite.podenv import Library
    from edgelite.reconcile import Pod
    from edgelite.twinkeeper import TwinKeeper
    from edgelite.twins import Twin
    from edgelite.workloads import Clock

    Object = dict[str, Any]

PREFIXES = {"configmaps": ("configmap/", "ConfigMap"), "secrets": ("secret/", "Secret")}


class PodView:
    """pods(uid) gives a pod and the keys of what it refers to, None when it is not here; node: its name; report(): the body of
    a `node` entry; make(view): the API's server; devices: those of the node. Raises what that raises."""

    def __init__(
        self,
        library: "Library",
        pods: "Callable[[str], tuple[Pod, set[str]] | None]",
        clock: "Clock",
        node: str,
        report: "Callable[[], dict[str, Any]]",
        make: "Callable[[PodView], LocalApi]",
        devices: "TwinKeeper",
    ) -> None:
        self._library = library
        self._pods = pods
        self._clock = clock
        self._node = node
        self._report = report
        self._make = make
        self._devices = devices
        devices.changed = self.changed
        self._api: "LocalApi | None" = None
        # Revisions must not go back when the agent is started again.
        self._revisions = localview.Revisions(int(clock.wall()) * 1000)

    def api(self) -> "tuple[int, str]":
        """(port, certificate) of the API, which runs from now on. Raises OSError, RuntimeFailure."""
        if self._api is None:
            self._api = self._make(self)
        return self._api.port, self._api.ca

    def changed(self) -> None:
        """Something of what is shown may be another now."""
        if self._api is not None:
            self._api.changed()

    def revision(self) -> int:
        return self._revisions.highest

    def objects(self, token: str) -> "Callable[[str], list[Object]] | None":
        """What the pod with this token may see, by plural; None when it is no pod's here."""
        uid = self._library.tokens.owner(token)
        if uid is None or self._pods(uid) is None:
            return None
        return lambda plural: self._shown(uid, plural)

    def report(
        self, token: str, namespace: str, name: str, content_type: str, body: "bytes | None"
    ) -> "tuple[int, Object]":
        """Takes the report of the pod with this token about a device of its namespace."""
        uid = self._library.tokens.owner(token)
        found = None if uid is None else self._pods(uid)
        twin = None
        if found is not None and found[0].doc["ns"] == namespace:
            twin = self._devices.twins.get(namespace, name)
        return localdevices.patch(content_type, body, twin, name, self._devices.report, self._marked)

    def _marked(self, twin: "Twin") -> "Object":
        return self._revisions.mark(json.loads(json.dumps(self._device(twin))))

    def _device(self, twin: "Twin") -> "Object":
        return localdevices.device_object(twin, self._node, _rfc3339_ms)

    def _shown(self, uid: str, plural: str) -> "list[Object]":
        found = self._pods(uid)
        if found is None:
            return []  # it has gone while somebody watched
        pod, refs = found
        if plural == "pods":
            status = podstatus.build(pod, self._clock.wall())
            shown = [localview.pod_object(pod.doc, status, self._node)]
        elif plural == "nodes":
            shown = [localview.node_object(self._node, self._report())]
        elif plural == "namespaces":
            shown = [localview.namespace_object(pod.doc["ns"])]
        elif plural == "devices":
            shown = [self._device(twin) for twin in self._devices.twins.of(pod.doc["ns"])]
        elif plural in ("services", "endpointslices"):
            shown = podservices.shown(plural, pod.doc["ns"], self._library)
        else:
            prefix, kind = PREFIXES[plural]
            names = sorted(ref.split("/")[2] for ref in refs if ref.startswith(prefix))
            bodies = [self._library.body(kind, pod.doc["ns"], name) for name in names]
            shown = [localview.config_object(json.loads(body)) for body in bodies if body is not None]
        # A copy: what is marked must not be the document that is run.
        return [self._revisions.mark(json.loads(json.dumps(obj))) for obj in shown]


def _rfc3339_ms(at: int) -> str:
    return "%s.%03dZ" % (rfc3339(at // 1000)[:-1], at % 1000)

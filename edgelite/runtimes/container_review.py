"""What of a Pod the container runtime cannot honour on this node. [pure]"""

from edgelite.podenv import quantity
from edgelite.runtimes.container_fields import BASELINE_CAPABILITIES, DEFAULTS, FIELDS
from edgelite.runtimes.engine_images import parse_reference
from edgelite.runtimes.fields import judge
from edgelite.runtimes.process_fields import capability_numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PRIVILEGED = "needs allow_privileged in this node's configuration"


def review(pod: "dict[str, Any]", allow_privileged: bool, network: str) -> "tuple[list[str], list[str]]":
    """(refusals, warnings) for a Pod document. network: the one that the node's containers join."""
    spec = pod["spec"]
    found = _Review(allow_privileged, "host" if spec.get("hostNetwork") else network)
    found.refusals, found.warnings = judge(spec, FIELDS, DEFAULTS)
    found.pod(spec)
    for field in ("initContainers", "containers"):
        for n, container in enumerate(spec.get(field) or []):
            found.container("spec.%s[%d]" % (field, n), container)
    return found.refusals, found.warnings


class _Review:
    def __init__(self, allow_privileged: bool, network: str) -> None:
        self._privileged = allow_privileged
        self._network = network
        self.refusals: "list[str]" = []
        self.warnings: "list[str]" = []

    def pod(self, spec: "dict[str, Any]") -> None:
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(field):
                self._needs_privilege("spec." + field)
        if spec.get("hostUsers") is False:
            self.refusals.append("spec.hostUsers: the engine's user namespaces are not used; leave it out")
        if (spec.get("os") or {}).get("name") not in (None, "", "linux"):
            self.refusals.append("spec.os.name: this node runs linux")
        if spec.get("hostname") and self._network == "host":
            self.warnings.append("spec.hostname: in the host's network containers see the host's name")
        for n, volume in enumerate(spec.get("volumes") or []):
            if volume.get("hostPath") is not None:
                self._needs_privilege("spec.volumes[%d].hostPath" % n)
        context = spec.get("securityContext") or {}
        if context.get("supplementalGroupsPolicy") == "Strict":
            text = (
                "spec.securityContext.supplementalGroupsPolicy: the engine adds the image's groups; use Merge"
            )
            self.refusals.append(text)
        self._profiles("spec.securityContext", context)
        if self._network != "host":
            self._alone(spec)

    def _alone(self, spec: "dict[str, Any]") -> None:
        text = "in the engine's network %s every container is alone" % self._network
        if len(spec["containers"]) > 1:
            self.warnings.append("spec.containers: %s: they do not reach each other at localhost" % text)
        for n, container in enumerate(spec["containers"]):
            for field in ("livenessProbe", "readinessProbe", "startupProbe"):
                probe = container.get(field) or {}
                if probe.get("httpGet") is not None or probe.get("tcpSocket") is not None:
                    where = "spec.containers[%d].%s" % (n, field)
                    self.warnings.append("%s: %s: probes reach published host ports only" % (where, text))

    def container(self, where: str, container: "dict[str, Any]") -> None:
        try:
            parse_reference(container.get("image") or "")
        except ValueError as error:
            if not container.get("image"):
                self.refusals.append("%s.image: required: the container runtime runs images" % where)
            else:
                # As on a kubelet, a name that is wrong is waited with, for the image may be changed.
                self.warnings.append("%s.image: %s" % (where, error))
        self._environment(where, container)
        self._security(where + ".securityContext", container.get("securityContext") or {})
        self._ports(where, container)
        self._limits(where + ".resources", container.get("resources") or {})
        for n, mount in enumerate(container.get("volumeMounts") or []):
            self._mount("%s.volumeMounts[%d]" % (where, n), mount)

    def _environment(self, where: str, container: "dict[str, Any]") -> None:
        origins = [entry.get("valueFrom") or {} for entry in container.get("env") or []]
        text = "%s.%s: the engine keeps values of Secrets in files of its own, in clear; a volume keeps them in memory"
        if any(origin.get("secretKeyRef") is not None for origin in origins):
            self.warnings.append(text % (where, "env"))
        if any(source.get("secretRef") is not None for source in container.get("envFrom") or []):
            self.warnings.append(text % (where, "envFrom"))

    def _needs_privilege(self, where: str) -> None:
        if not self._privileged:
            self.refusals.append("%s: %s" % (where, PRIVILEGED))

    def _profiles(self, where: str, context: "dict[str, Any]") -> None:
        for field in ("seccompProfile", "appArmorProfile"):
            kind = (context.get(field) or {}).get("type")
            if kind == "Localhost":
                self.refusals.append("%s.%s: profiles of the node are not loaded" % (where, field))
            elif kind == "Unconfined":
                self._needs_privilege("%s.%s" % (where, field))

    def _security(self, where: str, context: "dict[str, Any]") -> None:
        self._profiles(where, context)
        if context.get("privileged"):
            self._needs_privilege(where + ".privileged")
        if context.get("procMount") not in (None, "", "Default"):
            self.refusals.append("%s.procMount: only Default" % where)
        capabilities = context.get("capabilities") or {}
        for field in ("add", "drop"):
            try:
                capability_numbers(capabilities.get(field) or [])
            except ValueError as error:
                text = "%s.capabilities.%s: %s is no capability of Linux"
                self.refusals.append(text % (where, field, error))
        for name in capabilities.get("add") or []:
            plain = name.upper()[4:] if name.upper().startswith("CAP_") else name.upper()
            if plain not in BASELINE_CAPABILITIES:
                self._needs_privilege("%s.capabilities.add: %s" % (where, name))

    def _ports(self, where: str, container: "dict[str, Any]") -> None:
        for n, port in enumerate(container.get("ports") or []):
            at = "%s.ports[%d]" % (where, n)
            if self._network != "host":
                continue
            if port.get("hostPort") and port["hostPort"] != port.get("containerPort"):
                text = "%s.hostPort: in the host's network it has to equal containerPort"
                self.refusals.append(text % at)
            if port.get("hostIP") not in (None, "", "0.0.0.0"):  # noqa: S104  (compared, not bound)
                text = "%s.hostIP: has no effect in the host's network: the program binds the address that it chooses"
                self.warnings.append(text % at)

    def _limits(self, where: str, resources: "dict[str, Any]") -> None:
        for side in ("limits", "requests"):
            for name, value in (resources.get(side) or {}).items():
                at = "%s.%s.%s" % (where, side, name)
                if name in ("cpu", "memory"):
                    try:
                        quantity(value)
                    except ValueError:
                        self.refusals.append("%s: %s is no quantity" % (at, value))
                elif side == "limits":
                    self.warnings.append("%s: not enforced by the container runtime" % at)

    def _mount(self, where: str, mount: "dict[str, Any]") -> None:
        path = mount.get("mountPath") or ""
        if not path.strip("/.") or ":" in path:
            text = "%s.mountPath: %s: it has to be a path below the root, without colons"
            self.refusals.append(text % (where, path or '""'))
        if mount.get("recursiveReadOnly") == "Enabled":
            text = "%s.recursiveReadOnly: mounts below the volume stay writable; use IfPossible"
            self.refusals.append(text % where)

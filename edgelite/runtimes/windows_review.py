"""What of a Pod the process runtime cannot honour on Windows. [pure]"""

from edgelite.runtimes import fields, windows_names
from edgelite.runtimes.process_cgroups import quantity
from edgelite.runtimes.windows_fields import DEFAULTS, FIELDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PRIVILEGED = "needs allow_privileged in this node's configuration"


def review(
    pod: "dict[str, Any]", limits: "set[str]", allow_privileged: bool
) -> "tuple[list[str], list[str]]":
    """(refusals, warnings) for a Pod document. limits: which of "memory" and "cpu" job objects have here."""
    spec = pod["spec"]
    refusals, warnings = fields.judge(spec, FIELDS, DEFAULTS)
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field) and not allow_privileged:
            refusals.append("spec.%s: %s" % (field, PRIVILEGED))
    if spec.get("hostUsers") is False:
        refusals.append("spec.hostUsers: pods have no users of their own here; leave it out")
    if (spec.get("os") or {}).get("name") not in (None, "", "windows"):
        refusals.append("spec.os.name: this node runs windows")
    for n, volume in enumerate(spec.get("volumes") or []):
        where = "spec.volumes[%d]" % n
        _name(where + ".name", volume.get("name"), refusals)
        host = volume.get("hostPath")
        if host is not None and not allow_privileged:
            refusals.append("%s.hostPath: %s" % (where, PRIVILEGED))
        if host is not None:
            _path(where + ".hostPath.path", host.get("path"), refusals)
        for at, kind in ((where, volume), *_projected(where, volume)):
            for source in ("configMap", "secret", "downwardAPI"):
                for m, item in enumerate((kind.get(source) or {}).get("items") or []):
                    _path("%s.%s.items[%d].path" % (at, source, m), item.get("path"), refusals)
    for field in ("initContainers", "containers"):
        for n, container in enumerate(spec.get(field) or []):
            _container("spec.%s[%d]" % (field, n), container, limits, refusals, warnings)
    return refusals, warnings


def _projected(where: str, volume: "dict[str, Any]") -> "list[tuple[str, dict[str, Any]]]":
    sources = (volume.get("projected") or {}).get("sources") or []
    return [("%s.projected.sources[%d]" % (where, n), source) for n, source in enumerate(sources)]


def _name(where: str, name: "Any", refusals: "list[str]") -> None:
    fault = windows_names.name_fault(str(name))
    if fault:
        refusals.append("%s: %s" % (where, fault))


def _path(where: str, path: "Any", refusals: "list[str]") -> bool:
    """Whether it can be a path."""
    fault = windows_names.path_fault(str(path or ""))
    if fault:
        refusals.append("%s: %s" % (where, fault))
    return not fault


def _container(
    where: str,
    container: "dict[str, Any]",
    limits: "set[str]",
    refusals: "list[str]",
    warnings: "list[str]",
) -> None:
    _name(where + ".name", container.get("name"), refusals)
    command = container.get("command") or []
    if not command:
        text = "%s.command: container %s needs a command: the process runtime does not use the image"
        refusals.append(text % (where, container.get("name")))
    elif "$(" not in command[0] and _path(where + ".command[0]", command[0], refusals):
        if windows_names.is_script(command[0]):
            text = (
                "%s.command[0]: %s is a batch file: run cmd.exe /d /c with it, and quote for cmd.exe yourself"
            )
            refusals.append(text % (where, command[0]))
    if container.get("workingDir"):
        _path(where + ".workingDir", container["workingDir"], refusals)
    for n, port in enumerate(container.get("ports") or []):
        at = "%s.ports[%d]" % (where, n)
        if port.get("hostPort") and port["hostPort"] != port.get("containerPort"):
            text = "%s.hostPort: processes listen on the host itself, so it has to equal containerPort"
            refusals.append(text % at)
        if port.get("hostIP") not in (None, "", "0.0.0.0"):  # noqa: S104  (compared, not bound)
            warnings.append("%s.hostIP: has no effect: the process binds the address that it chooses" % at)
    for name, value in ((container.get("resources") or {}).get("limits") or {}).items():
        at = "%s.resources.limits.%s" % (where, name)
        try:
            quantity(value)
        except ValueError:
            refusals.append("%s: %s is no quantity" % (at, value))
        if name not in ("cpu", "memory"):
            warnings.append(at + ": not enforced by the process runtime")
        elif name not in limits:
            warnings.append(at + ": not enforced: the job objects of this system have no such limit")
    for n, mount in enumerate(container.get("volumeMounts") or []):
        _mount("%s.volumeMounts[%d]" % (where, n), mount, refusals, warnings)


def _mount(where: str, mount: "dict[str, Any]", refusals: "list[str]", warnings: "list[str]") -> None:
    path = mount.get("mountPath") or ""
    if windows_names.is_absolute(path):
        text = (
            "%s.mountPath: %s is absolute, and Windows has no mounts that only one program sees; use a path relative to the "
            "working directory"
        )
        refusals.append(text % (where, path))
    elif ".." in path.replace("\\", "/").split("/") or not path.strip("./\\"):
        refusals.append("%s.mountPath: %s leaves the container's own directory" % (where, path or '""'))
    else:
        _path(where + ".mountPath", path, refusals)
    if mount.get("readOnly"):
        warnings.append(where + ".readOnly: not enforced on Windows")
    if mount.get("recursiveReadOnly") == "Enabled":
        refusals.append(where + ".recursiveReadOnly: not enforced on Windows; use IfPossible")

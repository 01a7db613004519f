"""What of a Pod the process runtime cannot honour on this machine, and as whom its containers run.

Decides only: what the machine can do comes in as `Abilities`, so that every answer can be tested anywhere.
"""

from edgelite.runtimes.process_cgroups import quantity
from edgelite.runtimes.process_fields import (
    CHECKED,
    DEFAULTS,
    ELSEWHERE,
    FIELDS,
    HONOURED,
    NO_EFFECT,
    REFUSED,
    capability_numbers,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PRIVILEGED = "needs allow_privileged in this node's configuration"
USER_MAX = 2**31 - 1


class Abilities:
    """What this machine and the agent's configuration allow.

    uid, gid, groups: the agent's own. namespaces: "mount", "user" or "none". limits: of "memory", "cpu", "pids".
    default_uid, default_gid: as whom containers run when the agent is root and the pod does not say."""

    __slots__ = (
        "allow_privileged",
        "default_gid",
        "default_uid",
        "gid",
        "groups",
        "limits",
        "namespaces",
        "uid",
    )

    def __init__(
        self,
        uid: int,
        gid: int,
        groups: "list[int]",
        namespaces: str,
        limits: "set[str]",
        allow_privileged: bool,
        default_uid: int,
        default_gid: int,
    ) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.namespaces = namespaces
        self.limits = limits
        self.allow_privileged = allow_privileged
        self.default_uid = default_uid
        self.default_gid = default_gid


class User:
    """As whom a container runs."""

    __slots__ = ("gid", "groups", "uid")

    def __init__(self, uid: int, gid: int, groups: "list[int]") -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups


class Refused(Exception):
    """`path: what cannot be honoured and what to do`."""


def review(
    pod: "dict[str, Any]",
    can: Abilities,
    fields: "dict[str, tuple[str, str]]" = FIELDS,
    system: str = "linux",
) -> "tuple[list[str], list[str]]":
    """(refusals, warnings) for a Pod document. fields, system: of another system than Linux that has its users and signals."""
    found = _Review(can, fields, system)
    spec = pod["spec"]
    found.walk("spec", "spec", spec)
    found.pod(spec)
    for field in ("initContainers", "containers"):
        for n, container in enumerate(spec.get(field) or []):
            found.container("spec.%s[%d]" % (field, n), spec, container)
    return found.refusals, found.warnings


class _Review:
    def __init__(self, can: Abilities, fields: "dict[str, tuple[str, str]]", system: str) -> None:
        self._can = can
        self._fields = fields
        self._system = system
        self.refusals: "list[str]" = []
        self.warnings: "list[str]" = []

    def walk(self, where: str, path: str, value: "Any") -> None:
        """Applies FIELDS to a value and to what it holds. where: with indexes, for people; path: as in FIELDS."""
        verdict, text = self._fields.get(path, ("", ""))
        if path.endswith("[]") or not verdict:
            if isinstance(value, dict) and any(known.startswith(path + ".") for known in self._fields):
                for name, inner in value.items():
                    self._field(where + "." + name, path + "." + name, inner)
                return
        if verdict in (HONOURED, ELSEWHERE, NO_EFFECT, CHECKED) or _is_default(path, value):
            return
        if not verdict:
            self.warnings.append("%s: unknown to this agent, has no effect" % where)
        elif verdict == REFUSED:
            self.refusals.append("%s: %s" % (where, text))
        else:
            self.warnings.append("%s: %s" % (where, text))

    def _field(self, where: str, path: str, value: "Any") -> None:
        listed = path.replace("spec.initContainers", "spec.containers") + "[]"
        if isinstance(value, list) and (
            listed in self._fields or any(k.startswith(listed) for k in self._fields)
        ):
            for n, entry in enumerate(value):
                self.walk("%s[%d]" % (where, n), listed, entry)
        else:
            self.walk(where, path, value)

    def pod(self, spec: "dict[str, Any]") -> None:
        can = self._can
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(field) and not can.allow_privileged:
                self.refusals.append("spec.%s: %s" % (field, PRIVILEGED))
        if spec.get("hostUsers") is False:
            self.refusals.append(
                "spec.hostUsers: the process runtime gives pods no users of their own; leave it out"
            )
        if (spec.get("os") or {}).get("name") not in (None, "", self._system):
            self.refusals.append("spec.os.name: this node runs %s" % self._system)
        for n, volume in enumerate(spec.get("volumes") or []):
            if volume.get("hostPath") is not None and not can.allow_privileged:
                self.refusals.append("spec.volumes[%d].hostPath: %s" % (n, PRIVILEGED))
        self._profiles("spec.securityContext", spec.get("securityContext") or {})

    def container(self, where: str, spec: "dict[str, Any]", container: "dict[str, Any]") -> None:
        if not container.get("command"):
            text = "%s.command: container %s needs a command: the process runtime does not use the image"
            self.refusals.append(text % (where, container.get("name")))
        try:
            user = identify(spec, container, where, self._can)
            added = ((container.get("securityContext") or {}).get("capabilities") or {}).get("add")
            if added and user.uid != 0:
                text = "%s.securityContext.capabilities.add: has no effect for user %d, only for user 0"
                self.warnings.append(text % (where, user.uid))
        except Refused as error:
            self.refusals.append(str(error))
        self._security(where + ".securityContext", container.get("securityContext") or {})
        self._ports(where, container)
        self._limits(where, (container.get("resources") or {}).get("limits") or {})
        for n, mount in enumerate(container.get("volumeMounts") or []):
            self._mount("%s.volumeMounts[%d]" % (where, n), mount)

    def _profiles(self, where: str, context: "dict[str, Any]") -> None:
        for field in ("seccompProfile", "appArmorProfile"):
            kind = (context.get(field) or {}).get("type")
            if kind == "Localhost":
                self.refusals.append(
                    "%s.%s: profiles are not applied by the process runtime" % (where, field)
                )
            elif kind == "RuntimeDefault":
                self.warnings.append("%s.%s: not applied by the process runtime" % (where, field))

    def _security(self, where: str, context: "dict[str, Any]") -> None:
        can = self._can
        self._profiles(where, context)
        if context.get("privileged"):
            if not can.allow_privileged:
                self.refusals.append("%s.privileged: %s" % (where, PRIVILEGED))
            elif can.uid != 0:
                self.refusals.append("%s.privileged: needs an agent that runs as root" % where)
        capabilities = context.get("capabilities") or {}
        for field in ("add", "drop"):
            try:
                capability_numbers(capabilities.get(field) or [])
            except ValueError as error:
                self.refusals.append(
                    "%s.capabilities.%s: %s is no capability of Linux" % (where, field, error)
                )
        if capabilities.get("add") and not can.allow_privileged:
            self.refusals.append("%s.capabilities.add: %s" % (where, PRIVILEGED))
        if context.get("readOnlyRootFilesystem") and can.namespaces == "none":
            text = "%s.readOnlyRootFilesystem: not enforced: this agent may not make mount namespaces"
            self.warnings.append(text % where)

    def _ports(self, where: str, container: "dict[str, Any]") -> None:
        for n, port in enumerate(container.get("ports") or []):
            if port.get("hostPort") and port["hostPort"] != port.get("containerPort"):
                text = "%s.ports[%d].hostPort: processes listen on the host itself, so it has to equal containerPort"
                self.refusals.append(text % (where, n))
            if port.get("hostIP") not in (None, "", "0.0.0.0"):  # noqa: S104  (compared, not bound)
                text = "%s.ports[%d].hostIP: has no effect: the process binds the address that it chooses"
                self.warnings.append(text % (where, n))

    def _limits(self, where: str, limits: "dict[str, Any]") -> None:
        for name, value in limits.items():
            if name in ("cpu", "memory"):
                try:
                    quantity(value)
                except ValueError:
                    self.refusals.append("%s.resources.limits.%s: %s is no quantity" % (where, name, value))
                if name not in self._can.limits:
                    why = "this agent may not write to the cgroups of this machine"
                    if self._system != "linux":
                        why = "this system has no limits for a group of processes"
                    self.warnings.append("%s.resources.limits.%s: not enforced: %s" % (where, name, why))
            else:
                self.warnings.append(
                    "%s.resources.limits.%s: not enforced by the process runtime" % (where, name)
                )

    def _mount(self, where: str, mount: "dict[str, Any]") -> None:
        path = mount.get("mountPath") or ""
        none = self._can.namespaces == "none"
        if path.startswith("/"):
            if not path.strip("/."):
                self.refusals.append("%s.mountPath: %s cannot be replaced" % (where, path))
            elif none:
                text = (
                    "%s.mountPath: %s is absolute, which needs mount namespaces, and this agent may not make any; use a path "
                    "relative to the working directory"
                )
                self.refusals.append(text % (where, path))
        elif ".." in path.split("/") or not path.strip("/."):
            self.refusals.append(
                "%s.mountPath: %s leaves the container's own directory" % (where, path or '""')
            )
        elif none and self._can.uid == 0:
            text = "%s.mountPath: needs mount namespaces when the agent runs as root, and this machine refuses them"
            self.refusals.append(text % where)
        if mount.get("readOnly") and none:
            self.warnings.append(
                "%s.readOnly: not enforced: this agent may not make mount namespaces" % where
            )
        if mount.get("recursiveReadOnly") == "Enabled":
            self.refusals.append(
                "%s.recursiveReadOnly: mounts below the volume stay writable; use IfPossible" % where
            )


def _is_default(path: str, value: "Any") -> bool:
    return not value or value in DEFAULTS.get(path, ())


def identify(spec: "dict[str, Any]", container: "dict[str, Any]", where: str, can: Abilities) -> User:
    """As whom a container runs; the container's own securityContext wins over the pod's. Raises Refused."""
    own = container.get("securityContext") or {}
    pods = spec.get("securityContext") or {}
    uid, uid_at = _chosen("runAsUser", own, pods, where)
    gid, gid_at = _chosen("runAsGroup", own, pods, where)
    extra = [int(g) for g in pods.get("supplementalGroups") or []]
    if pods.get("fsGroup") is not None:
        extra.append(int(pods["fsGroup"]))
    for number, at in [(uid, uid_at), (gid, gid_at)] + [(g, "spec.securityContext") for g in extra]:
        if number is not None and not 0 <= number <= USER_MAX:
            raise Refused("%s: %s is not between 0 and %d" % (at, number, USER_MAX))
    if can.uid == 0:
        user = _as_root(uid, gid, extra, bool(own.get("privileged")), uid_at, can)
    else:
        user = _as_self(uid, gid, extra, uid_at, gid_at, can)
    strict, strict_at = _chosen("runAsNonRoot", own, pods, where)
    if strict and user.uid == 0:
        raise Refused("%s: the container would run as user 0; set runAsUser" % strict_at)
    return user


def _chosen(field: str, own: "dict[str, Any]", pods: "dict[str, Any]", where: str) -> "tuple[Any, str]":
    if own.get(field) is not None:
        return own[field], "%s.securityContext.%s" % (where, field)
    return pods.get(field), "spec.securityContext." + field


def _as_root(
    uid: "int | None", gid: "int | None", extra: "list[int]", privileged: bool, uid_at: str, can: Abilities
) -> User:
    if uid is None:
        uid = 0 if privileged else can.default_uid
    if uid == 0 and not can.allow_privileged:
        raise Refused("%s: running as user 0 %s" % (uid_at, PRIVILEGED))
    if gid is None:
        gid = _primary_group(uid, can)
    # Group 0 owns much of a host; in a container it owns the image's files only.
    if (gid == 0 or 0 in extra) and not can.allow_privileged:
        raise Refused("%s: running with group 0 %s" % (uid_at.replace("runAsUser", "runAsGroup"), PRIVILEGED))
    return User(uid, gid, sorted(set(extra) | {gid}))


def _primary_group(uid: int, can: Abilities) -> int:
    if uid in (0, can.default_uid):
        return 0 if uid == 0 else can.default_gid
    try:
        with open("/etc/passwd") as f:
            for line in f:
                field = line.split(":")
                if len(field) > 3 and field[2] == str(uid):
                    return int(field[3])
    except (OSError, ValueError):
        pass  # no such file, as on some small systems: nobody's group then
    return can.default_gid


def _as_self(
    uid: "int | None", gid: "int | None", extra: "list[int]", uid_at: str, gid_at: str, can: Abilities
) -> User:
    if uid is not None and uid != can.uid:
        text = "%s: the agent runs as user %d and cannot become %d; run it as root, or leave it out"
        raise Refused(text % (uid_at, can.uid, uid))
    if gid is not None and gid != can.gid:
        text = "%s: the agent runs with group %d and cannot take %d; run it as root, or leave it out"
        raise Refused(text % (gid_at, can.gid, gid))
    for group in extra:
        if group != can.gid and group not in can.groups:
            text = "spec.securityContext: the agent is not in group %d (supplementalGroups, fsGroup); run it as root"
            raise Refused(text % group)
    return User(can.uid, can.gid, can.groups)

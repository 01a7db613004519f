"""From a Launch to the body of the engine's `POST /containers/create`. [pure]

What can be refused by looking at the pod alone is refused by container_review; what needs the image is refused here.
"""

from edgelite.podenv import quantity
from edgelite.runtimes.base import RuntimeFailure
from edgelite.runtimes.container_record import ATTEMPT, BOOT, IMAGE, LABEL, NAME, OWNER, UID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.runtimes.base import Launch, Mount

NANO = 10**9
CPU_MIN_NANO = 10**7  # a cpu quota below 1 ms per 100 ms is refused by the kernel
SHARES_MIN = 2
CONFIG_ERROR = "CreateContainerConfigError"


class Site:
    """What of the node decides how containers are made.

    owner: marks this agent's containers in the engine; boot: the boot id; network: the engine's network ("host", "bridge", ...);
    log_bytes, log_files: size and number of log files; pids_max: processes per container; ulimits: (name, value) pairs."""

    __slots__ = ("boot", "log_bytes", "log_files", "network", "owner", "pids_max", "ulimits")

    def __init__(
        self,
        owner: str,
        boot: str,
        network: str,
        log_bytes: int,
        log_files: int,
        pids_max: int,
        ulimits: "list[tuple[str, int]]",
    ) -> None:
        self.owner = owner
        self.boot = boot
        self.network = network
        self.log_bytes = log_bytes
        self.log_files = log_files
        self.pids_max = pids_max
        self.ulimits = ulimits


def create_body(launch: "Launch", image: "dict[str, Any]", site: Site) -> "dict[str, Any]":
    """image: the engine's description of it. Raises RuntimeFailure."""
    container, spec = launch.container, launch.pod["spec"]
    network = "host" if spec.get("hostNetwork") else site.network
    body: "dict[str, Any]" = {
        "Image": image["Id"],
        "Env": ["%s=%s" % pair for pair in launch.env],
        "Labels": _labels(launch, site),
        "User": user(launch, image),
        "HostConfig": _host_config(launch, site, network),
    }
    if launch.command:
        body["Entrypoint"] = launch.command
        body["Cmd"] = launch.args
    elif launch.args:
        body["Cmd"] = launch.args
    if container.get("workingDir"):
        body["WorkingDir"] = container["workingDir"]
    for field, name in (("tty", "Tty"), ("stdin", "OpenStdin"), ("stdinOnce", "StdinOnce")):
        if container.get(field):
            body[name] = True
    if network != "host":
        body["Hostname"] = (spec.get("hostname") or launch.pod["name"])[:63].rstrip(".-")
        ports = [_port(p) for p in container.get("ports") or []]
        body["ExposedPorts"] = {p: {} for p, _ in ports}
        body["HostConfig"]["PortBindings"] = {p: [binding] for p, binding in ports if binding}
    return body


def _labels(launch: "Launch", site: Site) -> "dict[str, str]":
    return {
        OWNER: site.owner,
        UID: launch.pod["uid"],
        NAME: launch.container["name"],
        ATTEMPT: str(launch.attempt),
        BOOT: site.boot,
        IMAGE: launch.container.get("image") or "",
        LABEL + "namespace": launch.pod.get("ns") or "",
        LABEL + "pod": launch.pod.get("name") or "",
    }


def _host_config(launch: "Launch", site: Site, network: str) -> "dict[str, Any]":
    spec, container = launch.pod["spec"], launch.container
    found: "dict[str, Any]" = {
        "NetworkMode": network,
        "Binds": [_bind(m, launch.pod) for m in launch.mounts],
        "RestartPolicy": {"Name": "no"},  # the agent restarts; after a reboot nothing may run by itself
        "PidsLimit": site.pids_max,
        "Ulimits": [{"Name": name, "Soft": value, "Hard": value} for name, value in site.ulimits],
        "LogConfig": {
            "Type": "json-file",  # podman reads it as its k8s-file; both can be read back through the API
            "Config": {"max-size": str(site.log_bytes), "max-file": str(site.log_files)},
        },
        "GroupAdd": _groups(spec),
        "ExtraHosts": [
            "%s:%s" % (name, entry["ip"])
            for entry in spec.get("hostAliases") or []
            for name in entry.get("hostnames") or []
        ],
    }
    if spec.get("hostPID"):
        found["PidMode"] = "host"
    if spec.get("hostIPC"):
        found["IpcMode"] = "host"
    try:
        found.update(_resources(container.get("resources") or {}))
    except ValueError as error:
        raise RuntimeFailure(CONFIG_ERROR, "resources: %s" % error) from error
    found.update(_security(spec.get("securityContext") or {}, container.get("securityContext") or {}))
    return found


def _bind(mount: "Mount", pod: "dict[str, Any]") -> str:
    # A relative mountPath is below the root, as on a kubelet.
    target = mount.target if mount.target.startswith("/") else "/" + mount.target
    if ":" in mount.source or ":" in target:
        text = "volume %s: the engine cannot mount %s on %s: a path may not hold a colon"
        raise RuntimeFailure(CONFIG_ERROR, text % (mount.name, mount.source, target))
    options = ["ro" if mount.read_only else "rw"]
    volumes = {v.get("name"): v for v in pod["spec"].get("volumes") or []}
    if volumes.get(mount.name, {}).get("hostPath") is None:
        options.append(
            "z"
        )  # SELinux: the agent's own files get the containers' label, the host's keep theirs
    return "%s:%s:%s" % (mount.source, target, ",".join(options))


def _port(port: "dict[str, Any]") -> "tuple[str, dict[str, str] | None]":
    name = "%d/%s" % (port["containerPort"], (port.get("protocol") or "TCP").lower())
    if not port.get("hostPort"):
        return name, None
    return name, {"HostIp": port.get("hostIP") or "", "HostPort": str(port["hostPort"])}


def _groups(spec: "dict[str, Any]") -> "list[str]":
    context = spec.get("securityContext") or {}
    groups = [int(g) for g in context.get("supplementalGroups") or []]
    if context.get("fsGroup") is not None:
        groups.append(int(context["fsGroup"]))
    return [str(g) for g in sorted(set(groups))]


def _resources(resources: "dict[str, Any]") -> "dict[str, int]":
    """Raises ValueError."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    memory = quantity(limits.get("memory") or 0) // NANO
    cpu = quantity(limits.get("cpu") or 0)
    share = quantity(requests.get("cpu") or 0) or cpu
    found = {"CpuShares": max(SHARES_MIN, share * 1024 // NANO)}
    if memory:
        found["Memory"] = found["MemorySwap"] = memory  # as much with swap as without: no swap
    if cpu:
        found["NanoCpus"] = max(CPU_MIN_NANO, cpu)
    return found


def _security(pods: "dict[str, Any]", own: "dict[str, Any]") -> "dict[str, Any]":
    capabilities = own.get("capabilities") or {}
    options = []
    if own.get("allowPrivilegeEscalation") is False:
        options.append("no-new-privileges")
    for field, name in (("seccompProfile", "seccomp"), ("appArmorProfile", "apparmor")):
        if (own.get(field) or pods.get(field) or {}).get("type") == "Unconfined":
            options.append(name + "=unconfined")
    return {
        "Privileged": bool(own.get("privileged")),
        "ReadonlyRootfs": bool(own.get("readOnlyRootFilesystem")),
        "CapAdd": list(capabilities.get("add") or []),
        "CapDrop": list(capabilities.get("drop") or []),
        "SecurityOpt": options,
    }


def user(launch: "Launch", image: "dict[str, Any]") -> str:
    """As whom it runs, as the engine writes it: "", "uid" or "uid:gid". Raises RuntimeFailure when runAsNonRoot forbids it."""
    own = launch.container.get("securityContext") or {}
    pods = launch.pod["spec"].get("securityContext") or {}

    def chosen(field: str) -> "Any":
        return own[field] if own.get(field) is not None else pods.get(field)

    name = launch.container["name"]
    images = str((image.get("Config") or {}).get("User") or "")
    uid, gid = chosen("runAsUser"), chosen("runAsGroup")
    who = str(int(uid)) if uid is not None else images.partition(":")[0]
    if chosen("runAsNonRoot"):
        if who in ("", "0", "root"):
            text = "container %s has runAsNonRoot and %s; set runAsUser to another user than 0"
            why = "runAsUser is 0" if uid is not None else "its image runs as root"
            raise RuntimeFailure(CONFIG_ERROR, text % (name, why))
        if not who.isdigit() or int(who) == 0:
            text = "container %s has runAsNonRoot and its image names the user %r, which may be root; set runAsUser"
            raise RuntimeFailure(CONFIG_ERROR, text % (name, who))
    if gid is not None:
        return "%s:%d" % (who or "0", int(gid))
    return who if uid is not None else images

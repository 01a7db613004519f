"""What the process runtime does with every field of a Pod: plain data, from which `review`, the table in ARCHITECTURE.md
and a test are made.

FIELDS: {path: (verdict, text)}; initContainers are judged as containers. A path without entries below it stands for all that
it holds. Verdicts: "honoured"; "elsewhere" (by the hub, or by the agent above its runtimes); "no effect" (accepted,
nothing to do here); "warned" and "refused" unless at its default; "checked" (what is refused or warned about is in the text).
DEFAULTS: values that count as not set, besides null, false, "", 0 and what is empty.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HONOURED, ELSEWHERE, NO_EFFECT = "honoured", "elsewhere", "no effect"
WARNED, REFUSED, CHECKED = "warned", "refused", "checked"

_HOST = "processes share the host's; needs the node's allow_privileged when true"
_C = "spec.containers[]"
_SC = "spec.containers[].securityContext"
_PSC = "spec.securityContext"
_USER = "needs an agent that runs as root, else only the agent's own; 0 needs allow_privileged"

FIELDS: "dict[str, tuple[str, str]]" = {
    "spec.activeDeadlineSeconds": (ELSEWHERE, "the agent's pod loop"),
    "spec.affinity": (ELSEWHERE, "scheduling"),
    "spec.automountServiceAccountToken": (ELSEWHERE, "the API server, which adds the volume"),
    "spec.containers[]": (HONOURED, "each is a process tree on the host"),
    "spec.dnsConfig": (WARNED, "the host's resolver is used"),
    "spec.dnsPolicy": (WARNED, "the host's resolver is used"),
    "spec.enableServiceLinks": (ELSEWHERE, "the agent's environment of Services"),
    "spec.ephemeralContainers[]": (ELSEWHERE, "the agent's pod loop"),
    "spec.evictionResponders[]": (ELSEWHERE, "eviction"),
    "spec.hostAliases[]": (REFUSED, "the host's /etc/hosts is used; add the names there"),
    "spec.hostIPC": (CHECKED, _HOST),
    "spec.hostNetwork": (
        CHECKED,
        "there is no pod network: always the host's; needs the node's allow_privileged when true",
    ),
    "spec.hostPID": (CHECKED, _HOST),
    "spec.hostUsers": (CHECKED, "false (a user namespace of its own) is refused"),
    "spec.hostname": (WARNED, "processes see the host's name"),
    "spec.hostnameOverride": (WARNED, "processes see the host's name"),
    "spec.imagePullSecrets[]": (NO_EFFECT, "no image is pulled"),
    "spec.initContainers[]": (HONOURED, "as containers"),
    "spec.nodeName": (ELSEWHERE, "scheduling"),
    "spec.nodeSelector": (ELSEWHERE, "scheduling"),
    "spec.os": (CHECKED, "windows is refused"),
    "spec.overhead": (ELSEWHERE, "scheduling"),
    "spec.preemptionPolicy": (ELSEWHERE, "scheduling"),
    "spec.priority": (ELSEWHERE, "scheduling"),
    "spec.priorityClassName": (ELSEWHERE, "scheduling"),
    "spec.readinessGates[]": (ELSEWHERE, "the agent's pod loop"),
    "spec.resourceClaims[]": (REFUSED, "there is no dynamic resource allocation at the edge"),
    "spec.resources": (WARNED, "limits of a whole pod are not enforced; set them per container"),
    "spec.restartPolicy": (ELSEWHERE, "the agent's pod loop"),
    "spec.runtimeClassName": (REFUSED, "the node has one runtime; select the node instead"),
    "spec.schedulerName": (ELSEWHERE, "scheduling"),
    "spec.schedulingGates[]": (ELSEWHERE, "scheduling"),
    "spec.schedulingGroup": (ELSEWHERE, "scheduling"),
    "spec.serviceAccount": (ELSEWHERE, "the hub, which requests its tokens"),
    "spec.serviceAccountName": (ELSEWHERE, "the hub, which requests its tokens"),
    "spec.setHostnameAsFQDN": (WARNED, "processes see the host's name"),
    "spec.shareProcessNamespace": (NO_EFFECT, "processes see each other anyway"),
    "spec.subdomain": (WARNED, "processes see the host's name"),
    "spec.terminationGracePeriodSeconds": (HONOURED, ""),
    "spec.tolerations[]": (ELSEWHERE, "scheduling"),
    "spec.topologySpreadConstraints[]": (ELSEWHERE, "scheduling"),
    "spec.volumes[]": (
        CHECKED,
        "hostPath needs the node's allow_privileged; the rest is the agent's volumes'",
    ),
    _PSC + ".appArmorProfile": (CHECKED, "not applied: Localhost is refused, RuntimeDefault warned about"),
    _PSC + ".fsGroup": (HONOURED, "a supplementary group; emptyDir volumes get it. " + _USER),
    _PSC + ".fsGroupChangePolicy": (NO_EFFECT, "only emptyDir volumes change their group"),
    _PSC + ".runAsGroup": (CHECKED, _USER),
    _PSC + ".runAsNonRoot": (CHECKED, "a container that would run as user 0 is refused"),
    _PSC + ".runAsUser": (CHECKED, _USER),
    _PSC + ".seLinuxChangePolicy": (NO_EFFECT, "volumes keep the labels that they have"),
    _PSC + ".seLinuxOptions": (REFUSED, "processes run in the agent's own domain"),
    _PSC + ".seccompProfile": (CHECKED, "not applied: Localhost is refused, RuntimeDefault warned about"),
    _PSC + ".supplementalGroups": (CHECKED, _USER),
    _PSC + ".supplementalGroupsPolicy": (NO_EFFECT, "there is no image that could add groups"),
    _PSC + ".sysctls": (REFUSED, "they would change the host; set them there"),
    _PSC + ".windowsOptions": (REFUSED, "this is not Windows"),
    _C + ".args": (HONOURED, ""),
    _C + ".command": (CHECKED, "required: the image is not used"),
    _C + ".env": (HONOURED, "exactly as given, with PATH and HOME where they are not"),
    _C + ".envFrom": (HONOURED, ""),
    _C + ".image": (NO_EFFECT, "not used; another one restarts the container, as in Kubernetes"),
    _C + ".imagePullPolicy": (NO_EFFECT, "no image is pulled"),
    _C + ".lifecycle": (ELSEWHERE, "the agent's pod loop, with exec of this runtime"),
    _C + ".livenessProbe": (ELSEWHERE, "the agent's probes, with exec of this runtime"),
    _C + ".name": (HONOURED, ""),
    _C + ".ports[]": (CHECKED, "informational: ports are the host's, so hostPort has to equal containerPort"),
    _C + ".readinessProbe": (ELSEWHERE, "the agent's probes, with exec of this runtime"),
    _C + ".resizePolicy": (ELSEWHERE, "the agent's pod loop"),
    _C + ".resources.claims": (REFUSED, "there is no dynamic resource allocation at the edge"),
    _C + ".resources.limits": (
        CHECKED,
        "cpu and memory where cgroups are writable, else warned about; others are warned about",
    ),
    _C + ".resources.requests": (HONOURED, "scheduling, and the weight of the cpu's cgroup"),
    _C + ".restartPolicy": (ELSEWHERE, "the agent's pod loop"),
    _C + ".restartPolicyRules": (ELSEWHERE, "the agent's pod loop"),
    _C + ".startupProbe": (ELSEWHERE, "the agent's probes, with exec of this runtime"),
    _C + ".stdin": (REFUSED, "standard input is /dev/null"),
    _C + ".stdinOnce": (REFUSED, "standard input is /dev/null"),
    _C + ".terminationMessagePath": (ELSEWHERE, "the agent's pod loop"),
    _C + ".terminationMessagePolicy": (ELSEWHERE, "the agent's pod loop"),
    _C + ".tty": (REFUSED, "there are no terminals"),
    _C + ".volumeDevices": (REFUSED, "use the host's /dev"),
    _C + ".volumeMounts[].bindMountOptions": (REFUSED, "mount with readOnly instead"),
    _C + ".volumeMounts[].mountPath": (
        CHECKED,
        "absolute paths need mount namespaces; relative ones lie in the container's own working directory",
    ),
    _C + ".volumeMounts[].mountPropagation": (ELSEWHERE, "the agent's pod loop"),
    _C + ".volumeMounts[].name": (HONOURED, ""),
    _C + ".volumeMounts[].readOnly": (CHECKED, "warned about where there are no mount namespaces"),
    _C + ".volumeMounts[].recursiveReadOnly": (CHECKED, "Enabled is refused"),
    _C + ".volumeMounts[].subPath": (ELSEWHERE, "the agent's volumes"),
    _C + ".volumeMounts[].subPathExpr": (ELSEWHERE, "the agent's volumes"),
    _C + ".workingDir": (
        HONOURED,
        "has to exist on the host or in a volume; a relative one is made. Default: a directory of its own",
    ),
    _SC + ".allowPrivilegeEscalation": (HONOURED, "false sets no_new_privs"),
    _SC + ".appArmorProfile": (CHECKED, "not applied: Localhost is refused, RuntimeDefault warned about"),
    _SC + ".capabilities.add": (
        CHECKED,
        "needs the node's allow_privileged, and has an effect for user 0 only",
    ),
    _SC + ".capabilities.drop": (
        HONOURED,
        "taken from the bounding set; other users than 0 start without any",
    ),
    _SC + ".privileged": (
        CHECKED,
        "runs as user 0 unless runAsUser says other; needs allow_privileged and an agent that runs as root",
    ),
    _SC + ".procMount": (NO_EFFECT, "the host's /proc is seen as it is"),
    _SC + ".readOnlyRootFilesystem": (CHECKED, "with mount namespaces and Linux 5.12, else warned about"),
    _SC + ".runAsGroup": (CHECKED, _USER),
    _SC + ".runAsNonRoot": (CHECKED, "a container that would run as user 0 is refused"),
    _SC + ".runAsUser": (CHECKED, _USER),
    _SC + ".seLinuxOptions": (REFUSED, "processes run in the agent's own domain"),
    _SC + ".seccompProfile": (CHECKED, "not applied: Localhost is refused, RuntimeDefault warned about"),
    _SC + ".windowsOptions": (REFUSED, "this is not Windows"),
}

DEFAULTS: "dict[str, tuple[Any, ...]]" = {
    "spec.dnsPolicy": ("ClusterFirst", "Default", "ClusterFirstWithHostNet"),
    "spec.dnsConfig": ({},),
}

CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)


def capability_numbers(names: "list[str]") -> "list[int]":
    """Kernel numbers of capabilities by their Kubernetes names ("NET_RAW", "CAP_NET_RAW", "ALL"). Raises ValueError for
    an unknown one."""
    known = CAPABILITIES.split(" ")
    numbers: "set[int]" = set()
    for name in names:
        plain = name.upper()[4:] if name.upper().startswith("CAP_") else name.upper()
        if plain == "ALL":
            numbers.update(range(len(known)))
        elif plain in known:
            numbers.add(known.index(plain))
        else:
            raise ValueError(name)
    return sorted(numbers)

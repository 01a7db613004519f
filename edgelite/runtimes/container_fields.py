"""What the container runtime does with every field of a Pod: plain data, from which `review`, the table in ARCHITECTURE.md
and a test are made. The words are those of process_fields: what is decided elsewhere is the same for both runtimes and taken
from there, everything else is said here.
"""

from edgelite.runtimes import process_fields
from edgelite.runtimes.process_fields import CHECKED, ELSEWHERE, HONOURED, NO_EFFECT, REFUSED, WARNED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_C = "spec.containers[]"
_SC = "spec.containers[].securityContext"
_PSC = "spec.securityContext"
_PRIVILEGED = "needs the node's allow_privileged when true"
_PROFILE = (
    "the engine's default is applied; Localhost is refused; Unconfined needs the node's allow_privileged"
)

_SECRETS = "warned about with values of Secrets: the engine keeps them in files of its own, in clear"

FIELDS: "dict[str, tuple[str, str]]" = {
    path: entry for path, entry in process_fields.FIELDS.items() if entry[0] == ELSEWHERE
}
FIELDS.update(
    {
        _C: (HONOURED, "each is a container of the engine"),
        "spec.dnsConfig": (WARNED, "the engine's resolver configuration is used, which is the host's"),
        "spec.dnsPolicy": (WARNED, "the engine's resolver configuration is used, which is the host's"),
        "spec.enableServiceLinks": (ELSEWHERE, "the agent's environment of Services"),
        "spec.hostAliases[]": (HONOURED, ""),
        "spec.hostIPC": (CHECKED, _PRIVILEGED),
        "spec.hostNetwork": (
            CHECKED,
            "there is no pod network: containers join the network that the node is configured with, by default the host's; "
            + _PRIVILEGED,
        ),
        "spec.hostPID": (CHECKED, _PRIVILEGED),
        "spec.hostUsers": (CHECKED, "false (a user namespace of its own) is refused"),
        "spec.hostname": (CHECKED, "warned about in the host's network: containers see the host's name"),
        "spec.hostnameOverride": (WARNED, "not used"),
        "spec.imagePullSecrets[]": (HONOURED, ""),
        "spec.initContainers[]": (HONOURED, "as containers"),
        "spec.os": (CHECKED, "windows is refused"),
        "spec.resourceClaims[]": (REFUSED, "there is no dynamic resource allocation at the edge"),
        "spec.resources": (WARNED, "limits of a whole pod are not enforced; set them per container"),
        "spec.runtimeClassName": (REFUSED, "the node has one runtime; select the node instead"),
        "spec.serviceAccount": (ELSEWHERE, "the hub, which requests its tokens"),
        "spec.serviceAccountName": (ELSEWHERE, "the hub, which requests its tokens"),
        "spec.setHostnameAsFQDN": (WARNED, "the name is the short one"),
        "spec.shareProcessNamespace": (REFUSED, "every container has a process namespace of its own"),
        "spec.subdomain": (WARNED, "there is no cluster DNS"),
        "spec.terminationGracePeriodSeconds": (HONOURED, "the image's stop signal first"),
        "spec.volumes[]": (
            CHECKED,
            "hostPath needs the node's allow_privileged; the rest is the agent's volumes'",
        ),
        _PSC + ".appArmorProfile": (CHECKED, _PROFILE),
        _PSC + ".fsGroup": (HONOURED, "a supplementary group; emptyDir volumes get it"),
        _PSC + ".fsGroupChangePolicy": (NO_EFFECT, "only emptyDir volumes change their group"),
        _PSC + ".runAsGroup": (HONOURED, ""),
        _PSC + ".runAsNonRoot": (HONOURED, "checked against the image's user"),
        _PSC + ".runAsUser": (HONOURED, ""),
        _PSC + ".seLinuxChangePolicy": (NO_EFFECT, "volumes are labelled for containers"),
        _PSC + ".seLinuxOptions": (REFUSED, "the engine chooses the label"),
        _PSC + ".seccompProfile": (CHECKED, _PROFILE),
        _PSC + ".supplementalGroups": (HONOURED, ""),
        _PSC + ".supplementalGroupsPolicy": (
            CHECKED,
            "Strict is refused: the engine adds the image's groups",
        ),
        _PSC + ".sysctls": (REFUSED, "in the host's network they would change the host; set them there"),
        _PSC + ".windowsOptions": (REFUSED, "this is not Windows"),
        _C + ".args": (HONOURED, ""),
        _C + ".command": (HONOURED, ""),
        _C + ".env": (CHECKED, _SECRETS),
        _C + ".envFrom": (CHECKED, _SECRETS),
        _C + ".image": (CHECKED, "required"),
        _C + ".imagePullPolicy": (HONOURED, ""),
        _C + ".name": (HONOURED, ""),
        _C + ".ports[]": (
            CHECKED,
            "in the host's network informational, and hostPort has to equal containerPort; else hostPort is published",
        ),
        _C + ".resources.claims": (REFUSED, "there is no dynamic resource allocation at the edge"),
        _C + ".resources.limits": (
            CHECKED,
            "cpu and memory by the engine's cgroups; others are warned about",
        ),
        _C + ".resources.requests": (HONOURED, "scheduling, and the cpu's share"),
        _C + ".stdin": (HONOURED, "standard input stays open, for whoever attaches"),
        _C + ".stdinOnce": (HONOURED, ""),
        _C + ".tty": (HONOURED, ""),
        _C + ".volumeDevices": (REFUSED, "there are no block volumes; use a hostPath of /dev"),
        _C + ".volumeMounts[].bindMountOptions": (REFUSED, "mount with readOnly instead"),
        _C + ".volumeMounts[].mountPath": (CHECKED, "a relative one is below the root; colons are refused"),
        _C + ".volumeMounts[].name": (HONOURED, ""),
        _C + ".volumeMounts[].readOnly": (HONOURED, ""),
        _C + ".volumeMounts[].recursiveReadOnly": (CHECKED, "Enabled is refused"),
        _C + ".workingDir": (HONOURED, ""),
        _SC + ".allowPrivilegeEscalation": (HONOURED, "false sets no_new_privs"),
        _SC + ".appArmorProfile": (CHECKED, _PROFILE),
        _SC + ".capabilities.add": (
            CHECKED,
            "beyond those of the baseline Pod Security Standard it needs the node's allow_privileged",
        ),
        _SC + ".capabilities.drop": (CHECKED, "names have to be known"),
        _SC + ".privileged": (CHECKED, _PRIVILEGED),
        _SC + ".procMount": (CHECKED, "Unmasked is refused"),
        _SC + ".readOnlyRootFilesystem": (HONOURED, ""),
        _SC + ".runAsGroup": (HONOURED, ""),
        _SC + ".runAsNonRoot": (HONOURED, "checked against the image's user"),
        _SC + ".runAsUser": (HONOURED, ""),
        _SC + ".seLinuxOptions": (REFUSED, "the engine chooses the label"),
        _SC + ".seccompProfile": (CHECKED, _PROFILE),
        _SC + ".windowsOptions": (REFUSED, "this is not Windows"),
    }
)

DEFAULTS: "dict[str, tuple[Any, ...]]" = process_fields.DEFAULTS

# What containers may have by the baseline Pod Security Standard of Kubernetes: nothing that reaches beyond them.
BASELINE_CAPABILITIES = (
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"
).split(" ")

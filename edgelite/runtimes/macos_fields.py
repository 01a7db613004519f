"""What the process runtime on macOS does with every field of a Pod: what process_fields says, but for these."""

from edgelite.runtimes import process_fields
from edgelite.runtimes.process_fields import CHECKED, HONOURED, REFUSED, WARNED

_C = "spec.containers[]"
_SC = "spec.containers[].securityContext"
_NONE = "there is no such thing on macOS"

FIELDS: "dict[str, tuple[str, str]]" = {
    **process_fields.FIELDS,
    _C: (HONOURED, "each is a process group in a session of its own"),
    _C + ".env": (HONOURED, "exactly as given, with PATH and HOME as launchd has them where they are not"),
    _C + ".resources.limits": (CHECKED, "warned about: macOS has no limits for a group of processes"),
    _C + ".resources.requests": (HONOURED, "scheduling"),
    _C + ".volumeMounts[].mountPath": (
        CHECKED,
        "relative to the working directory, where a link shows the volume; absolute ones are refused; none where the agent is root",
    ),
    _C + ".volumeMounts[].readOnly": (CHECKED, "not enforced, and warned about"),
    _C + ".workingDir": (HONOURED, "has to exist; a relative one is made. Default: a directory of its own"),
    _SC + ".allowPrivilegeEscalation": (WARNED, "not enforced on macOS"),
    _SC + ".capabilities.add": (REFUSED, "macOS has no capabilities"),
    _SC + ".capabilities.drop": (WARNED, "macOS has no capabilities; workloads run as an ordinary user"),
    _SC + ".readOnlyRootFilesystem": (CHECKED, "not enforced, and warned about"),
    _SC + ".seLinuxOptions": (REFUSED, _NONE),
    "spec.volumes[]": (
        CHECKED,
        "hostPath needs the node's allow_privileged; Secrets need allow_secret_files, for there is no tmpfs",
    ),
    "spec.os": (CHECKED, "linux and windows are refused"),
}
DEFAULTS = process_fields.DEFAULTS

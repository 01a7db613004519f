"""What the process runtime on Windows does with every field of a Pod: what process_fields says, but for these."""

from edgelite.runtimes import process_fields
from edgelite.runtimes.process_fields import CHECKED, HONOURED, NO_EFFECT, REFUSED, WARNED

_C = "spec.containers[]"
_SC = "spec.containers[].securityContext"
_PSC = "spec.securityContext"
_ACCOUNT = "workloads run as the agent's own account"
_NUMBERS = "Windows has no users and groups by number; " + _ACCOUNT
_NO_PROFILES = "there is no such thing on Windows"
_NAMES = "names that Windows forbids are refused by name"

FIELDS: "dict[str, tuple[str, str]]" = {
    **process_fields.FIELDS,
    _C: (HONOURED, "each is a process tree in a job object"),
    _C + ".command": (CHECKED, "required: the image is not used; batch files only through cmd.exe"),
    _C + ".env": (
        HONOURED,
        "whatever the case of names; with what Windows' programs expect, and HOME, TEMP where they are not",
    ),
    _C + ".name": (CHECKED, _NAMES + ": con, nul, com1, ..."),
    _C + ".resources.limits": (
        CHECKED,
        "memory by the job (an allocation above it fails, nothing is killed), cpu as its hard cap, where job objects have them; "
        "others are warned about",
    ),
    _C + ".resources.requests": (HONOURED, "scheduling"),
    _C + ".stdin": (REFUSED, "standard input is NUL"),
    _C + ".stdinOnce": (REFUSED, "standard input is NUL"),
    _C + ".volumeDevices": (REFUSED, "there are no device files"),
    _C + ".volumeMounts[].mountPath": (
        CHECKED,
        "relative to the working directory, where a junction shows the volume; absolute ones are refused; "
        + _NAMES,
    ),
    _C + ".volumeMounts[].readOnly": (CHECKED, "not enforced, and warned about"),
    _C + ".workingDir": (
        CHECKED,
        "has to exist; a relative one is made; %s. Default: a directory of its own" % _NAMES,
    ),
    _SC + ".allowPrivilegeEscalation": (NO_EFFECT, _ACCOUNT),
    _SC + ".appArmorProfile": (WARNED, _NO_PROFILES),
    _SC + ".capabilities.add": (REFUSED, "Windows has no capabilities"),
    _SC + ".capabilities.drop": (WARNED, "Windows has no capabilities; " + _ACCOUNT),
    _SC + ".privileged": (REFUSED, _ACCOUNT),
    _SC + ".procMount": (NO_EFFECT, "there is no /proc"),
    _SC + ".readOnlyRootFilesystem": (WARNED, "not enforced on Windows"),
    _SC + ".runAsGroup": (REFUSED, _NUMBERS),
    _SC + ".runAsNonRoot": (REFUSED, _ACCOUNT + ", which may be an administrator's"),
    _SC + ".runAsUser": (REFUSED, _NUMBERS),
    _SC + ".seLinuxOptions": (REFUSED, _NO_PROFILES),
    _SC + ".seccompProfile": (WARNED, _NO_PROFILES),
    _SC + ".windowsOptions": (REFUSED, _ACCOUNT),
    "spec.hostAliases[]": (REFUSED, "the host's hosts file is used; add the names there"),
    "spec.os": (CHECKED, "linux is refused"),
    _PSC + ".appArmorProfile": (WARNED, _NO_PROFILES),
    _PSC + ".fsGroup": (REFUSED, _NUMBERS),
    _PSC + ".runAsGroup": (REFUSED, _NUMBERS),
    _PSC + ".runAsNonRoot": (REFUSED, _ACCOUNT + ", which may be an administrator's"),
    _PSC + ".runAsUser": (REFUSED, _NUMBERS),
    _PSC + ".seLinuxOptions": (REFUSED, _NO_PROFILES),
    _PSC + ".seccompProfile": (WARNED, _NO_PROFILES),
    _PSC + ".supplementalGroups": (REFUSED, _NUMBERS),
    _PSC + ".windowsOptions": (REFUSED, _ACCOUNT),
    "spec.terminationGracePeriodSeconds": (HONOURED, "Ctrl-Break first, then the end of the job"),
    "spec.volumes[]": (
        CHECKED,
        "hostPath needs the node's allow_privileged; Secrets need allow_secret_files, for there is no tmpfs; files change one by "
        "one, not all at once; " + _NAMES,
    ),
}
DEFAULTS = process_fields.DEFAULTS

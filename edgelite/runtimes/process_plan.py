"""From a Launch to the specification that the launcher carries out, and the container's own directory."""

import os

from edgelite.runtimes.base import RuntimeFailure
from edgelite.runtimes.process_cgroups import Limits, quantity
from edgelite.runtimes.process_fields import capability_numbers
from edgelite.runtimes.process_spawn import MARK, PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.runtimes.base import Launch, Mount
    from edgelite.runtimes.process_review import Abilities, User


def limits(container: "dict[str, Any]", pids_max: int) -> Limits:
    """What resources ask of the cgroups. Raises ValueError for what is no quantity."""
    resources = container.get("resources") or {}
    bound = resources.get("limits") or {}
    asked = resources.get("requests") or {}
    cpu = quantity(bound.get("cpu") or 0)
    request = quantity(asked.get("cpu") or 0) or cpu
    return Limits(int(quantity(bound.get("memory") or 0)), cpu, request, pids_max)


def specification(
    launch: "Launch", mark: str, directory: str, user: "User", can: "Abilities", root_dir: str
) -> "dict[str, Any]":
    """Plain values for marshal; see process_launcher. Makes the working directory. Raises RuntimeFailure, OSError."""
    container = launch.container
    context = container.get("securityContext") or {}
    work = os.path.join(directory, "work")
    drops_user = can.uid == 0
    _make_work(work, user if drops_user else None)
    cover = _unsearchable(work, user) if drops_user and user.uid != 0 else ""
    read_only_root = bool(context.get("readOnlyRootFilesystem")) and can.namespaces != "none"
    namespace = _namespace(launch.mounts, bool(cover), read_only_root, can)
    mounts = _mounts(launch, work, namespace, can)
    if cover and namespace != "none":
        mounts.insert(0, {"name": "work", "source": work, "target": work, "read_only": False})
    if drops_user:
        _give_group(launch, user)
    env = dict([("PATH", PATH), ("HOME", work)] + launch.env)
    env[MARK] = mark
    return {
        "argv": launch.command + launch.args,
        "env": list(env.items()),
        "work": work,
        "cwd": _working_dir(container.get("workingDir") or "", work, user if drops_user else None),
        "user": (user.uid, user.gid, list(user.groups)) if drops_user else None,
        "caps_drop": capability_numbers((context.get("capabilities") or {}).get("drop") or [])
        if drops_user
        else [],
        "no_new_privs": context.get("allowPrivilegeEscalation") is False,
        "namespace": namespace,
        "mounts": mounts,
        "cover": cover if namespace != "none" else "",
        "read_only_root": read_only_root,
        "root_dir": root_dir,
        "cgroups": [],
    }


def _namespace(mounts: "list[Mount]", cover: bool, read_only_root: bool, can: "Abilities") -> str:
    """An ordinary agent avoids the user namespace where links do: in it all other users look like nobody."""
    if can.namespaces == "mount":
        needed = bool(mounts) or cover or read_only_root
    else:
        needed = any(m.target.startswith("/") for m in mounts) or read_only_root
    if not needed:
        return "none"
    if can.namespaces == "none":
        text = "mountPath %s: this agent may not make mount namespaces; use a path relative to the working directory"
        raise RuntimeFailure("CreateContainerConfigError", text % mounts[0].target)
    return can.namespaces


def _make_work(work: str, user: "User | None") -> None:
    os.makedirs(work, exist_ok=True)
    if user is not None:
        os.chown(work, user.uid, user.gid)
    os.chmod(work, 0o755)  # noqa: S103  (its parent is closed)


def inside(path: str, what: str) -> str:
    """A relative path without "." and "..". Raises RuntimeFailure."""
    parts = [p for p in path.split("/") if p not in ("", ".")]
    if ".." in parts or not parts:
        raise RuntimeFailure(
            "CreateContainerConfigError", "%s %s leaves the container's directory" % (what, path)
        )
    return "/".join(parts)


def _working_dir(path: str, work: str, user: "User | None") -> str:
    if not path:
        return work
    if path.startswith("/"):
        return path
    full = os.path.join(work, inside(path, "workingDir"))
    os.makedirs(full, exist_ok=True)
    if user is not None:
        os.chown(full, user.uid, user.gid)
    return full


def _mounts(launch: "Launch", work: str, namespace: str, can: "Abilities") -> "list[dict[str, Any]]":
    found = []
    for m in launch.mounts:
        if m.target.startswith("/"):
            target = os.path.normpath("/" + m.target.lstrip("/"))
        else:
            target = os.path.join(work, inside(m.target, "mountPath"))
            _mount_point(m, target, namespace)
        if namespace != "none":
            found.append({"name": m.name, "source": m.source, "target": target, "read_only": m.read_only})
    if launch.mounts and namespace == "none" and can.uid == 0:
        text = "volumes need mount namespaces when the agent runs as root, and this machine refuses them"
        raise RuntimeFailure("CreateContainerConfigError", text)
    return found


def _mount_point(m: "Mount", target: str, namespace: str) -> None:
    """In the container's own directory: a place to mount on, or a link where nothing can be mounted."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if namespace == "none":
        if not os.path.lexists(target):
            os.symlink(m.source, target)
    elif os.path.isdir(m.source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _unsearchable(path: str, user: "User") -> str:
    """The topmost directory above `path` that the user may not enter, "" when all may be entered."""
    at = "/"
    for part in path.strip("/").split("/")[:-1]:
        at = os.path.join(at, part)
        status = os.stat(at)
        if status.st_uid == user.uid:
            allowed = status.st_mode & 0o100
        elif status.st_gid == user.gid or status.st_gid in user.groups:
            allowed = status.st_mode & 0o010
        else:
            allowed = status.st_mode & 0o001
        if not allowed:
            return at
    return ""


def _give_group(launch: "Launch", user: "User") -> None:
    """fsGroup: emptyDir volumes belong to the group, and what is made in them inherits it."""
    group = ((launch.pod["spec"].get("securityContext")) or {}).get("fsGroup")
    if group is None:
        return
    empty = [v["name"] for v in launch.pod["spec"].get("volumes") or [] if v.get("emptyDir") is not None]
    for m in launch.mounts:
        if m.name in empty and os.path.isdir(m.source):
            os.chown(m.source, -1, group)
            os.chmod(m.source, (os.stat(m.source).st_mode & 0o7777) | 0o2070)  # noqa: S103  (what fsGroup asks for)

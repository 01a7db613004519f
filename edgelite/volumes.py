"""Volumes of pods on the host: created before a container starts, updated in place, removed with the pod.

Layout: `<root>/pods/<uid>/volumes/<name>`; what holds Secrets, or asks for memory, lies below a 0700 folder on a tmpfs
instead, `<tmpfs>/edgelite-<user>-<hash of root>/<uid>/<name>`. A subPath of a configMap-like volume is a copy of its own, so
it is not updated, as in Kubernetes. Nothing here follows a link out of a volume.
"""

import hashlib
import os
import stat

from edgelite import atomicfiles
from edgelite.dates import rfc3339
from edgelite.payload import is_payload, is_secret, payload
from edgelite.podenv import BadReference, Environment, Library, NodeFacts, expand
from edgelite.runtimes.base import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.loop import Wait

REMOVALS_PER_TURN = 256
EMPTY_DIR_MODE = 0o777  # as Kubernetes: whatever user the containers run as


class VolumeError(Exception):
    """A volume could not be prepared. `message` says which and why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def find_tmpfs(candidates: "list[str] | None" = None, mounts: str = "/proc/self/mounts") -> "str | None":
    """A writable folder on a tmpfs: /dev/shm, else $XDG_RUNTIME_DIR. None when there is none."""
    if candidates is None:
        candidates = ["/dev/shm", os.environ.get("XDG_RUNTIME_DIR", "")]  # noqa: S108  (a check for tmpfs follows)
    try:
        with open(mounts) as f:
            points = [line.split()[:3] for line in f]
    except OSError:
        return None
    for path in candidates:
        if not path or not os.path.isdir(path) or not os.access(path, os.W_OK | os.X_OK):
            continue
        real = os.path.realpath(path)
        above = [p for p in points if real == p[1] or real.startswith(p[1].rstrip("/") + "/")]
        if above and max(above, key=lambda p: len(p[1]))[2] in ("tmpfs", "ramfs"):
            return real
    return None


class Volumes:
    """Prepares, updates and removes. Calls block only for small files; removal is a generator."""

    def __init__(self, root: str, node: NodeFacts, library: Library, tmpfs: "str | None") -> None:
        self._pods = os.path.join(os.path.abspath(root), "pods")
        self._node = node
        self._library = library
        self._memory: "str | None" = None
        if tmpfs is not None:
            mark = hashlib.sha256(os.path.abspath(root).encode()).hexdigest()[:12]
            self._memory = os.path.join(tmpfs, "edgelite-%d-%s" % (os.geteuid(), mark))

    # -- what can be honoured

    def review(self, pod: "dict[str, Any]") -> "list[str]":
        """Refusals that depend on this node."""
        refusals = []
        for n, volume in enumerate((pod.get("spec") or {}).get("volumes") or []):
            where = "spec.volumes[%d] (%s)" % (n, volume.get("name"))
            if is_secret(volume) and self._memory is None and not self._node.allow_secret_files:
                refusals.append(
                    "%s: this node has no tmpfs for Secrets; allow secret files in the agent's configuration"
                    "%s" % (where, "" if os.name == "nt" else ", or mount a tmpfs at /dev/shm")
                )
            if (volume.get("emptyDir") or {}).get("medium") == "Memory" and self._memory is None:
                refusals.append("%s.emptyDir.medium: this node has no tmpfs" % where)
        return refusals

    # -- places

    def pod_dir(self, uid: str) -> str:
        """The pod's folder, made if it is not there. Raises OSError."""
        path = os.path.join(self._pods, uid)
        os.makedirs(self._pods, mode=0o700, exist_ok=True)
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def _place(self, uid: str, volume: "dict[str, Any]") -> str:
        in_memory = is_secret(volume) or (volume.get("emptyDir") or {}).get("medium") == "Memory"
        if in_memory and self._memory is not None:
            base = os.path.join(self._memory, uid)
            if not os.path.isdir(base):
                self._make_memory(base)
        else:
            base = os.path.join(self.pod_dir(uid), "volumes")
        os.makedirs(base, exist_ok=True)
        return os.path.join(base, volume["name"])

    def _make_memory(self, base: str) -> None:
        """tmpfs folders are shared with other users: take only one that is ours."""
        assert self._memory is not None
        try:
            os.mkdir(self._memory, 0o700)
        except FileExistsError:
            info = os.lstat(self._memory)
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
                raise VolumeError("%s belongs to somebody else: remove it" % self._memory)
            os.chmod(self._memory, 0o700)
        os.makedirs(base, mode=0o755, exist_ok=True)

    # -- preparing

    def prepare(self, pod: "dict[str, Any]", wall: float) -> None:
        """Every volume of the pod is there afterwards. Raises MissingReference, BadReference or VolumeError."""
        for volume in pod["spec"].get("volumes") or []:
            try:
                self._prepare(pod, volume, wall)
            except OSError as error:
                raise VolumeError("volume %s: %s" % (volume["name"], error))

    def refresh(self, pod: "dict[str, Any]", wall: float) -> bool:
        """Brings configMap-like volumes that exist already up to date; True when a file changed. Raises as `prepare`."""
        changed = False
        for volume in pod["spec"].get("volumes") or []:
            if is_payload(volume) and os.path.isdir(self._place(pod["uid"], volume)):
                try:
                    changed = self._write(pod, volume, wall) or changed
                except OSError as error:
                    raise VolumeError("volume %s: %s" % (volume["name"], error))
        return changed

    def _prepare(self, pod: "dict[str, Any]", volume: "dict[str, Any]", wall: float) -> None:
        if is_payload(volume):
            self._write(pod, volume, wall)
        elif volume.get("hostPath") is not None:
            _host_path(volume)
        else:  # emptyDir, which is also what an empty source means
            self._empty_dir(pod, volume)

    def _write(self, pod: "dict[str, Any]", volume: "dict[str, Any]", wall: float) -> bool:
        files = payload(pod, volume, self._library, self._node)
        stamp = rfc3339(wall).replace("-", "_").replace(":", "_").replace("T", "_").rstrip("Z")
        place = self._place(pod["uid"], volume)
        if os.name == "nt":
            from edgelite import winfiles

            return winfiles.write(place, files, stamp, None)
        return atomicfiles.write(place, files, stamp, _fs_group(pod))

    def _empty_dir(self, pod: "dict[str, Any]", volume: "dict[str, Any]") -> None:
        path = self._place(pod["uid"], volume)
        if os.path.isdir(path) and not os.path.islink(path):
            return
        os.mkdir(path)
        group = _fs_group(pod)
        if group is not None:
            os.chown(path, -1, group)
        os.chmod(path, EMPTY_DIR_MODE | (stat.S_ISGID if group is not None else 0))

    # -- mounting

    def mounts(self, pod: "dict[str, Any]", container: "dict[str, Any]", env: Environment) -> "list[Mount]":
        """The container's mounts; volumes are prepared already. Raises BadReference or VolumeError."""
        volumes = {v["name"]: v for v in pod["spec"].get("volumes") or []}
        found = []
        for n, wanted in enumerate(container.get("volumeMounts") or []):
            volume = volumes.get(wanted["name"])
            if volume is None:
                raise BadReference("volumeMounts[%d]: there is no volume %s" % (n, wanted["name"]))
            try:
                source = self._source(pod, container, n, volume, _sub_path(wanted, env))
            except OSError as error:
                raise VolumeError("volume %s: %s" % (volume["name"], error))
            read_only = bool(wanted.get("readOnly")) or is_payload(volume)
            found.append(Mount(wanted["name"], source, wanted["mountPath"], read_only))
        return found

    def _source(
        self,
        pod: "dict[str, Any]",
        container: "dict[str, Any]",
        n: int,
        volume: "dict[str, Any]",
        sub_path: str,
    ) -> str:
        host = volume.get("hostPath")
        base = host["path"] if host is not None else self._place(pod["uid"], volume)
        if not sub_path:
            return str(base)
        inner = _inside(base, sub_path, volume["name"])
        if not is_payload(volume):
            if not os.path.lexists(inner):
                os.makedirs(inner, exist_ok=True)
                if host is None:
                    os.chmod(inner, EMPTY_DIR_MODE)
            return inner
        if not os.path.exists(inner):
            raise VolumeError("volume %s has no %s" % (volume["name"], sub_path))
        copies = os.path.join(os.path.dirname(base), "..subpaths")
        os.makedirs(copies, exist_ok=True)
        copy = os.path.join(copies, "%s.%d" % (container["name"], n))
        atomicfiles.remove_tree(copy)
        _copy(inner, copy)
        return copy

    # -- removing

    def remove(self, uid: str) -> "Generator[Wait, bool, None]":
        """Generator. Deletes everything of the pod; what is gone already is fine. Raises OSError."""
        from edgelite.loop import Wait

        done = 0
        for path in self._everything(uid):
            for _ in atomicfiles.removing(path):
                done += 1
                if done % REMOVALS_PER_TURN == 0:
                    yield Wait(-1, 0, 0.0)
        if self._memory is not None and os.path.isdir(self._memory) and not os.listdir(self._memory):
            os.rmdir(self._memory)

    def _everything(self, uid: str) -> "list[str]":
        paths = [os.path.join(self._pods, uid)]
        if self._memory is not None:
            paths.append(os.path.join(self._memory, uid))
        return paths

    def leftovers(self) -> "set[str]":
        """UIDs that have folders here."""
        found: "set[str]" = set()
        for folder in (self._pods, self._memory):
            if folder is not None and os.path.isdir(folder):
                found.update(os.listdir(folder))
        return found


def _fs_group(pod: "dict[str, Any]") -> "int | None":
    """fsGroup can be given to files by root only; elsewhere everything runs as one user anyway."""
    group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
    return None if group is None or not _is_root() else int(group)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _sub_path(wanted: "dict[str, Any]", env: Environment) -> str:
    text = wanted.get("subPathExpr")
    if not text:
        return wanted.get("subPath") or ""

    def known(name: str) -> str:
        value = env.get(name)
        if value is None:
            raise BadReference("subPathExpr %s: there is no variable %s" % (text, name))
        return value

    return expand(text, known)


def _inside(base: str, sub_path: str, volume: str) -> str:
    """The real path of base/sub_path, which may not leave `base`."""
    if sub_path.startswith("/") or ".." in sub_path.split("/"):
        raise BadReference("volume %s: subPath %s must be relative and without '..'" % (volume, sub_path))
    root = os.path.realpath(base)
    inner = os.path.realpath(os.path.join(root, sub_path))
    if inner != root and not inner.startswith(root + os.sep):
        raise VolumeError("volume %s: subPath %s leads out of the volume" % (volume, sub_path))
    return inner


def _copy(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.mkdir(target)
        for name in os.listdir(source):
            _copy(os.path.join(source, name), os.path.join(target, name))
    else:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(source, "rb") as old, os.fdopen(fd, "wb") as new:
            new.write(old.read())
    info = os.stat(source)
    if _is_root():
        os.chown(target, info.st_uid, info.st_gid)
    os.chmod(target, stat.S_IMODE(info.st_mode))


def _host_path(volume: "dict[str, Any]") -> None:
    """Checks, or creates where its type says so. Raises VolumeError or OSError."""
    path, kind = volume["hostPath"]["path"], volume["hostPath"].get("type") or ""
    if kind == "DirectoryOrCreate" and not os.path.exists(path):
        os.makedirs(path, mode=0o755)
    if kind == "FileOrCreate" and not os.path.exists(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    checks = {
        "Directory": (stat.S_ISDIR, "a directory"),
        "DirectoryOrCreate": (stat.S_ISDIR, "a directory"),
        "File": (stat.S_ISREG, "a file"),
        "FileOrCreate": (stat.S_ISREG, "a file"),
        "Socket": (stat.S_ISSOCK, "a socket file"),
        "CharDevice": (stat.S_ISCHR, "a character device"),
        "BlockDevice": (stat.S_ISBLK, "a block device"),
    }
    if not kind:
        return
    if kind not in checks:
        raise VolumeError("volume %s: hostPath type %s is not known" % (volume["name"], kind))
    test, what = checks[kind]
    if not os.path.exists(path) or not test(os.stat(path).st_mode):
        raise VolumeError(
            "volume %s: hostPath type check failed: %s is not %s" % (volume["name"], path, what)
        )

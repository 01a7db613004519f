"""A folder of files that changes all at once, as Kubernetes' AtomicWriter does it.

The files lie in a folder `..<time>.<n>`; the symlink `..data` names it; every visible name is a symlink through
`..data`. An update writes a new folder and swaps `..data` by one rename, so a reader sees the old files or the new, never
a mixture. Unchanged contents change nothing on disk.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from edgelite.payload import Payload

DATA = "..data"
NEW = "..data_tmp"


def write(root: str, files: "Payload", stamp: str, group: "int | None") -> bool:
    """Makes the folder `root` show exactly `files`; True when something changed. `stamp`: text that names the new version;
    `group`: owner group of all of it (fsGroup), who may then read everything. Raises OSError, the old files being untouched."""
    os.makedirs(root, exist_ok=True)
    current = _target(root)
    if current is not None and _same(os.path.join(root, current), files, group):
        _link(root, files)
        return False
    fresh = _unused(root, ".." + stamp)
    try:
        _fill(os.path.join(root, fresh), files, group)
        temporary = os.path.join(root, NEW)
        if os.path.islink(temporary):
            os.unlink(temporary)
        os.symlink(fresh, temporary)
        os.replace(temporary, os.path.join(root, DATA))
    except OSError:
        remove_tree(os.path.join(root, fresh))
        raise
    _own(root, 0o755, group)
    _link(root, files)
    _sweep(root, files, fresh)
    return True


def remove_tree(path: str) -> None:
    """Deletes a file or folder without following symlinks; what is absent already is fine."""
    for _ in removing(path):
        pass


def removing(path: str) -> "Generator[None, None, None]":
    """`remove_tree` in small steps, for trees of unknown size."""
    try:
        os.unlink(path)
        return
    except (FileNotFoundError, NotADirectoryError):
        return
    except (IsADirectoryError, PermissionError):
        if os.path.islink(path) or not os.path.isdir(path):
            if os.name != "nt":
                raise
            os.chmod(path, 0o600)  # read-only files cannot be removed there
            os.unlink(path)
            return
    try:
        names = os.listdir(path)
    except PermissionError:  # a folder that its owner may not read
        os.chmod(path, 0o700)
        names = os.listdir(path)
    for name in names:
        yield
        yield from removing(os.path.join(path, name))
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return


def _target(root: str) -> "str | None":
    try:
        return os.readlink(os.path.join(root, DATA))
    except OSError:
        return None


def _same(folder: str, files: "Payload", group: "int | None") -> bool:
    found = 0
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            wanted = files.get(os.path.relpath(path, folder))
            if wanted is None:
                return False
            found += 1
            info = os.stat(path)
            if info.st_size != len(wanted[0]) or info.st_mode & 0o777 != _file_mode(wanted[1], group):
                return False
            if group is not None and info.st_gid != group:
                return False
            with open(path, "rb") as f:
                if f.read() != wanted[0]:
                    return False
    return found == len(files) and os.path.isdir(folder)


def _unused(root: str, name: str) -> str:
    n = 0
    while os.path.lexists(os.path.join(root, "%s.%d" % (name, n))):
        n += 1
    return "%s.%d" % (name, n)


def _file_mode(mode: int, group: "int | None") -> int:
    return mode | 0o440 if group is not None else mode


def _own(path: str, mode: int, group: "int | None") -> None:
    if group is not None:
        os.chown(path, -1, group)
    os.chmod(path, mode)


def _fill(folder: str, files: "Payload", group: "int | None") -> None:
    os.mkdir(folder)
    _own(folder, 0o755, group)
    made = set()
    for path, (data, mode) in files.items():
        parent = ""
        for part in path.split("/")[:-1]:
            parent = os.path.join(parent, part)
            if parent not in made:
                made.add(parent)
                os.mkdir(os.path.join(folder, parent))
                _own(os.path.join(folder, parent), 0o755, group)
        target = os.path.join(folder, path)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
        _own(target, _file_mode(mode, group), group)


def _link(root: str, files: "Payload") -> None:
    """The visible names. A link can dangle for a moment (through an older ..data), but it never shows half a file."""
    for name in {path.split("/")[0] for path in files}:
        link = os.path.join(root, name)
        target = os.path.join(DATA, name)
        if os.path.islink(link) and os.readlink(link) == target:
            continue
        remove_tree(link)
        os.symlink(target, link)


def _sweep(root: str, files: "Payload", current: str) -> None:
    keep = {path.split("/")[0] for path in files} | {DATA, current}
    for name in os.listdir(root):
        if name not in keep:
            remove_tree(os.path.join(root, name))

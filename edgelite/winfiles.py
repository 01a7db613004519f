"""A folder of files on Windows, where links need a privilege: `atomicfiles.write` without them.

Each file changes at once, by one rename; the folder as a whole does not. A reader that has a file open without sharing its
deletion keeps it from being replaced: that is tried again for a moment (REPLACE_TRIES), and then said, with the file's name;
whoever called tries again later, and what could be replaced stays.
"""

import os
import time

from edgelite.atomicfiles import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from edgelite.payload import Payload

FRESH = "..new"
REPLACE_TRIES = 5
REPLACE_PAUSE_S = 0.01


def write(root: str, files: "Payload", stamp: str, group: "int | None") -> bool:
    """As `atomicfiles.write`; stamp and group mean nothing here. Raises OSError, also for names that Windows has none of."""
    from edgelite.runtimes.windows_names import colliding, path_fault

    twins = colliding(list(files))
    if twins is not None:
        raise OSError(
            0, "%s and %s are one file to Windows: choose names that differ by more than case" % twins
        )
    for path in files:
        fault = path_fault(path)
        if fault:
            raise OSError(0, fault)
    os.makedirs(root, exist_ok=True)
    changed = False
    for path, (data, _) in files.items():
        target = os.path.join(root, *path.split("/"))
        if not _same(target, data):
            _put(root, target, data)
            changed = True
    return _sweep(root, {os.path.normcase(path.replace("/", os.sep)) for path in files}, "") or changed


def _same(path: str, data: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(data) + 1) == data
    except OSError:
        return False


def _put(root: str, target: str, data: bytes) -> None:
    parent = os.path.dirname(target)
    if os.path.isfile(parent):
        os.unlink(parent)
    if os.path.isdir(target):
        remove_tree(target)
    os.makedirs(parent, exist_ok=True)
    fresh = os.path.join(root, FRESH)
    with open(fresh, "wb") as file:
        file.write(data)
    replace(fresh, target)


def replace(source: str, target: str) -> None:
    """os.replace that waits a moment for who has `target` open. Raises OSError."""
    for left in range(REPLACE_TRIES - 1, -1, -1):
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if not left:
                text = "%s is open in a program that does not share it, so it keeps its old content for now"
                raise OSError(error.errno, text % os.path.basename(target)) from error
            time.sleep(REPLACE_PAUSE_S)


def _sweep(folder: str, keep: "set[str]", inside: str) -> bool:
    """Removes what is not to be there; whether there was any."""
    swept = False
    for name in os.listdir(folder):
        path, known = os.path.join(folder, name), os.path.normcase(os.path.join(inside, name))
        if known in keep:
            continue
        if os.path.isdir(path) and any(one.startswith(known + os.sep) for one in keep):
            swept = _sweep(path, keep, known) or swept
        else:
            remove_tree(path)
            swept = True
    return swept

"""Workloads that are Python modules out of ConfigMaps: loaded, unloaded. [pure]

A ConfigMap's key ends in `.py` (source, in `data`) or `.mpy` (compiled by mpy-cross, in `binaryData`). Source is compiled into a
namespace of its own and touches no `sys.modules`. Compiled code can only be imported, so it is written to `directory`, imported
under a name made of its hash, and taken out again.

What runs so is firmware: it may do whatever the agent may. Whoever may write ConfigMaps of a namespace whose pods run here may
reprogram the board, which is why an agent takes modules only where its firmware says so. Runs on MicroPython.
"""

import gc
import sys

from edgelite.desired import hexhash

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ENTRY = "main"
SOURCE, COMPILED = ".py", ".mpy"


class LoadError(Exception):
    """The code cannot be loaded; the message says why."""


class Loaded:
    """A loaded module. `close` lets go of it."""

    def __init__(self, namespace: "dict[str, Any]", name: str = "") -> None:
        self._namespace = namespace
        self._name = name

    def function(self, name: str) -> "Any":
        """Raises LoadError."""
        found = self._namespace.get(name)
        if not callable(found):
            raise LoadError("the module has no function %s(task)" % name)
        return found

    def close(self) -> None:
        self._namespace.clear()
        if self._name:
            sys.modules.pop(self._name, None)
        if sys.implementation.name == "micropython":
            gc.collect()  # the next version needs the room at once


def mark_of(code: bytes) -> str:
    """The name of a version of code: the first 16 hex digits of its SHA-256."""
    return hexhash(code)[:16]


def load(key: str, code: bytes, files: "Any" = None, directory: str = "") -> Loaded:
    """Loads code by the name of its ConfigMap key. files (see `edgelite.port.Files`) and directory, which is on `sys.path`, are
    for compiled code. Raises LoadError; what the module itself raises while it is loaded is its cause."""
    if key.endswith(SOURCE):
        return _load_source(key, code)
    if key.endswith(COMPILED):
        return _load_compiled(code, files, directory)
    raise LoadError("%s is neither %s nor %s" % (key, SOURCE, COMPILED))


def _load_source(key: str, code: bytes) -> Loaded:
    namespace: "dict[str, Any]" = {"__name__": key[: -len(SOURCE)]}
    try:
        # What it may do is decided by who may write the ConfigMap: see the module.
        exec(compile(code.decode(), key, "exec"), namespace)  # noqa: S102
    except Exception as error:
        raise LoadError("%s: %r" % (key, error)) from error
    return Loaded(namespace)


def _load_compiled(code: bytes, files: "Any", directory: str) -> Loaded:
    if sys.implementation.name != "micropython":
        raise LoadError("this Python runs no %s; use %s" % (COMPILED, SOURCE))
    if files is None:
        raise LoadError("this board keeps no files, which %s needs; use %s" % (COMPILED, SOURCE))
    name = "m" + mark_of(code)
    path = "%s/%s%s" % (directory, name, COMPILED)
    try:
        file = files.create(path)
        try:
            file.write(code)
        finally:
            file.close()
        try:
            module = __import__(name)
        finally:
            files.remove(path)
    except Exception as error:
        raise LoadError("%s: %r" % (name, error)) from error
    namespace = {found: getattr(module, found) for found in dir(module)}
    return Loaded(namespace, name)

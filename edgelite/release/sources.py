"""The agent's sources as they are packed: without comments and docstrings, every line where it was, so that a traceback
from a device names the line of the repository."""

import ast
import io
import os
import re
import subprocess
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
OLDEST = (3, 9)
"""The oldest CPython that the agent runs on."""

BOARDS_ONLY = frozenset(
    "edgelite/%s.py" % name
    for name in ("board boardclock boardpods boardrun boardwork callables firmware modules watchdog".split())
)
"""What no other agent imports; `boards` packs it."""
OTHER_SYSTEMS = (
    "edgelite/kernel32", "edgelite/mac", "edgelite/win", "edgelite/runtimes/macos", "edgelite/runtimes/supervised",
    "edgelite/runtimes/windows",
)  # fmt: skip
"""What no agent on Linux imports."""


class BuildError(Exception):
    """A package cannot be built; the message says why and what to do."""


def version() -> str:
    """`edgelite.__version__`, read without importing it."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "edgelite/__init__.py").read_text(), re.MULTILINE)
    assert found
    return found[1]


def epoch() -> int:
    """Unix seconds for everything that carries a time. Raises BuildError."""
    said = os.environ.get("SOURCE_DATE_EPOCH")
    if said is not None:
        if not said.isdigit():
            raise BuildError(f"SOURCE_DATE_EPOCH is {said!r}; it has to be unix seconds")
        return int(said)
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(git, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip().isdigit():
        raise BuildError("this is no git checkout: set SOURCE_DATE_EPOCH to the unix seconds of the release")
    return int(done.stdout)


def agent() -> dict[str, str]:
    """{path from the repository's root: source} of the agent, sorted; without what builds its packages."""
    paths = sorted((ROOT / "edgelite").rglob("*.py"))
    found = {path.relative_to(ROOT).as_posix(): path for path in paths}
    return {
        name: path.read_text() for name, path in found.items() if not name.startswith("edgelite/release/")
    }


def packed() -> dict[str, str]:
    """The same, without what is for boards alone, as it is packed. Raises BuildError for what the oldest CPython cannot read."""
    files = {}
    for path, source in agent().items():
        if path in BOARDS_ONLY:
            continue
        try:
            ast.parse(source, path, feature_version=OLDEST)
            files[path] = stripped(source)
        except SyntaxError as error:
            raise BuildError(f"{path} is not for Python {OLDEST[0]}.{OLDEST[1]}: {error}") from error
    return files


def stripped(source: str) -> str:
    """Without comments, docstrings, the texts below attributes and what is for type checkers alone; as many lines as before."""
    lines = _untyped(source).splitlines()
    source = "\n".join(lines) + "\n"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            _blank_texts(body, lines)
    return "\n".join(lines).rstrip("\n") + "\n"


def _untyped(source: str) -> str:
    """Without annotations of functions, and without what stands under TYPE_CHECKING. Columns are bytes, as ast counts them."""
    lines = [line.encode() for line in source.splitlines()]
    spans: list[tuple[int, int, int, int]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            given = node.args
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            for one in [*named, *[extra for extra in (given.vararg, given.kwarg) if extra]]:
                if one.annotation is not None:
                    begin = one.col_offset + len(one.arg.encode())
                    spans.append((one.lineno, begin, *_end(one.annotation)))
            if node.returns is not None:
                # From the parenthesis before the arrow, which may stand on the line of the last argument.
                row, column = node.returns.lineno, node.returns.col_offset
                arrow = lines[row - 1].rindex(b"->", 0, column)
                spans.append((row, arrow, *_end(node.returns)))
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse:
            spans.append((node.lineno, node.col_offset, *_end(node.body[-1])))
    for row, column, end_row, end_column in sorted(spans, reverse=True):
        tail = lines[end_row - 1][end_column:]
        for between in range(row, end_row):
            lines[between] = b""
        lines[row - 1] = lines[row - 1][:column] + tail
    return b"\n".join(lines).decode() + "\n"


def _end(node: ast.expr | ast.stmt) -> tuple[int, int]:
    assert node.end_lineno is not None and node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset


def _blank_texts(body: list[ast.stmt], lines: list[str]) -> None:
    """Empties the lines of statements that are nothing but a text."""
    for one in body:
        if not isinstance(one, ast.Expr) or not isinstance(one.value, ast.Constant):
            continue
        if isinstance(one.value.value, str):
            assert one.end_lineno
            for row in range(one.lineno, one.end_lineno + 1):
                lines[row - 1] = ""
            if len(body) == 1:
                lines[one.lineno - 1] = " " * one.col_offset + "pass"

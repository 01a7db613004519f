"""A backup: one file with a fleet's data and its authority.

zstd over lines of JSON: a header (format, identity, revision, time, authority), one line `[key, base64 value]` for
each key in ascending order, and an end with count and SHA-256, by which a file that was cut off or changed is refused
before anything of it is used. Secrets in it are sealed as they are in the store. Mode 0600: unless the backup is sealed, it
holds the keys to them, the authority's and those of tokens in clear.
"""

import base64
import io
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import msgspec
import zstandard

from hub.access.keymoves import TokenKeys
from hub.datakeys import DataKeys
from hub.transfer import Digest, Item, Progress, Source, TransferError
from shards.kv import VALUE_BYTES_MAX, StoreIdentity

FORMAT = 2
"""2: values may be sealed, under the header's data keys."""
LINE_BYTES_MAX = 2 * VALUE_BYTES_MAX + 65536


class Authority(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fleet's authority: sealed (as in a shared store), or certificate and key as PEM; `clear`: a set of them in
    rotation, unsealed."""

    sealed: str = ""
    certificate: str = ""
    key: str = ""
    clear: str = ""


class Header(msgspec.Struct, frozen=True):
    """First line of a backup. `time`: unix seconds."""

    cloudhub_backup: int
    uuid: str
    generation: int
    format: int
    slots: int
    label: str
    time: float
    trust_domain: str
    authority: Authority
    data_keys: DataKeys = DataKeys()
    token_keys: TokenKeys = TokenKeys()


class _End(msgspec.Struct, frozen=True):
    count: int
    sha256: str


class BackupError(TransferError):
    """The file is no whole backup, or there is one already."""


async def write(path: str, source: Source, header: Header, progress: Progress = lambda n: None) -> int:
    """Writes `source` to a new file (0600), whole or not at all; returns the number of keys. Raises BackupError where the
    file exists, OSError, and what the store raises."""
    if os.path.exists(path):  # noqa: ASYNC240 - a command of its own, nothing else waits
        raise BackupError(f"{path} exists and is left alone; choose another name")
    part = path + ".part"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as raw:  # noqa: ASYNC230 - as above
            with zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False) as out:
                out.write(msgspec.json.encode(header) + b"\n")
                state = Digest()
                async for key, value in source.items():
                    out.write(msgspec.json.encode((key, base64.b64encode(value).decode())) + b"\n")
                    state.add(key, value)
                    if state.count % 1000 == 0:
                        progress(state.count)
                out.write(msgspec.json.encode(_End(state.count, state.hexdigest())) + b"\n")
            raw.flush()
            os.fsync(raw.fileno())
        os.link(part, path)
    except FileExistsError as exists:
        raise BackupError(f"{path} exists and is left alone; choose another name") from exists
    finally:
        os.unlink(part)
    progress(state.count)
    return state.count


@dataclass(frozen=True, slots=True)
class BackupSource:
    """A backup as a source; read whole and checked by `open` first."""

    path: str
    header: Header
    count: int
    sha256: str

    @classmethod
    def open(cls, path: str) -> "BackupSource":
        """Raises BackupError (no backup, damaged, newer) and OSError."""
        lines = _lines(path)
        try:
            header = msgspec.json.decode(next(lines, b""), type=Header)
        except msgspec.MsgspecError as wrong:
            raise BackupError(f"{path} is no backup: {wrong}") from wrong
        if header.cloudhub_backup > FORMAT:
            raise BackupError(
                f"{path} has format {header.cloudhub_backup}, this program knows {FORMAT}: use a newer one"
            )
        state = Digest()
        for item in _items(path, lines):
            if isinstance(item, _End):
                if (item.count, item.sha256) != (state.count, state.hexdigest()):
                    raise BackupError(f"{path} is damaged: its content is not what was written")
                return cls(path, header, item.count, item.sha256)
            state.add(*item)
        raise BackupError(f"{path} is cut off after {state.count} keys; take the backup again")

    @property
    def identity(self) -> StoreIdentity:
        return StoreIdentity(self.header.uuid, self.header.generation, self.header.format, self.header.slots)

    @property
    def label(self) -> str:
        return f"backup {self.sha256[:16]} ({self.header.label})"

    async def items(self, after: str = "") -> AsyncIterator[Item]:
        lines = _lines(self.path)
        next(lines)
        for item in _items(self.path, lines):
            if not isinstance(item, _End) and item[0] > after:
                yield item


def _lines(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as plain:
            buffered = io.BufferedReader(plain, 1 << 20)
            while line := buffered.readline(LINE_BYTES_MAX):
                yield line
    except zstandard.ZstdError as wrong:
        raise BackupError(f"{path} is no backup, or damaged: {wrong}") from wrong


def _items(path: str, lines: Iterator[bytes]) -> Iterator[Item | _End]:
    for line in lines:
        try:
            if line.startswith(b"{"):
                yield msgspec.json.decode(line, type=_End)
                return
            key, value = msgspec.json.decode(line, type=tuple[str, str])
            yield key, base64.b64decode(value, validate=True)
        except (msgspec.MsgspecError, ValueError) as wrong:
            raise BackupError(f"{path} is damaged: {wrong}") from wrong

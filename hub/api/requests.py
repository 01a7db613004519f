"""What a request asks for: its path, query and body, checked and bounded."""

import asyncio
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web

from hub import errors
from hub.api import decode, protobuf
from hub.api.kinds import Kind, kinds

BODY_BYTES_MAX: Final = 3 * 1024 * 1024
"""As in Kubernetes: what an etcd request may hold, twice."""
_THREAD_BYTES_MIN: Final = 64 * 1024
_SLOW_BYTES_MIN: Final = 4 * 1024
"""YAML and protobuf take some ten times as long per byte as JSON."""
_SEGMENT_BYTES_MAX: Final = 512
_TRUE: Final = ("1", "t", "T", "true", "TRUE", "True")
_FALSE: Final = ("0", "f", "F", "false", "FALSE", "False", "")


@dataclass(slots=True)
class KeptBody:
    """A request's body, kept for the audit log."""

    data: bytes = b""
    content_type: str = ""


KEEP_BODY: Final = web.RequestKey("keep_body", KeptBody)
"""Where a request has what is to hold its body; only where the audit log wants it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A resource path. `namespace` and `name` are "" where the path has none."""

    kind: Kind
    namespace: str
    name: str
    subresource: str


def parse_target(raw_path: str) -> Target | None:
    """The resource that a path below /api or /apis names; None for paths that are no resource. Raises NotFound for
    resources that are not served, BadRequest for names that cannot be one."""
    segments = [_segment(s) for s in raw_path.strip("/").split("/")]
    if "" in segments:
        raise errors.NotFound.no_such_path()
    if segments[0] == "api":
        segments.insert(1, "")
    if segments[0] not in ("api", "apis") or len(segments) < 4:
        return None
    group, version, *rest = segments[1:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) >= 3 and (group, version, rest[2]) in kinds():
        namespace, rest = rest[1], rest[2:]
    kind = kinds().get((group, version, rest[0]))
    if kind is None or len(rest) > 3:
        raise errors.NotFound.no_such_path()
    if namespace and not kind.res.namespaced:
        raise errors.NotFound.no_such_path()
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if subresource and subresource not in kind.subresources:
        raise errors.NotFound.no_such_path()
    if name and kind.res.namespaced and not namespace:
        raise errors.NotFound.no_such_path()
    return Target(kind, namespace, name, subresource)


def _segment(raw: str) -> str:
    # A replaced byte stays recognisable, so that no two names become one.
    text = unquote(raw, errors="replace") if "%" in raw else raw
    if (
        "\ufffd" in text
        or len(text) > _SEGMENT_BYTES_MAX
        or "/" in text
        or "%" in text
        or "\0" in text
        or text in (".", "..")
    ):
        raise errors.BadRequest(f"invalid path segment {errors.quote(text[:64])}")
    return text


def flag(query: Mapping[str, str], name: str) -> bool:
    """A boolean parameter. Raises BadRequest."""
    text = query.get(name, "")
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise errors.BadRequest(
        f'invalid value "{text[:64]}" of the query parameter {name}: must be true or false'
    )


def number(query: Mapping[str, str], name: str, *, low: int = 0, high: int = 2**31 - 1) -> int | None:
    """An integer parameter, None when it is absent. Raises BadRequest."""
    text = query.get(name, "")
    if not text:
        return None
    try:
        value = int(text) if len(text) < 20 and text.isascii() else None
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise errors.BadRequest(
            f'invalid value "{text[:64]}" of the query parameter {name}: must be a number from {low} to {high}'
        )
    return value


def dry_run(query: Mapping[str, str]) -> bool:
    """Raises BadRequest for anything but All."""
    text = query.get("dryRun", "")
    if text not in ("", "All"):
        raise errors.BadRequest(
            f'dryRun: Unsupported value: {errors.quote(text[:64])}: supported values: "All"'
        )
    return bool(text)


def timestamp(query: Mapping[str, str], name: str) -> datetime.datetime | None:
    """An RFC 3339 parameter. Raises BadRequest."""
    text = query.get(name, "")
    if not text:
        return None
    try:
        parsed = datetime.datetime.fromisoformat(text)
        if parsed.tzinfo is not None:
            return parsed
    except ValueError:
        pass
    raise errors.BadRequest(f"{name}: {errors.quote(text[:64])} is no RFC 3339 time with a zone")


async def read_body(request: web.BaseRequest, *, limit: int = BODY_BYTES_MAX) -> bytes:
    """The whole body. Raises TooLarge as soon as it is known to be over the limit, UnsupportedMediaType when it is
    compressed."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise errors.UnsupportedMediaType(["an uncompressed body"])
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    if request.content.is_eof():
        body = request.content.read_nowait()  # it came with its head, as nearly all do
        if len(body) > limit:
            raise _too_large(limit)
    else:
        body = await _read_chunks(request, limit)
    if (kept := request.get(KEEP_BODY)) is not None:
        kept.data, kept.content_type = body, request.headers.get("Content-Type", "")
    return body


async def _read_chunks(request: web.BaseRequest, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> errors.TooLarge:
    return errors.TooLarge(f"limit is {limit} bytes")


async def parse_body(content_type: str, body: bytes) -> Any:
    """The body's value. What takes long to parse does not hold up the loop. Raises BadRequest, UnsupportedMediaType."""
    media = content_type.partition(";")[0].strip().lower()
    if media == decode.PROTOBUF:
        if len(body) >= _SLOW_BYTES_MIN:
            return await asyncio.to_thread(protobuf.parse, body)
        return protobuf.parse(body)
    if len(body) >= (_SLOW_BYTES_MIN if "yaml" in media else _THREAD_BYTES_MIN):
        return await asyncio.to_thread(decode.parse_body, media, body)
    return decode.parse_body(media, body)

"""What an API server answers, decoded no further than needed, and its refusals as hub.errors. [pure]

Source: metav1.Status, metav1.List, metav1.WatchEvent.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import orjson

from hub import errors

ERROR_TEXT_MAX: Final = 2000


class ListMeta(msgspec.Struct, frozen=True, rename={"next": "continue"}):
    """`remainingItemCount`: how many follow on further pages; None where the server does not say."""

    resourceVersion: str = ""
    next: str = ""
    remainingItemCount: int | None = None


class Page(msgspec.Struct, frozen=True):
    """A part of a list. `items` are the objects' bytes, views of the answer: what keeps one keeps all of it."""

    metadata: ListMeta = ListMeta()
    items: list[msgspec.Raw] | None = None

    @property
    def total(self) -> int | None:
        """How many objects the whole list has, told by its first page; None where the server does not say."""
        meta, here = self.metadata, len(self.items or ())
        if not meta.next:
            return here
        return None if meta.remainingItemCount is None else here + meta.remainingItemCount


class WatchEvent(msgspec.Struct, frozen=True):
    """`type`: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR (then `object` is a Status)."""

    type: str
    object: msgspec.Raw


class Bookmark(msgspec.Struct, frozen=True):
    """The object of a BOOKMARK, or any object as far as its revision goes."""

    metadata: "BookmarkMeta"


class BookmarkMeta(msgspec.Struct, frozen=True):
    resourceVersion: str = ""
    annotations: dict[str, str] | None = None


page_of = msgspec.json.Decoder(Page).decode
event_of = msgspec.json.Decoder(WatchEvent).decode
bookmark_of = msgspec.json.Decoder(Bookmark).decode

_BY_REASON: Final[dict[str, type[errors.ApiError]]] = {
    kind.reason: kind
    for kind in (
        errors.BadRequest,
        errors.Unauthorized,
        errors.Forbidden,
        errors.NotFound,
        errors.MethodNotAllowed,
        errors.NotAcceptable,
        errors.Conflict,
        errors.AlreadyExists,
        errors.Gone,
        errors.Expired,
        errors.TooLarge,
        errors.UnsupportedMediaType,
        errors.Unprocessable,
        errors.TooManyRequests,
        errors.InternalError,
        errors.ServiceUnavailable,
        errors.Timeout,
    )
}
_BY_CODE: Final = {kind.code: kind for kind in reversed(_BY_REASON.values())}


def error_of(code: int, raw: bytes) -> errors.ApiError:
    """The refusal that a Status, or what else came with `code`, tells. Its class is that of its reason, or of its code;
    `code`, `reason`, `message` and `details` are the server's."""
    status: dict[str, Any] = {}
    try:
        decoded = orjson.loads(raw)
        if isinstance(decoded, dict) and decoded.get("kind") == "Status":
            status = decoded
    except orjson.JSONDecodeError:
        pass  # a proxy's page, or plain text: its beginning is the message
    code = int(status.get("code") or code)
    reason = str(status.get("reason") or "")
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code) or errors.ApiError
    message = str(status.get("message") or raw[:ERROR_TEXT_MAX].decode(errors="replace").strip())
    details = status.get("details")
    error = kind.__new__(kind)
    # The classes' own constructors word a message; this one is worded already.
    errors.ApiError.__init__(
        error,
        message or f"the API server answered {code}",
        details=details if isinstance(details, dict) else None,
    )
    error.code, error.reason = code, reason or kind.reason
    return error


def resource_of(path: str) -> str:
    """The resource, with its subresource, that a path of the API names: `pods`, `pods/status`, `namespaces`; "" where it
    names none."""
    parts = path.strip("/").split("/")
    if parts[0] == "api":
        parts = parts[2:]
    elif parts[0] == "apis":
        parts = parts[3:]
    else:
        return ""
    if len(parts) > 2 and parts[0] == "namespaces" and parts[2] not in ("status", "finalize"):
        parts = parts[2:]
    return "/".join(parts[:1] + parts[2:3])


def revision_of(text: str) -> int:
    """A resourceVersion as a number: servers since 1.35 promise one, those before always sent one. Raises
    ServiceUnavailable."""
    if not text.isascii() or not text.isdigit():
        raise errors.ServiceUnavailable(
            f"the API server sent the resourceVersion {text!r}, which is no number"
        )
    return int(text)


@dataclass(slots=True)
class Counts:
    """Requests made, by (verb, resource), and what became of them."""

    requests: dict[tuple[str, str], int] = field(default_factory=dict)
    throttled: int = 0
    """Answers 429, or 503 with Retry-After."""
    refused: int = 0
    """Other answers of 400 and above."""
    failed: int = 0
    """Requests that got no answer."""

    def add(self, verb: str, resource: str) -> None:
        key = (verb, resource)
        self.requests[key] = self.requests.get(key, 0) + 1

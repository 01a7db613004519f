"""Errors of the API, as Kubernetes clients know them.

Job: every refusal that a client can see is one `ApiError` with status code, reason, message and details, and
`status()` renders it as a metav1.Status. Messages follow the form that kubectl and the client libraries print and
match on. What to do about a library's exception is decided where it is caught: translate it `from` the original.

Sources: metav1.Status and the Kubernetes API conventions (response status kinds).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

# A hostile object must not make a response of its own size.
CAUSES_MAX: Final = 200
SHOWN_MAX: Final = 1024
FIELD_MAX: Final = 512

MODIFIED: Final = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


def qualified(name: str, group: str = "") -> str:
    """`pods`, `deployments.apps`, `Deployment.apps`: a resource or kind as messages name it."""
    return f"{name}.{group}" if group else name


def quote(value: object) -> str:
    """A value as field errors show it: strings in double quotes, the rest as JSON; cut after SHOWN_MAX characters."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason why an object is invalid: metav1.StatusCause, made by the functions below."""

    reason: str
    message: str
    field: str

    def __post_init__(self) -> None:
        if len(self.field) > FIELD_MAX:  # keys of maps are part of the path
            object.__setattr__(self, "field", self.field[:FIELD_MAX] + "...")

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"

    def as_dict(self) -> dict[str, str]:
        return {"reason": self.reason, "message": self.message, "field": self.field}


def _detailed(text: str, detail: str) -> str:
    return f"{text}: {detail}" if detail else text


def required(field: str, detail: str = "") -> Cause:
    return Cause("FieldValueRequired", _detailed("Required value", detail), field)


def invalid(field: str, value: object, detail: str) -> Cause:
    return Cause("FieldValueInvalid", _detailed(f"Invalid value: {quote(value)}", detail), field)


def not_supported(field: str, value: object, allowed: Iterable[str]) -> Cause:
    values = ", ".join(quote(v) for v in sorted(allowed))
    return Cause(
        "FieldValueNotSupported", f"Unsupported value: {quote(value)}: supported values: {values}", field
    )


def duplicate(field: str, value: object) -> Cause:
    return Cause("FieldValueDuplicate", f"Duplicate value: {quote(value)}", field)


def not_found(field: str, value: object) -> Cause:
    return Cause("FieldValueNotFound", f"Not found: {quote(value)}", field)


def forbidden(field: str, detail: str) -> Cause:
    return Cause("FieldValueForbidden", _detailed("Forbidden", detail), field)


def too_long(field: str, limit_bytes: int) -> Cause:
    return Cause("FieldValueTooLong", f"Too long: may not be more than {limit_bytes} bytes", field)


def too_many(field: str, count: int, limit: int) -> Cause:
    return Cause("FieldValueTooMany", f"Too many: {count}: must have at most {limit} items", field)


class ApiError(Exception):
    """Base: `code` is the HTTP status, `reason` the machine-readable word, `details` a metav1.StatusDetails."""

    code: int = 500
    reason: str = "InternalError"

    def __init__(self, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})

    @property
    def retry_after_s(self) -> int | None:
        """Seconds for the Retry-After header, or None."""
        seconds = self.details.get("retryAfterSeconds")
        return int(seconds) if seconds is not None else None

    def status(self) -> dict[str, Any]:
        """The metav1.Status that is sent as the body."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details:
            body["details"] = self.details
        body["code"] = self.code
        return body


def _object_details(kind: str, name: str, group: str) -> dict[str, Any]:
    details = {"name": name, "group": group, "kind": kind}
    return {k: v for k, v in details.items() if v}


class BadRequest(ApiError):
    """The request cannot be understood; sending it again cannot help."""

    code, reason = 400, "BadRequest"


class Unauthorized(ApiError):
    """Who asks is unknown."""

    code, reason = 401, "Unauthorized"

    def __init__(self, message: str = "Unauthorized") -> None:
        super().__init__(message)


class Forbidden(ApiError):
    """Who asks is known and may not. `why` says which right is missing."""

    code, reason = 403, "Forbidden"

    def __init__(self, resource: str, name: str, why: str, *, group: str = "") -> None:
        if not resource:
            message = f"forbidden: {why}"
        elif not name:
            message = f"{qualified(resource, group)} is forbidden: {why}"
        else:
            message = f"{qualified(resource, group)} {quote(name)} is forbidden: {why}"
        super().__init__(message, details=_object_details(resource, name, group))


class NotFound(ApiError):
    """No such object. `resource` is the plural; `no_such_path()` is for a path that serves nothing."""

    code, reason = 404, "NotFound"

    def __init__(self, resource: str, name: str, *, group: str = "", message: str = "") -> None:
        text = message or f"{qualified(resource, group)} {quote(name)} not found"
        super().__init__(text, details=_object_details(resource, name, group))

    @classmethod
    def no_such_path(cls) -> NotFound:
        return cls("", "", message="the server could not find the requested resource")


class MethodNotAllowed(ApiError):
    """The verb is not served for this resource."""

    code, reason = 405, "MethodNotAllowed"

    def __init__(self, resource: str = "", action: str = "", *, group: str = "") -> None:
        if resource and action:
            message = f"{action} is not supported on resources of kind {quote(qualified(resource, group))}"
        else:
            message = "the server does not allow this method on the requested resource"
        super().__init__(message, details=_object_details(resource, "", group))


class NotAcceptable(ApiError):
    """None of the Accept header's types can be served."""

    code, reason = 406, "NotAcceptable"

    def __init__(self, accepted: Sequence[str]) -> None:
        super().__init__(f"only the following media types are accepted: {', '.join(accepted)}")


class Conflict(ApiError):
    """The object changed since it was read: read it again and retry."""

    code, reason = 409, "Conflict"

    def __init__(self, resource: str, name: str, why: str = MODIFIED, *, group: str = "") -> None:
        super().__init__(
            f"Operation cannot be fulfilled on {qualified(resource, group)} {quote(name)}: {why}",
            details=_object_details(resource, name, group),
        )


class AlreadyExists(ApiError):
    """A create met an object of that name."""

    code, reason = 409, "AlreadyExists"

    def __init__(self, resource: str, name: str, *, group: str = "") -> None:
        super().__init__(
            f"{qualified(resource, group)} {quote(name)} already exists",
            details=_object_details(resource, name, group),
        )


class Gone(ApiError):
    """What was asked for existed once and cannot be had any more."""

    code, reason = 410, "Gone"


class Expired(ApiError):
    """The resourceVersion or continue token is too old: list again."""

    code, reason = 410, "Expired"

    @classmethod
    def watch(cls, asked: object, oldest: object) -> Expired:
        return cls(f"too old resource version: {asked} ({oldest})")


class TooLarge(ApiError):
    """The body is over its limit."""

    code, reason = 413, "RequestEntityTooLarge"

    def __init__(self, why: str) -> None:
        super().__init__(f"Request entity too large: {why}")


class UnsupportedMediaType(ApiError):
    """The body's Content-Type is not served here."""

    code, reason = 415, "UnsupportedMediaType"

    def __init__(self, accepted: Sequence[str]) -> None:
        super().__init__(
            "the body of the request was in an unknown format - accepted media types include: "
            + ", ".join(accepted)
        )


class Invalid(ApiError):
    """The object was understood and breaks rules; `causes` says which, in the order found."""

    code, reason = 422, "Invalid"

    def __init__(self, kind: str, name: str, causes: Sequence[Cause], *, group: str = "") -> None:
        self.causes = tuple(dict.fromkeys(causes))
        shown = self.causes[:CAUSES_MAX]
        lines = [str(c) for c in shown]
        if len(self.causes) > len(shown):
            lines.append(f"and {len(self.causes) - len(shown)} more")
        message = f"{qualified(kind, group)} {quote(name)} is invalid"
        if len(lines) == 1:
            message += f": {lines[0]}"
        elif lines:
            message += f": [{', '.join(lines)}]"
        details = _object_details(kind, name, group)
        if shown:
            details["causes"] = [c.as_dict() for c in shown]
        super().__init__(message, details=details)


class Unprocessable(ApiError):
    """A patch that was understood and cannot be applied (422 without causes)."""

    code, reason = 422, "Invalid"


class TooManyRequests(ApiError):
    """Come back after `retry_after_s` seconds."""

    code, reason = 429, "TooManyRequests"

    def __init__(
        self, message: str = "Too many requests, please try again later.", retry_after_s: int = 1
    ) -> None:
        super().__init__(message, details={"retryAfterSeconds": retry_after_s} if retry_after_s else None)


class InternalError(ApiError):
    """A fault of ours. `why` is shown to the client: keep secrets out of it."""

    code, reason = 500, "InternalError"

    def __init__(self, why: str) -> None:
        super().__init__(f"Internal error occurred: {why}", details={"causes": [{"message": why}]})


class ServiceUnavailable(ApiError):
    """The server cannot answer now: starting, suspended or shutting down."""

    code, reason = 503, "ServiceUnavailable"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message, details={"retryAfterSeconds": retry_after_s} if retry_after_s else None)


class Timeout(ApiError):
    """The request did not finish in its time; whether it took effect is unknown."""

    code, reason = 504, "Timeout"

    def __init__(self, why: str, retry_after_s: int = 0) -> None:
        super().__init__(
            f"Timeout: {why}", details={"retryAfterSeconds": retry_after_s} if retry_after_s else None
        )

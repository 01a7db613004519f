from __future__ import annotations

import pytest

from hub import errors
from hub.errors import ApiError


@pytest.mark.parametrize(
    ("error", "code", "reason", "message"),
    [
        (errors.NotFound("pods", "x"), 404, "NotFound", 'pods "x" not found'),
        (
            errors.NotFound("deployments", "x", group="apps"),
            404,
            "NotFound",
            'deployments.apps "x" not found',
        ),
        (errors.AlreadyExists("pods", "x"), 409, "AlreadyExists", 'pods "x" already exists'),
        (
            errors.Conflict("pods", "x"),
            409,
            "Conflict",
            'Operation cannot be fulfilled on pods "x": the object has been modified; please apply your changes to '
            "the latest version and try again",
        ),
        (errors.Forbidden("pods", "x", "no"), 403, "Forbidden", 'pods "x" is forbidden: no'),
        (errors.Forbidden("pods", "", "no"), 403, "Forbidden", "pods is forbidden: no"),
        (errors.Unauthorized(), 401, "Unauthorized", "Unauthorized"),
        (errors.Expired.watch(1, 5), 410, "Expired", "too old resource version: 1 (5)"),
        (errors.Gone("gone"), 410, "Gone", "gone"),
        (errors.TooLarge("limit is 3"), 413, "RequestEntityTooLarge", "Request entity too large: limit is 3"),
        (errors.InternalError("x"), 500, "InternalError", "Internal error occurred: x"),
        (errors.Timeout("x"), 504, "Timeout", "Timeout: x"),
        (
            errors.MethodNotAllowed("pods", "watch"),
            405,
            "MethodNotAllowed",
            'watch is not supported on resources of kind "pods"',
        ),
        (errors.ServiceUnavailable("x"), 503, "ServiceUnavailable", "x"),
        (
            errors.NotFound.no_such_path(),
            404,
            "NotFound",
            "the server could not find the requested resource",
        ),
    ],
)
def test_a_status_is_what_clients_expect(error: ApiError, code: int, reason: str, message: str) -> None:
    status = error.status()
    assert (status["code"], status["reason"], status["message"]) == (code, reason, message)
    assert (status["kind"], status["apiVersion"], status["status"]) == ("Status", "v1", "Failure")


def test_details_name_the_object_and_when_to_retry() -> None:
    details = errors.NotFound("deployments", "x", group="apps").status()["details"]
    assert details == {"name": "x", "group": "apps", "kind": "deployments"}
    busy = errors.TooManyRequests(retry_after_s=7)
    assert (busy.code, busy.retry_after_s, busy.status()["details"]) == (429, 7, {"retryAfterSeconds": 7})
    assert errors.BadRequest("x").retry_after_s is None
    assert "details" not in errors.BadRequest("x").status()


def test_causes_are_listed_once_in_order_and_bounded() -> None:
    one, two = errors.required("a"), errors.forbidden("b", "no")
    error = errors.Invalid("Pod", "x", [one, two, one])
    assert error.message == 'Pod "x" is invalid: [a: Required value, b: Forbidden: no]'
    assert [c["field"] for c in error.status()["details"]["causes"]] == ["a", "b"]
    many = errors.Invalid("Pod", "x", [errors.required(f"f{i}") for i in range(errors.CAUSES_MAX + 5)])
    assert len(many.status()["details"]["causes"]) == errors.CAUSES_MAX
    assert many.message.endswith("and 5 more]")

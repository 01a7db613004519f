"""The three patch types that are served: JSON patch, merge patch, strategic merge patch. [pure]

Job: `apply_patch` returns the patched object as plain JSON; the caller decodes, defaults and validates it. Invariant:
neither the current object nor anything inside it is changed. Bounds: OPERATIONS_MAX operations, COPIED_BYTES_MAX bytes
made by "copy", nesting as in `decode`; the size of the body is the server's to limit.

Sources: RFC 6902, RFC 7386, and the Kubernetes contributors' page on strategic merge patch.
"""

from __future__ import annotations

import copy
from typing import Any, Final

import jsonpatch
import jsonpointer
import orjson

from hub.api import decode
from hub.api.schema import Node, Resource
from hub.api.strategic import BadPatch, merge_object
from hub.errors import BadRequest, TooLarge, Unprocessable, UnsupportedMediaType

JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH: Final = "application/strategic-merge-patch+json"
TYPES: Final = (JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH)

OPERATIONS_MAX: Final = 10_000
COPIED_BYTES_MAX: Final = 3 * 1024 * 1024
_REJECTED: Final = "the server rejected our request due to an error in our request"


def apply_patch(
    content_type: str, resource: Resource, current: dict[str, Any], patch: bytes
) -> dict[str, Any]:
    """`current` with `patch` applied.

    Raises UnsupportedMediaType, BadRequest (cannot be parsed), Unprocessable (cannot be applied), TooLarge.
    """
    media = content_type.partition(";")[0].strip().lower()
    if media not in TYPES:
        raise UnsupportedMediaType(TYPES)
    try:
        value = decode.parse_json(patch)
    except BadRequest as e:
        raise BadRequest(f"error decoding patch: {e.message}") from e
    if media == JSON_PATCH:
        result = json_patch(current, value)
    elif not isinstance(value, dict):
        raise BadRequest("error decoding patch: the patch must be an object")
    elif media == MERGE_PATCH:
        result = merge_patch(current, value)
    else:
        try:
            root = Node("struct", resource.definition, None, "", False, False)
            result = merge_object(current, value, root)
        except BadPatch as e:
            raise BadRequest(str(e)) from e
    if not isinstance(result, dict):
        raise Unprocessable(f"{_REJECTED}: the patched object is not an object")
    return result


def json_patch(current: Any, operations: Any) -> Any:
    """RFC 6902. Raises BadRequest, Unprocessable, TooLarge."""
    if not isinstance(operations, list):
        raise BadRequest("error decoding patch: a JSON patch is an array of operations")
    if len(operations) > OPERATIONS_MAX:
        raise TooLarge(
            f"The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {len(operations)}"
        )
    document = copy.deepcopy(current)
    copied_bytes = 0
    for i, operation in enumerate(operations):
        _check_operation(i, operation)
        try:
            if operation["op"] == "copy":
                copied_bytes += _copied_bytes(document, operation)
            document = jsonpatch.JsonPatch([operation]).apply(document, in_place=True)
        except jsonpatch.JsonPatchTestFailed as e:
            # Its own text quotes the object, which who may patch may not be allowed to read.
            raise Unprocessable(f"{_REJECTED}: operation {i}: testing path {operation['path']} failed") from e
        except jsonpatch.InvalidJsonPatch as e:
            raise BadRequest(f"error decoding patch: operation {i}: {e}") from e
        except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as e:
            raise Unprocessable(f"{_REJECTED}: operation {i}: {e}") from e
        except (TypeError, KeyError, ValueError, AttributeError) as e:
            # The library lets these escape for paths that lead through scalars.
            raise Unprocessable(f"{_REJECTED}: operation {i} does not fit the object") from e
        if copied_bytes > COPIED_BYTES_MAX:
            raise TooLarge(f"the copies of a JSON patch may not exceed {COPIED_BYTES_MAX} bytes")
    return document


def _check_operation(i: int, operation: Any) -> None:
    """Raises BadRequest when the members of an operation are not text where RFC 6902 says so."""
    if not isinstance(operation, dict):
        raise BadRequest(f"error decoding patch: operation {i} is not an object")
    for member in ("op", "path", "from"):
        needed = member != "from" or operation["op"] in ("copy", "move")
        if needed and not isinstance(operation.get(member), str):
            raise BadRequest(f"error decoding patch: operation {i}: {member} must be a string")


def _copied_bytes(document: Any, operation: dict[str, Any]) -> int:
    value = jsonpointer.resolve_pointer(document, operation["from"])
    return len(orjson.dumps(value))


def merge_patch(current: Any, patch: Any) -> Any:
    """RFC 7386: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    out = dict(current) if isinstance(current, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge_patch(out.get(key), value)
    return out

"""The context of a trace on the objects that a request has written: how it reaches the replica that serves their node.

An annotation carries it, so it lies in the same transaction as the change, goes through any store, and follows a Pod that
is bound, moved, or made of a Deployment. It is `TRACEPARENT@UNIX-SECONDS`: what is older than FRESH_S belongs to another
change. It is no part of any document, so it neither restarts nor re-sends anything.
"""

from collections.abc import Mapping
from typing import Any, Final

from hub.documents import TRACE_ANNOTATION as ANNOTATION
from observability.tracing import CURRENT, Context, parse

FRESH_S: Final = 600

Object = dict[str, Any]


def stamp(obj: Object) -> None:
    """`obj`, which is going to be stored, bears the context of the request that is being served; else none."""
    span = CURRENT.get()
    annotations = obj["metadata"].get("annotations")
    if span is not None:
        value = f"{span.context.traceparent}@{span.start_ns // 1_000_000_000}"
        obj["metadata"]["annotations"] = {**(annotations or {}), ANNOTATION: value}
    elif annotations and ANNOTATION in annotations:
        left = {name: text for name, text in annotations.items() if name != ANNOTATION}
        if left:
            obj["metadata"]["annotations"] = left
        else:
            del obj["metadata"]["annotations"]


def context_of(annotations: Mapping[str, str] | None, now_s: float) -> Context | None:
    """The context that an object bears, where it is of late. Anybody may have written it: None for what is none."""
    text, at, seconds = ((annotations or {}).get(ANNOTATION) or "").partition("@")
    if not at or not seconds.isascii() or not seconds.isdigit() or len(seconds) > 12:
        return None
    found = parse(text)
    if found is None or not found[1] or abs(now_s - int(seconds)) > FRESH_S:
        return None
    return found[0]

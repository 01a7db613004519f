"""A hub of another release, as far as documents go: the same content rendered to other bytes.

    python -m tests.e2e.other_rendering serve ...

Fields that stand at their defaults are sent, there is a field that no agent knows, and keys have the other order.
"""

import sys
from collections.abc import Mapping
from typing import Any

import orjson

from hub import cli, desired, documents
from hub.objects import Resource

_render_pod, _render_config = documents.render_pod, documents.render_config


def _otherwise(body: bytes) -> bytes:
    fields = {**orjson.loads(body), "rendering": {"of": "another release", "number": 2}}
    return orjson.dumps(dict(sorted(fields.items(), reverse=True)))


def render_pod(pod: Mapping[str, Any]) -> bytes:
    return _otherwise(_render_pod(pod))


def render_config(res: Resource, obj: Mapping[str, Any]) -> bytes:
    return _otherwise(_render_config(res, obj))


def install() -> None:
    """Makes the hub of this process render so."""
    documents.SPEC_DEFAULTS = documents.CONTAINER_DEFAULTS = {}  # type: ignore[misc]
    desired.render_pod = render_pod  # type: ignore[attr-defined]
    desired.render_config = render_config  # type: ignore[attr-defined]


if __name__ == "__main__":
    install()
    sys.exit(cli.main())

"""`cloudhub confirm`: which Nodes say that their nodes are held back, and how many may say so yet."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from hub import errors
from hub.client import ClientRefused
from hub.kubernetes.nodes import is_ours
from hub.reports import CONFIRMED, PARTED, READY

if TYPE_CHECKING:
    from hub.client import ApiClient
    from hub.kubernetes.client import KubeClient

Object = dict[str, Any]
NODES: Final = "/api/v1/nodes"
NOT_TOLD: Final = frozenset((403, 404))
"""Whoever may confirm need not be allowed to see the hub's status, and a cluster's API server has none."""


async def confirm(api: "ApiClient | KubeClient", values: argparse.Namespace) -> int:
    """Exit code 0. Raises ClientError, ApiError."""
    status: Object | None = None
    if values.node is not None:
        nodes = [await api.get(f"{NODES}/{values.node}")]
    else:
        # Before the Nodes: who is held back in between is counted twice then, and not left out.
        status = await _status(api)
        nodes = (await api.get(NODES))["items"]
    waiting = [n for n in nodes if PARTED in _annotations(n)]
    if not waiting:
        print(f"{values.node or 'no node'}: nothing to confirm", file=sys.stderr)
    for node in waiting:
        name, claim = node["metadata"]["name"], node["metadata"]["annotations"][PARTED]
        await api.patch(f"{NODES}/{name}", {"metadata": {"annotations": {CONFIRMED: claim}}})
        print(f"{name} confirmed")
    if values.node is None:
        for line in not_among_all(status, nodes):
            print(line, file=sys.stderr)
    return 0


async def _status(api: "ApiClient | KubeClient") -> Object | None:
    """The hub's status; None where it is not to be had."""
    try:
        found: Object = await api.get("/cloudhub/status")
    except (ClientRefused, errors.ApiError) as failure:
        if failure.code not in NOT_TOLD:
            raise
        return None
    return found


def not_among_all(status: Object | None, nodes: Sequence[Object]) -> Iterable[str]:
    """What `--all` could not reach, in words. `status`: from before `nodes` were listed."""
    if status is None:
        away = sum(is_ours(n) and PARTED not in _annotations(n) and not _is_ready(n) for n in nodes)
        if away:
            yield f"{_nodes(away)} not Ready: whether one of them has to be confirmed shows when it comes; then run this again"
        return
    untold = sum(member.get("heldUntold", 0) for member in status["members"])
    if untold:
        yield f"{_nodes(untold)} held back and on the way to say so: run this again in a moment"
    away = len(nodes) - sum(member["connected"] for member in status["members"])
    if away > 0:
        yield (
            f"{_nodes(away)} of {len(nodes)} not connected: whether one of them has to be confirmed shows when it comes; "
            "then run this again"
        )


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count > 1 else ''}"


def _annotations(node: Object) -> Object:
    found: Object = node["metadata"].get("annotations") or {}
    return found


def _is_ready(node: Object) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == READY and c.get("status") == "True" for c in conditions)

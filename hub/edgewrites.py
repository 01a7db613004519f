"""Users' policies for what edges write: a report becomes an attempt of `system:node:<name>`, judged before it is stored.

A denied report is refused for good with the policy's words, so that nothing blocks behind it at the edge. What else waits for
the same object (the hub's own findings, later reports) is not touched by it.
"""

import functools
from collections.abc import Callable
from typing import Final

import orjson

from hub import errors
from hub.api.kinds import kind_of
from hub.objects import PODS, Resource
from hub.policies.matching import CREATE, DELETE, UPDATE, Attempt
from hub.policies.watching import NODE_GROUPS, Policies, node_user
from hub.registry import Object
from hub.upstream import Creation, Removal, Result, Single, Update

STATUS: Final = "status"


class EdgeWrites:
    """See the module. `policies` None: nobody asks for any."""

    def __init__(self, policies: Policies | None) -> None:
        self._policies = policies

    def judged(self, node: str, job: Update | Single, old: Callable[[], Object | None]) -> Update | Single:
        """`job`, with what policies say about it. `old`: the object that a Removal is about. Raises ApiError where it is denied
        already."""
        policies = self._policies
        if policies is None:
            return job
        if isinstance(job, Update):
            if not policies.concern(UPDATE, job.res, STATUS):
                return job
            return _Judged(policies, node, job).update
        if isinstance(job, Creation):
            self.check_create(node, job.res, job.obj)
        elif isinstance(job, Removal) and policies.concern(DELETE, PODS) and (pod := old()) is not None:
            policies.review(_attempt(DELETE, PODS, node, None, pod))
        return job

    def check_create(self, node: str, res: Resource, obj: Object) -> None:
        """Raises ApiError for an object that a node must not have made for it."""
        if self._policies is not None and self._policies.concern(CREATE, res):
            self._policies.review(_attempt(CREATE, res, node, obj, None))

    def checked(
        self, node: str, res: Resource, apply: Callable[[Object], Object | None]
    ) -> Callable[[Object], Object | None]:
        """`apply`, raising ApiError where its result is denied."""
        policies = self._policies
        if policies is None or not policies.concern(UPDATE, res, STATUS):
            return apply

        def judged(obj: Object) -> Object | None:
            new = apply(orjson.loads(orjson.dumps(obj)))
            if new is not None:
                policies.review(_attempt(UPDATE, res, node, new, obj, STATUS))
            return new

        return judged


class _Judged:
    """An Update whose result is judged each time that it is derived; the last judgement counts."""

    def __init__(self, policies: Policies, node: str, job: Update) -> None:
        self._policies, self._node, self._job = policies, node, job
        self._denied: errors.ApiError | None = None

    @functools.cached_property
    def update(self) -> Update:
        job = self._job
        return Update(job.res, job.namespace, job.name, job.uid, self._apply, self._done, job.size, job.whole)

    def _apply(self, obj: Object) -> Object | None:
        self._denied = None
        # A copy is changed: where it is denied, whoever writes the same object in this batch gets it as it was.
        new = self._job.apply(orjson.loads(orjson.dumps(obj)))
        if new is None:
            return None
        try:
            self._policies.review(_attempt(UPDATE, self._job.res, self._node, new, obj, STATUS))
        except errors.ApiError as denied:
            self._denied = denied
            return None
        return new

    def _done(self, result: Result) -> None:
        self._job.done(self._denied if self._denied is not None and isinstance(result, int) else result)


def _attempt(
    operation: str, res: Resource, node: str, obj: Object | None, old: Object | None, subresource: str = ""
) -> Attempt:
    named = {"apiVersion": kind_of(res).res.api_version, "kind": res.kind}
    new, before = ({**named, **o} if o is not None else None for o in (obj, old))
    meta = (new or before or {})["metadata"]
    return Attempt(
        operation,
        res,
        meta.get("namespace", ""),
        meta["name"],
        new,
        before,
        node_user(node),
        NODE_GROUPS,
        subresource,
    )

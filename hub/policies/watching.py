"""The policies of one replica, kept current by watches, and the one question that writers ask: may this be written?

`review` is a function over what is cached here, so that it can be asked in the turn of the loop that writes. Policies, bindings and
Namespaces are followed as a whole, ConfigMaps as far as bindings name them. A change takes effect as soon as its watch
brings it. Before everything was read once (`synced`) nothing may be written through it.

Bounds: POLICIES_MAX policies are in force, those that were made first; PARAMS_MAX ConfigMaps are followed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import orjson

from hub import errors
from hub.informer import Informer
from hub.objects import CONFIGMAPS, NAMESPACES, POLICIES, POLICY_BINDINGS, Keys, ObjectView, Resource
from hub.outage import Outage
from hub.policies.asking import NOTES
from hub.policies.decisions import NO_PARAMS, Binding, Clock, Finding, Judgement, Policy
from hub.policies.expressions import ExpressionError
from hub.policies.matching import Attempt, Object
from hub.policies.specs import AUDIT, DENY, WARN, BindingSpec, PolicySpec, read
from hub.references import StoreReferences
from shards.kv import Store

log = logging.getLogger(__name__)

POLICIES_MAX: Final = 256
PARAMS_MAX: Final = 1024
FAILURES_MAX: Final = 64
"""Of one attempt, that are told to the audit log."""
VALIDATION_FAILURE: Final = "validation.policy.admission.k8s.io/validation_failure"
"""The audit annotation of what a binding with the action Audit finds, as in Kubernetes."""
NODE_GROUPS: Final = ("system:nodes", "system:authenticated")

Key = tuple[str, str]
Audit = Callable[[Attempt, dict[str, str], errors.ApiError | None], None]
"""Told of an attempt that no request of the API is behind: its audit annotations, and the refusal where it is denied."""


def node_user(node: str) -> str:
    """The user that an edge node is to policies."""
    return f"system:node:{node}"


class Policies:
    """See the module."""

    def __init__(self, store: Store, keys: Keys, now: Callable[[], float] = time.monotonic) -> None:
        outage = Outage()
        self._now = now
        self._policies: Informer[ObjectView] = Informer(store, keys, POLICIES, outage=outage)
        self._bindings: Informer[ObjectView] = Informer(store, keys, POLICY_BINDINGS, outage=outage)
        self._namespaces: Informer[ObjectView] = Informer(store, keys, NAMESPACES, outage=outage)
        self._params = StoreReferences(store, keys, CONFIGMAPS, outage)
        self._compiled: list[Policy] = []
        self._used: set[Key] = set()
        for mirror in (self._policies, self._bindings, self._namespaces):
            mirror.subscribe(self._changed)
        self.audit: Audit | None = None
        self.denied = 0
        self.judged = 0
        self.seconds = 0.0

    async def run(self) -> None:
        """Follows the store, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for part in (self._policies, self._bindings, self._namespaces, self._params):
                tasks.create_task(part.run(), name=f"policies: {part.resource.resource}")

    async def synced(self) -> None:
        """Returns once all that is in force is known."""
        for informer in (self._policies, self._bindings, self._namespaces):
            await informer.synced()
        self._compile()
        await self._params.until(lambda: all(map(self._params.known, self._used)))

    # -- what writers ask -----------------------------------------------------------------------------------------------

    def concern(self, operation: str, res: Resource, subresource: str = "") -> bool:
        """Whether any policy may have something to say, so that an attempt is worth making."""
        return any(p.matcher.concerns(operation, res, subresource) for p in self._compiled)

    def review(self, attempt: Attempt) -> list[str]:
        """The warnings for who asks. Raises Forbidden, with code and reason of the validation, for what must not be written."""
        if not self._compiled or attempt.res in (POLICIES, POLICY_BINDINGS):
            return []  # policies about policies could lock everybody out
        began = self._now()
        clock, out = Clock.start(began), Judgement()
        namespace = self._namespace(attempt)
        for policy in self._compiled:
            policy.judge(attempt, namespace, self._params_of, clock, out)
        self.judged += 1
        self.seconds += self._now() - began
        denials = [f for f in out.findings if DENY in f.actions]
        refused = _refusal(attempt, denials[0]) if denials else None
        self._note(attempt, out, refused)
        if refused is not None:
            self.denied += 1
            raise refused
        return [f"Validation failed for {f.text}" for f in out.findings if WARN in f.actions]

    def _note(self, attempt: Attempt, out: Judgement, refused: errors.ApiError | None) -> None:
        """For the audit log: with the event of the request that is judged, or as one of its own."""
        audited = [f for f in out.findings if AUDIT in f.actions]
        notes = {**out.annotations, **({VALIDATION_FAILURE: _failures(audited)} if audited else {})}
        kept = NOTES.get()
        if kept is not None:
            kept.update(notes)
        elif self.audit is not None and (notes or refused is not None):
            self.audit(attempt, notes, refused)

    def figures(self) -> dict[str, float]:
        """For metrics."""
        return {
            "policies": len(self._compiled),
            "judged": self.judged,
            "denied": self.denied,
            "seconds": self.seconds,
        }

    # -- what is known ---------------------------------------------------------------------------------------------------

    def _namespace(self, attempt: Attempt) -> Object | None:
        entry = self._namespaces.cache.get("", attempt.namespace) if attempt.namespace else None
        return entry.obj() if entry is not None else None

    def _params_of(self, spec: BindingSpec, attempt: Attempt) -> Any:
        ref = spec.paramRef
        if ref is None:
            return None
        entry = self._params.cache.get(ref.namespace or attempt.namespace, ref.name)
        if entry is None:
            return NO_PARAMS
        return {"apiVersion": "v1", "kind": "ConfigMap", **entry.obj()}

    def _changed(self, deltas: Sequence[Any], revision: int) -> None:
        if deltas:
            self._compile()

    def _compile(self) -> None:
        """Reads everything anew; expressions only of what has changed."""
        before = {p.name: p for p in self._compiled}
        entries = sorted(self._policies.cache, key=lambda e: (e.meta.creationTimestamp, e.key))
        if len(entries) > POLICIES_MAX:
            log.error("%d policies, only the %d oldest are in force", len(entries), POLICIES_MAX)
        bound: dict[str, list[Binding]] = {}
        for entry in self._bindings.cache:
            try:
                spec = read(entry.obj(), BindingSpec)
                bound.setdefault(spec.policyName, []).append(Binding.compile(entry.key[1], spec))
            except (msgspec.ValidationError, errors.ApiError) as wrong:
                log.error("ValidatingAdmissionPolicyBinding %s is not in force: %s", entry.key[1], wrong)
        compiled: list[Policy] = []
        for entry in entries[:POLICIES_MAX]:
            name = entry.key[1]
            if name not in bound:
                continue
            try:
                spec_of = read(entry.obj(), PolicySpec)
                held = before.get(name)
                policy = held if held is not None and held.spec == spec_of else Policy(name, spec_of)
            except (msgspec.ValidationError, errors.ApiError, ExpressionError) as wrong:
                # Written by another release, for `specs` lets nothing through that does not compile.
                log.error("ValidatingAdmissionPolicy %s is not in force: %s", name, wrong)
                continue
            policy.bindings = sorted(bound[name], key=lambda b: b.name)
            compiled.append(policy)
        self._compiled = compiled
        self._follow_params()

    def _follow_params(self) -> None:
        wanted: set[Key] = set()
        for policy in self._compiled:
            for binding in policy.bindings:
                ref = binding.spec.paramRef
                if ref is None or policy.spec.paramKind is None:
                    continue
                spaces = [ref.namespace] if ref.namespace else [e.key[1] for e in self._namespaces.cache]
                wanted.update((space, ref.name) for space in spaces)
        if len(wanted) > PARAMS_MAX:
            log.error("%d ConfigMaps of policies' params, only %d are followed", len(wanted), PARAMS_MAX)
            wanted = set(sorted(wanted)[:PARAMS_MAX])
        for key in wanted - self._used:
            self._params.use(key)
        for key in self._used - wanted:
            self._params.release(key)
        self._used = wanted


def _failures(findings: Sequence[Finding]) -> str:
    """The value of VALIDATION_FAILURE."""
    return orjson.dumps(
        [
            {
                "message": finding.message,
                "policy": finding.policy,
                "binding": finding.binding,
                "expressionIndex": finding.index,
                "validationActions": finding.actions,
            }
            for finding in findings[:FAILURES_MAX]
        ]
    ).decode()


_CODES: Final = {"Unauthorized": 401, "Forbidden": 403, "Invalid": 422, "RequestEntityTooLarge": 413}


def _refusal(attempt: Attempt, finding: Finding) -> errors.ApiError:
    """As the API server words it: forbidden, whatever the reason of the validation, which code and reason tell."""
    res = attempt.res
    refused = errors.Forbidden(res.resource, attempt.name, finding.text, group=res.group)
    refused.code, refused.reason = _CODES[finding.reason], finding.reason
    refused.details["causes"] = [{"message": finding.text}]  # what kubectl shows
    return refused

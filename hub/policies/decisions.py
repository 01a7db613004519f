"""One policy with its bindings, judging one attempt: denials, warnings and notes for the audit.

Bounds: the CPU time that all policies take for one attempt is looked at after every expression. Past TIME_MAX_S the rest counts as failed,
and the policy that ran then is suspended for SUSPEND_S: it is not run, and its failurePolicy decides. So one expression that
is too expensive costs the hub's loop one pause a minute and not one for each write.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hub.policies.expressions import Activation, Expression, ExpressionError, bounded
from hub.policies.matching import Attempt, Matcher, Object
from hub.policies.specs import BindingSpec, PolicySpec, Validation

log = logging.getLogger(__name__)

TIME_MAX_S: Final = 0.05
SUSPEND_S: Final = 60.0

ANNOTATION_CHARS_MAX: Final = 10 * 1024

NO_PARAMS: Final = object()
"""The binding's ConfigMap does not exist."""
Params = Callable[[BindingSpec, Attempt], Any]
"""The params of a binding: an object, None where it has no paramRef, NO_PARAMS."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Why an attempt is not welcome. `actions`: of the binding; `reason`: of the validation, and `index` its place in the
    policy."""

    policy: str
    binding: str
    message: str
    reason: str
    actions: tuple[str, ...]
    index: int = 0

    @property
    def text(self) -> str:
        return (
            f"ValidatingAdmissionPolicy '{self.policy}' with binding '{self.binding}' denied request: "
            f"{self.message}"
        )


@dataclass(slots=True)
class Clock:
    """The time that one attempt may still take: of CPU, for a busy machine is nobody's fault. `at`: when it is, in seconds of
    any clock."""

    cpu: Callable[[], float]
    until: float
    at: float

    @classmethod
    def start(cls, at: float, cpu: Callable[[], float] = time.thread_time) -> "Clock":
        return cls(cpu, cpu() + TIME_MAX_S, at)

    @property
    def over(self) -> bool:
        return self.cpu() > self.until


class _TooLong(ExpressionError):
    """TIME_MAX_S is over."""


@dataclass(slots=True)
class _Check:
    spec: Validation
    expression: Expression
    message: Expression | None


@dataclass(frozen=True, slots=True)
class Binding:
    name: str
    spec: BindingSpec
    matcher: Matcher

    @classmethod
    def compile(cls, name: str, spec: BindingSpec) -> "Binding":
        return cls(name, spec, Matcher(spec.matchResources))


@dataclass(slots=True)
class Judgement:
    """What one attempt gave, over all policies. `annotations`: of auditAnnotations, by policy/key."""

    findings: list[Finding] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)


class Policy:
    """See the module. Compiled once."""

    def __init__(self, name: str, spec: PolicySpec) -> None:
        """Raises ExpressionError for what does not compile."""
        self.name = name
        self.spec = spec
        self.bindings: list[Binding] = []
        self.matcher = Matcher(spec.matchConstraints)
        self._conditions = [Expression(c.expression, ("BOOL",)) for c in spec.matchConditions]
        self._variables = [(v.name, Expression(v.expression)) for v in spec.variables]
        self._checks = [
            _Check(
                v,
                Expression(v.expression, ("BOOL",)),
                Expression(v.messageExpression, ("STRING",)) if v.messageExpression else None,
            )
            for v in spec.validations
        ]
        self._notes = [
            (a.key, Expression(a.valueExpression, ("STRING", "NULL"))) for a in spec.auditAnnotations
        ]
        self._suspended_until = 0.0

    def judge(
        self, attempt: Attempt, namespace: Object | None, params: Params, clock: Clock, out: Judgement
    ) -> None:
        """Adds to `out` what the policy finds, for each of its bindings that match."""
        if not self.matcher.matches(attempt, namespace):
            return
        for binding in self.bindings:
            if not binding.matcher.matches(attempt, namespace):
                continue
            found: Any = None
            if self.spec.paramKind is not None:
                found = params(binding.spec, attempt)
                if found is NO_PARAMS:
                    ref = binding.spec.paramRef
                    if ref is not None and ref.parameterNotFoundAction == "Allow":
                        continue
                    text = "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
                    self._fail(binding, text, out)
                    continue
            self._judge(binding, attempt, namespace, found, clock, out)

    def _judge(
        self,
        binding: Binding,
        attempt: Attempt,
        namespace: Object | None,
        params: Any,
        clock: Clock,
        out: Judgement,
    ) -> None:
        if clock.over or clock.at < self._suspended_until:
            self._fail(binding, "the time for policies was over: its expressions are too expensive", out)
            return
        values = _values(attempt, namespace, params)
        try:
            data = Activation(values)
            if not all(self._ask(e.holds, data, clock) for e in self._conditions):
                return
            data, faults = self._with_variables(values, data, clock)
        except ExpressionError as wrong:
            self._fail(binding, str(wrong), out)
            return
        for index, check in enumerate(self._checks):
            try:
                if self._ask(check.expression.holds, data, clock):
                    continue
                message = self._message(check, data, clock)
            except ExpressionError as wrong:
                self._fail(binding, _explained(check.spec.expression, wrong, faults), out, index)
                continue
            actions = tuple(binding.spec.validationActions)
            out.findings.append(Finding(self.name, binding.name, message, check.spec.reason, actions, index))
        for key, expression in self._notes:
            try:
                value = self._ask(expression.value, data, clock)
            except ExpressionError as wrong:
                self._fail(binding, _explained(expression.text, wrong, faults), out)
                continue
            if isinstance(value, str) and value:
                at, before = f"{self.name}/{key}", out.annotations.get(f"{self.name}/{key}")
                # Of several bindings, which differ by their params.
                told = value[:1024] if before in (None, value[:1024]) else f"{before}, {value[:1024]}"
                out.annotations[at] = told[:ANNOTATION_CHARS_MAX]

    def _with_variables(
        self, values: dict[str, Any], data: Activation, clock: Clock
    ) -> tuple[Activation, Mapping[str, str]]:
        """(an activation that has them, why those have no value that have none: an error only where one is used)."""
        if not self._variables:
            return data, {}
        faults: dict[str, str] = {}
        made: dict[str, Any] = {}
        for name, expression in self._variables:
            try:
                made[name] = bounded(self._ask(expression.value, data, clock))
            except _TooLong:
                raise
            except ExpressionError as wrong:
                faults[name] = str(wrong)
                continue
            data = Activation({**values, "variables": made}, data.sizes)
        return data, faults

    def _message(self, check: _Check, data: Activation, clock: Clock) -> str:
        if check.message is not None:
            try:
                text = self._ask(check.message.value, data, clock)
            except ExpressionError as wrong:
                log.info("policy %s: messageExpression has no value: %s", self.name, wrong)
            else:
                if isinstance(text, str) and text.strip() and "\n" not in text:
                    return text[:1024]
        return check.spec.message or f"failed expression: {check.spec.expression.strip()}"

    def _ask(self, what: Callable[[Activation], Any], data: Activation, clock: Clock) -> Any:
        value = what(data)
        if clock.over:
            self._suspended_until = clock.at + SUSPEND_S
            log.warning(
                "policy %s took too long (%g ms of CPU are allowed for one write) and is suspended for %g s; failurePolicy"
                " %s decides meanwhile. Make its expressions cheaper",
                self.name,
                TIME_MAX_S * 1000,
                SUSPEND_S,
                self.spec.failurePolicy,
            )
            raise _TooLong("the time for policies was over: its expressions are too expensive")
        return value

    def _fail(self, binding: Binding, why: str, out: Judgement, index: int = 0) -> None:
        """It could not be judged: failurePolicy decides."""
        if self.spec.failurePolicy == "Fail":
            actions = tuple(binding.spec.validationActions)
            out.findings.append(Finding(self.name, binding.name, why, "Invalid", actions, index))
        else:
            log.info("policy %s could not judge, and its failurePolicy is Ignore: %s", self.name, why)


def _values(attempt: Attempt, namespace: Object | None, params: Any) -> dict[str, Any]:
    """The variables of an expression, as in Kubernetes: what an attempt does not have is null."""
    res = attempt.res
    kind = {"group": res.group, "version": res.version, "kind": res.kind}
    resource = {"group": res.group, "version": res.version, "resource": res.resource}
    words = {
        "subResource": attempt.subresource,
        "requestSubResource": attempt.subresource,
        "name": attempt.name,
        "namespace": attempt.namespace,
    }
    request = {
        # As in the API server's request, what is empty is not there.
        **{key: word for key, word in words.items() if word},
        "kind": kind,
        "resource": resource,
        "requestKind": kind,
        "requestResource": resource,
        "operation": attempt.operation,
        "userInfo": {"username": attempt.user, "groups": list(attempt.groups)},
        "dryRun": attempt.dry_run,
        "options": dict(attempt.options),
    }
    return {
        "object": attempt.obj,
        "oldObject": attempt.old,
        "request": request,
        "params": params,
        "namespaceObject": namespace,
        "variables": {},
    }


def _explained(expression: str, wrong: ExpressionError, faults: Mapping[str, str]) -> str:
    text = f"expression '{expression.strip()}' resulted in error: {wrong}"
    used: Sequence[str] = [name for name in faults if f"variables.{name}" in expression]
    return text + "".join(f"; variable {name}: {faults[name]}" for name in used)

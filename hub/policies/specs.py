"""ValidatingAdmissionPolicy and ValidatingAdmissionPolicyBinding as they are stored, and what may be wrong with them.

Source: admissionregistration.k8s.io/v1. A field that this hub cannot honour is refused by name when it is written, never
ignored. Bounds: so many rules, validations and variables of one policy as Kubernetes' cost limits leave room for.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from hub.api.selectors import from_object
from hub.errors import ApiError, Cause, forbidden, invalid, not_supported, required
from hub.policies.expressions import Expression, ExpressionError

GROUP: Final = "admissionregistration.k8s.io"
DENY, WARN, AUDIT = "Deny", "Warn", "Audit"
REASONS: Final = ("Unauthorized", "Forbidden", "Invalid", "RequestEntityTooLarge")

Text = Annotated[str, msgspec.Meta(max_length=8192)]
Word = Annotated[str, msgspec.Meta(max_length=253)]
Words = Annotated[list[Word], msgspec.Meta(max_length=64)]
Operation = Literal["CREATE", "UPDATE", "DELETE", "CONNECT", "*"]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Rule(_Strict, frozen=True):
    operations: Annotated[list[Operation], msgspec.Meta(min_length=1, max_length=8)]
    apiGroups: Words
    apiVersions: Words
    resources: Words
    resourceNames: Words = []
    scope: Literal["*", "Cluster", "Namespaced"] = "*"


Selector = dict[str, Any]
Rules = Annotated[list[Rule], msgspec.Meta(max_length=32)]


class Match(_Strict, frozen=True):
    """matchConstraints of a policy, matchResources of a binding. No rules in a binding: all that the policy has."""

    resourceRules: Rules = []
    excludeResourceRules: Rules = []
    namespaceSelector: Selector = {}
    objectSelector: Selector = {}
    matchPolicy: Literal["Exact", "Equivalent"] = "Equivalent"


class Condition(_Strict, frozen=True):
    name: Word
    expression: Text


class Validation(_Strict, frozen=True):
    expression: Text
    message: Text = ""
    messageExpression: Text = ""
    reason: Literal["Unauthorized", "Forbidden", "Invalid", "RequestEntityTooLarge"] = "Invalid"


class Variable(_Strict, frozen=True):
    name: Annotated[str, msgspec.Meta(pattern="^[A-Za-z_][A-Za-z0-9_]{0,62}$")]
    expression: Text


class AuditAnnotation(_Strict, frozen=True):
    key: Word
    valueExpression: Text


class ParamKind(_Strict, frozen=True):
    apiVersion: Word
    kind: Word


class PolicySpec(_Strict, frozen=True):
    matchConstraints: Match
    validations: Annotated[list[Validation], msgspec.Meta(max_length=64)] = []
    auditAnnotations: Annotated[list[AuditAnnotation], msgspec.Meta(max_length=20)] = []
    matchConditions: Annotated[list[Condition], msgspec.Meta(max_length=64)] = []
    variables: Annotated[list[Variable], msgspec.Meta(max_length=32)] = []
    paramKind: ParamKind | None = None
    failurePolicy: Literal["Fail", "Ignore"] = "Fail"


class ParamRef(_Strict, frozen=True):
    """name: of a ConfigMap. namespace "": that of the object that is judged."""

    name: Word = ""
    namespace: Word = ""
    selector: Selector | None = None
    parameterNotFoundAction: Literal["Allow", "Deny"] | None = None


class BindingSpec(_Strict, frozen=True):
    policyName: Word
    validationActions: Annotated[list[Literal["Deny", "Warn", "Audit"]], msgspec.Meta(min_length=1)]
    paramRef: ParamRef | None = None
    matchResources: Match = Match()


S = TypeVar("S", PolicySpec, BindingSpec)


def read(obj: dict[str, Any], kind: type[S]) -> S:
    """The spec of an object. Raises msgspec.ValidationError."""
    return msgspec.convert(obj.get("spec") or {}, kind)


def policy_causes(obj: dict[str, Any]) -> Iterator[Cause]:
    """What is wrong with a ValidatingAdmissionPolicy."""
    try:
        spec = read(obj, PolicySpec)
    except msgspec.ValidationError as wrong:
        yield invalid("spec", "", str(wrong))
        return
    if not spec.matchConstraints.resourceRules:
        yield required("spec.matchConstraints.resourceRules")
    yield from _match_causes("spec.matchConstraints", spec.matchConstraints)
    if not spec.validations and not spec.auditAnnotations:
        yield required("spec.validations", "validations or auditAnnotations must be set")
    if spec.paramKind is not None and (spec.paramKind.apiVersion, spec.paramKind.kind) != ("v1", "ConfigMap"):
        yield not_supported(
            "spec.paramKind", f"{spec.paramKind.apiVersion} {spec.paramKind.kind}", ["v1 ConfigMap"]
        )
    names = [variable.name for variable in spec.variables]
    if len(set(names)) != len(names):
        yield invalid("spec.variables", names, "names must be unique")
    for field, text, returns in expressions(spec):
        try:
            Expression(text, returns).check_small()
        except ExpressionError as wrong:
            yield invalid(field, text, f"compilation failed: {wrong}")
    for i, validation in enumerate(spec.validations):
        if "\n" in validation.message:
            yield invalid(
                f"spec.validations[{i}].message", validation.message, "must not contain line breaks"
            )


def expressions(spec: PolicySpec) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(field, expression, types that it may have) of all that a policy evaluates."""
    for i, condition in enumerate(spec.matchConditions):
        yield f"spec.matchConditions[{i}].expression", condition.expression, ("BOOL",)
    for i, variable in enumerate(spec.variables):
        yield f"spec.variables[{i}].expression", variable.expression, ()
    for i, validation in enumerate(spec.validations):
        yield f"spec.validations[{i}].expression", validation.expression, ("BOOL",)
        if validation.messageExpression:
            yield f"spec.validations[{i}].messageExpression", validation.messageExpression, ("STRING",)
    for i, annotation in enumerate(spec.auditAnnotations):
        yield f"spec.auditAnnotations[{i}].valueExpression", annotation.valueExpression, ("STRING", "NULL")


def binding_causes(obj: dict[str, Any]) -> Iterator[Cause]:
    """What is wrong with a ValidatingAdmissionPolicyBinding."""
    try:
        spec = read(obj, BindingSpec)
    except msgspec.ValidationError as wrong:
        yield invalid("spec", "", str(wrong))
        return
    if not spec.policyName:
        yield required("spec.policyName")
    actions = spec.validationActions
    if len(set(actions)) != len(actions):
        yield invalid("spec.validationActions", actions, "each may be named once")
    if {DENY, WARN} <= set(actions):
        yield invalid("spec.validationActions", actions, "must not contain both Deny and Warn")
    ref = spec.paramRef
    if ref is not None:
        if ref.selector is not None:
            yield forbidden("spec.paramRef.selector", "this hub takes one ConfigMap, by name")
        elif not ref.name:
            yield required("spec.paramRef.name")
        if ref.parameterNotFoundAction is None:
            yield required("spec.paramRef.parameterNotFoundAction")
    yield from _match_causes("spec.matchResources", spec.matchResources)


def _match_causes(field: str, match: Match) -> Iterator[Cause]:
    for name in ("namespaceSelector", "objectSelector"):
        try:
            from_object(getattr(match, name))
        except ApiError as wrong:
            yield invalid(f"{field}.{name}", getattr(match, name), wrong.message)
    for part in ("resourceRules", "excludeResourceRules"):
        for i, rule in enumerate(getattr(match, part)):
            at = f"{field}.{part}[{i}]"
            for name in ("apiGroups", "apiVersions", "resources"):
                if not getattr(rule, name):
                    yield required(f"{at}.{name}")

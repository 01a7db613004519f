"""Label and field selectors: parsed once, matched many times. [pure]

Job: the query parameters labelSelector and fieldSelector, and LabelSelector objects, as immutable values with a fast
`matches`. Raises BadRequest with Kubernetes' words. Bounds: MAX_TEXT characters, MAX_TERMS requirements.

Source: the API concepts page on labels and selectors; a missing label satisfies `!=` and `notin`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hub.api.schema import Resource
from hub.errors import BadRequest

MAX_TEXT: Final = 16_384
MAX_TERMS: Final = 256
_TOKEN: Final = re.compile(r"\s*(==|!=|=|!|,|\(|\)|<|>|[^\s=!,()<>]+)")
_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_WORD: Final = re.compile(r"[^=!,()<>]+")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term. op: in, notin, exists, absent, gt, lt."""

    key: str
    op: str
    values: frozenset[str] = frozenset()
    bound: int = 0

    def matches(self, labels: Mapping[str, str]) -> bool:
        op = self.op
        if op == "in":
            return labels.get(self.key) in self.values
        if op == "notin":
            return labels.get(self.key) not in self.values
        if op == "exists":
            return self.key in labels
        if op == "absent":
            return self.key not in labels
        try:
            number = int(labels[self.key])
        except (KeyError, ValueError):
            return False
        return number > self.bound if op == "gt" else number < self.bound


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All requirements hold. `nothing`: matches no object (an absent LabelSelector)."""

    requirements: tuple[Requirement, ...] = ()
    nothing: bool = False

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        if self.nothing:
            return False
        held = labels or {}
        return all(r.matches(held) for r in self.requirements)

    @property
    def everything(self) -> bool:
        return not self.nothing and not self.requirements


EVERYTHING: Final = LabelSelector()
NOTHING: Final = LabelSelector(nothing=True)


class _Unparsable(Exception):
    pass


class _Parser:
    """Recursive descent over the tokens of a label selector's text."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            assert match is not None  # every non-blank character begins a token
            self.tokens.append(match[1])
            position = match.end()
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def parse(self) -> tuple[Requirement, ...]:
        out: list[Requirement] = []
        while self.peek():
            out.append(self.requirement())
            if len(out) > MAX_TERMS:
                raise _Unparsable(f"more than {MAX_TERMS} requirements")
            mark = self.take()
            if mark == "," and not self.peek():
                raise _Unparsable("found '', expected: identifier after ','")
            if mark not in ("", ","):
                raise _Unparsable(f"found '{mark}', expected: ',' or 'end of string'")
        return tuple(out)

    def requirement(self) -> Requirement:
        absent = self.peek() == "!"
        if absent:
            self.take()
        key = self.take()
        if not _WORD.fullmatch(key):
            raise _Unparsable(f"found '{key}', expected: identifier")
        _check_key(key)
        if absent:
            return Requirement(key, "absent")
        if self.peek() in ("", ","):
            return Requirement(key, "exists")
        return self.operation(key)

    def operation(self, key: str) -> Requirement:
        op = self.take()
        if op in ("=", "=="):
            return Requirement(key, "in", frozenset((self.value(),)))
        if op == "!=":
            return Requirement(key, "notin", frozenset((self.value(),)))
        if op in ("in", "notin"):
            return Requirement(key, op, self.values())
        if op in ("<", ">"):
            text = self.value()
            if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
                raise _Unparsable("for 'Gt', 'Lt' operators, the value must be an integer")
            return Requirement(key, "gt" if op == ">" else "lt", frozenset((text,)), int(text))
        raise _Unparsable(f"found '{op}', expected: in, notin, =, ==, !=, gt, lt")

    def value(self) -> str:
        if self.peek() in ("", ","):
            return ""
        value = self.take()
        if not _WORD.fullmatch(value):
            raise _Unparsable(f"found '{value}', expected: identifier")
        _check_value(value)
        return value

    def values(self) -> frozenset[str]:
        if (opening := self.take()) != "(":
            raise _Unparsable(f"found '{opening}' expected: '('")
        out = set()
        while True:
            if self.peek() in (",", ")"):
                out.add("")  # `in (,a)` names the empty value
            else:
                out.add(self.value())
            mark = self.take()
            if mark == ")":
                return frozenset(out)
            if mark != ",":
                raise _Unparsable(f"found '{mark}', expected: ',' or ')'")


def _check_key(key: str) -> None:
    prefix, slash, name = key.rpartition("/")
    if not _NAME.fullmatch(name) or (slash and (not _PREFIX.fullmatch(prefix) or len(prefix) > 253)):
        raise _Unparsable(
            f'key: Invalid value: "{key}": a qualified name is an optional DNS prefix and "/", then at most 63 '
            "alphanumeric characters, '-', '_' or '.'"
        )


def _check_value(value: str) -> None:
    if value and not _NAME.fullmatch(value):
        raise _Unparsable(
            f'values: Invalid value: "{value}": a valid label must be an empty string or consist of alphanumeric '
            "characters, '-', '_' or '.', and must start and end with an alphanumeric character, at most 63"
        )


def parse_labels(text: str) -> LabelSelector:
    """`app=web,tier in (a,b),!old`. Empty matches everything. Raises BadRequest."""
    if len(text) > MAX_TEXT:
        raise BadRequest(f"labelSelector: longer than {MAX_TEXT} characters")
    try:
        requirements = _Parser(text).parse()
    except _Unparsable as e:
        raise BadRequest(f"unable to parse requirement: {e}") from e
    return LabelSelector(requirements) if requirements else EVERYTHING


_OPERATORS: Final = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "absent"}


def from_object(selector: Mapping[str, Any] | None) -> LabelSelector:
    """A LabelSelector object (of a Deployment, say); None matches nothing, {} everything. Raises BadRequest."""
    if selector is None:
        return NOTHING
    out = [
        Requirement(key, "in", frozenset((value,)))
        for key, value in sorted(selector.get("matchLabels", {}).items())
    ]
    for term in selector.get("matchExpressions", ()):
        op = _OPERATORS.get(term.get("operator", ""))
        if op is None:
            raise BadRequest(f'"{term.get("operator", "")}" is not a valid label selector operator')
        out.append(Requirement(term.get("key", ""), op, frozenset(term.get("values", ()))))
    return LabelSelector(tuple(out)) if out else EVERYTHING


# --- fields ---------------------------------------------------------------------------------------------------------

Getter = Callable[[Mapping[str, Any]], str]


def _path(dotted: str) -> Getter:
    parts = dotted.split(".")

    def get(obj: Mapping[str, Any]) -> str:
        value: Any = obj
        for part in parts:
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, bool):
            return "true" if value else "false"
        return "" if value is None else str(value)

    return get


def _host_network(obj: Mapping[str, Any]) -> str:
    return "true" if obj.get("spec", {}).get("hostNetwork") else "false"


def _unschedulable(obj: Mapping[str, Any]) -> str:
    return "true" if obj.get("spec", {}).get("unschedulable") else "false"


def _pod_ip(obj: Mapping[str, Any]) -> str:
    status = obj.get("status", {})
    ips = status.get("podIPs") or [{"ip": status.get("podIP", "")}]
    return str(ips[0].get("ip", ""))


def _source(obj: Mapping[str, Any]) -> str:
    source = obj.get("source", {}).get("component") or obj.get("deprecatedSource", {}).get("component")
    return str(source or obj.get("reportingComponent") or obj.get("reportingController") or "")


def _involved(part: str) -> Getter:
    old, new = _path(f"involvedObject.{part}"), _path(f"regarding.{part}")
    return lambda obj: old(obj) or new(obj)


_EVENT_FIELDS: Final[dict[str, Getter]] = {
    **{
        f"involvedObject.{part}": _involved(part)
        for part in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
    },
    "reason": _path("reason"),
    "type": _path("type"),
    "reportingComponent": lambda obj: str(
        obj.get("reportingComponent") or obj.get("reportingController") or ""
    ),
    "source": _source,
}
_FIELDS: Final[dict[tuple[str, str], dict[str, Getter]]] = {
    ("", "pods"): {
        **{
            path: _path(path)
            for path in (
                "spec.nodeName",
                "spec.restartPolicy",
                "spec.schedulerName",
                "spec.serviceAccountName",
                "status.phase",
                "status.nominatedNodeName",
            )
        },
        "spec.hostNetwork": _host_network,
        "status.podIP": _pod_ip,
    },
    ("", "nodes"): {"spec.unschedulable": _unschedulable},
    ("", "namespaces"): {"status.phase": _path("status.phase")},
    ("", "secrets"): {"type": _path("type")},
    ("", "events"): _EVENT_FIELDS,
    ("events.k8s.io", "events"): {
        **_EVENT_FIELDS,
        **{f"regarding.{p}": _involved(p) for p in ("kind", "namespace", "name", "uid", "apiVersion")},
        "reportingController": _EVENT_FIELDS["reportingComponent"],
    },
    ("certificates.k8s.io", "certificatesigningrequests"): {"spec.signerName": _path("spec.signerName")},
    ("apps", "replicasets"): {"status.replicas": lambda obj: _path("status.replicas")(obj) or "0"},
}
_META_FIELDS: Final[dict[str, Getter]] = {
    "metadata.name": _path("metadata.name"),
    "metadata.namespace": _path("metadata.namespace"),
}


@dataclass(frozen=True, slots=True)
class FieldTerm:
    field: str
    value: str
    equal: bool
    get: Getter


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """All terms hold."""

    terms: tuple[FieldTerm, ...] = ()

    def matches(self, obj: Mapping[str, Any]) -> bool:
        return all((t.get(obj) == t.value) is t.equal for t in self.terms)

    def exact(self, field: str) -> str | None:
        """The one value that `field` must have, or None: for finding an object without a scan."""
        for term in self.terms:
            if term.field == field and term.equal:
                return term.value
        return None

    @property
    def everything(self) -> bool:
        return not self.terms


def _split_terms(text: str) -> list[str]:
    """At commas that no backslash precedes."""
    return [part for part in re.split(r"(?<!\\),", text) if part]


def _unknown_field(resource: Resource, field: str, known: Mapping[str, Getter]) -> str:
    if (resource.group, resource.plural) in _FIELDS:
        return f"field label not supported: {field}"
    names = ", ".join(f'"{name}"' for name in sorted(known))
    return f'"{field}" is not a known field selector: only {names}'


def parse_fields(resource: Resource, text: str) -> FieldSelector:
    """`spec.nodeName=a,status.phase!=Running`. Empty matches everything. Raises BadRequest, also for a field that the
    resource cannot be selected by."""
    if len(text) > MAX_TEXT:
        raise BadRequest(f"fieldSelector: longer than {MAX_TEXT} characters")
    known = _META_FIELDS | _FIELDS.get((resource.group, resource.plural), {})
    if not resource.namespaced:
        known = {k: v for k, v in known.items() if k != "metadata.namespace"}
    terms = []
    for part in _split_terms(text):
        match = re.match(r"([^=!]+)(!=|==|=)(.*)", part, re.DOTALL)
        if match is None:
            raise BadRequest(f"invalid selector: '{text}'; can't understand '{part}'")
        field, op, value = match[1].strip(), match[2], re.sub(r"\\([\\,=])", r"\1", match[3])
        get = known.get(field)
        if get is None:
            raise BadRequest(_unknown_field(resource, field, known))
        terms.append(FieldTerm(field, value, op != "!=", get))
        if len(terms) > MAX_TERMS:
            raise BadRequest(f"fieldSelector: more than {MAX_TERMS} terms")
    return FieldSelector(tuple(terms))

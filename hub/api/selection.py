"""Which objects a list, a watch or a deletecollection is about: scope, labels, fields. [pure]"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from hub import errors, objects
from hub.api.kinds import Kind
from hub.api.selectors import EVERYTHING, FieldSelector, LabelSelector, parse_fields, parse_labels
from hub.objects import Meta

_META_FIELDS: Final = frozenset(("metadata.name", "metadata.namespace"))
_POD_FIELDS: Final = _META_FIELDS | {"spec.nodeName", "spec.schedulerName", "status.phase"}


ANY_FIELDS: Final = FieldSelector()


class Selectable(Protocol):
    """A cached or stored object: an `Entry`, or a `Peek`."""

    @property
    def key(self) -> tuple[str, str]: ...

    @property
    def view(self) -> Any: ...

    @property
    def meta(self) -> Meta: ...

    def obj(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """`namespace` "" means all; `name` "" means any. `indexed`: the views hold every field that is asked for, so that
    matching needs no parse."""

    namespace: str = ""
    name: str = ""
    labels: LabelSelector = EVERYTHING
    fields: FieldSelector = ANY_FIELDS
    indexed: bool = True

    @property
    def everything(self) -> bool:
        """Does it select all that it covers?"""
        return self.labels.everything and self.fields.everything

    def covers(self, key: tuple[str, str]) -> bool:
        return (not self.namespace or key[0] == self.namespace) and (not self.name or key[1] == self.name)

    def accepts(self, entry: Selectable) -> bool:
        return self.covers(entry.key) and (self.everything or self.matches(entry))

    def matches(self, entry: Selectable) -> bool:
        """Do labels and fields match?"""
        if not self.labels.matches(entry.meta.labels):
            return False
        if self.fields.everything:
            return True
        return self.fields.matches(_fields(entry) if self.indexed else entry.obj())


def _fields(entry: Selectable) -> Mapping[str, Any]:
    """The selectable fields of a view, shaped like its object."""
    found: dict[str, Any] = {"metadata": {"name": entry.key[1], "namespace": entry.key[0]}}
    view = entry.view
    if isinstance(view, objects.PodView):
        found["spec"] = {"nodeName": view.spec.nodeName, "schedulerName": view.spec.schedulerName}
        found["status"] = {"phase": view.status.phase}
    return found


def exact_name(kind: Kind, query: Mapping[str, str]) -> str:
    """The one object that a list is restricted to, "" when it is not: what a rule with resourceNames may allow. By the same
    parse as the list itself: what is read otherwise there would let a request pass for one of that object."""
    try:
        return parse_fields(kind.schema, query.get("fieldSelector", "")).exact("metadata.name") or ""
    except errors.BadRequest:
        return ""  # refused later, when it is known that the request may be made


def parse(kind: Kind, namespace: str, name: str, query: Mapping[str, str]) -> Selection:
    """From the query parameters labelSelector and fieldSelector. Raises BadRequest."""
    labels = parse_labels(query.get("labelSelector", ""))
    fields = parse_fields(kind.schema, query.get("fieldSelector", ""))
    exact_name = fields.exact("metadata.name")
    exact_namespace = fields.exact("metadata.namespace")
    for asked, exact, what in ((name, exact_name, "name"), (namespace, exact_namespace, "namespace")):
        if asked and exact is not None and exact != asked and what == "name":
            raise errors.BadRequest("fieldSelector metadata.name doesn't match requested name")
    known = _POD_FIELDS if kind.res == objects.PODS else _META_FIELDS
    return Selection(
        namespace=namespace or (exact_namespace or ""),
        name=name or (exact_name or ""),
        labels=labels,
        fields=fields,
        indexed=all(term.field in known for term in fields.terms),
    )

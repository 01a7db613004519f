"""Rules for metadata, label selectors and other parts that every kind shares. [pure]"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from hub.api.selectors import from_object
from hub.api.validation import names
from hub.errors import Cause, duplicate, forbidden, invalid, not_supported, quote, required, too_long

Object = dict[str, Any]
Causes = Iterator[Cause]

ANNOTATIONS_BYTES_MAX: Final = 256 * 1024
FINALIZERS_SHOWN: Final = 10
IMMUTABLE: Final = "field is immutable"
NEGATIVE: Final = "must be greater than or equal to 0"
_STANDARD_FINALIZERS: Final = ("orphan", "foregroundDeletion", "kubernetes")


def each(field: str, value: str, check: names.Check) -> Causes:
    """One Invalid for each message of `check`."""
    for text in check(value):
        yield invalid(field, value, text)


def named(field: str, value: str | None, check: names.Check) -> Causes:
    """A required, well-formed name."""
    if not value:
        yield required(field)
    else:
        yield from each(field, value, check)


def one_of(field: str, value: str | None, allowed: tuple[str, ...]) -> Causes:
    if value is not None and value not in allowed:
        yield not_supported(field, value, allowed)


def nonnegative(field: str, value: int | None) -> Causes:
    if value is not None and value < 0:
        yield invalid(field, value, NEGATIVE)


def in_range(field: str, value: int | None, low: int, high: int) -> Causes:
    if value is not None and not low <= value <= high:
        yield invalid(field, value, f"must be between {low} and {high}, inclusive")


def labels(field: str, value: Mapping[str, str] | None) -> Causes:
    for key, text in (value or {}).items():
        yield from each(field, key, names.qualified_name)
        yield from each(field, text, names.label_value)


def annotation_map(field: str, value: Mapping[str, str] | None) -> Causes:
    size = 0
    for key, text in (value or {}).items():
        yield from each(field, key.lower(), names.qualified_name)
        size += len(key.encode()) + len(text.encode("utf-8", "surrogatepass"))
    if size > ANNOTATIONS_BYTES_MAX:
        yield too_long(field, ANNOTATIONS_BYTES_MAX)


def object_meta(meta: Object, *, namespaced: bool, name_check: names.Check) -> Causes:
    """Everything in metadata that is wrong at a create and at an update."""
    generate = meta.get("generateName", "")
    if generate:
        # What is generated ends in a letter or digit, so a dash at the end of the base is fine.
        base = generate[:-1] + "a" if generate.endswith("-") else generate
        for text in name_check(base):
            yield invalid("metadata.generateName", generate, text)
    if not meta.get("name"):
        yield required("metadata.name", "name or generateName is required")
    else:
        yield from each("metadata.name", meta["name"], name_check)
    namespace = meta.get("namespace", "")
    if namespaced:
        yield from named("metadata.namespace", namespace, names.dns_label)
    elif namespace:
        yield forbidden("metadata.namespace", "not allowed on this type")
    yield from nonnegative("metadata.generation", meta.get("generation"))
    yield from labels("metadata.labels", meta.get("labels"))
    yield from annotation_map("metadata.annotations", meta.get("annotations"))
    yield from _owners(meta.get("ownerReferences", []))
    yield from _finalizers(meta.get("finalizers", []))


def _owners(owners: list[Object]) -> Causes:
    controller = ""
    for i, owner in enumerate(owners):
        path = f"metadata.ownerReferences[{i}]"
        if not owner.get("apiVersion"):
            yield invalid(path + ".apiVersion", "", "version must not be empty")
        for field in ("kind", "name", "uid"):
            if not owner.get(field):
                yield invalid(f"{path}.{field}", "", "must not be empty")
        if owner.get("apiVersion") == "v1" and owner.get("kind") == "Event":
            yield invalid(path, owner, "/v1, Kind=Event is disallowed from being an owner")
        if owner.get("controller"):
            if controller:
                yield invalid(
                    "metadata.ownerReferences",
                    owners,
                    'Only one reference can have Controller set to true. Found "true" in references for '
                    f"{controller} and {owner.get('name', '')}",
                )
            controller = owner.get("name", "") or "an unnamed owner"


def _finalizers(finalizers: list[str]) -> Causes:
    for name in finalizers:
        yield from each("metadata.finalizers", name, names.qualified_name)
        if "/" not in name and name not in _STANDARD_FINALIZERS:
            yield invalid(
                "metadata.finalizers",
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            )
    if "orphan" in finalizers and "foregroundDeletion" in finalizers:
        text = "finalizer orphan and foregroundDeletion cannot be both set"
        yield invalid("metadata.finalizers", finalizers, text)


def object_meta_update(new: Object, old: Object) -> Causes:
    """What an update must not change in metadata."""
    if old.get("deletionTimestamp"):
        fresh = sorted(set(new.get("finalizers", [])) - set(old.get("finalizers", [])))
        if fresh:
            shown = ", ".join(quote(f) for f in fresh[:FINALIZERS_SHOWN])
            yield forbidden(
                "metadata.finalizers",
                "no new finalizers can be added if the object is being deleted, found new finalizers "
                f"[]string{{{shown}}}",
            )
    if not new.get("resourceVersion"):
        yield invalid(
            "metadata.resourceVersion", new.get("resourceVersion", ""), "must be specified for an update"
        )
    if new.get("generation", 0) < old.get("generation", 0):
        yield invalid("metadata.generation", new.get("generation", 0), "must not be decremented")
    for field in ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp"):
        yield from immutable(f"metadata.{field}", new.get(field), old.get(field))
    field = "deletionGracePeriodSeconds"
    yield from immutable(f"metadata.{field}", new.get(field), old.get(field))


def immutable(field: str, new: Any, old: Any) -> Causes:
    if new != old:
        yield invalid(field, new, IMMUTABLE)


def label_selector(field: str, selector: Object) -> Causes:
    """A LabelSelector object."""
    yield from labels(f"{field}.matchLabels", selector.get("matchLabels"))
    for i, term in enumerate(selector.get("matchExpressions", [])):
        path = f"{field}.matchExpressions[{i}]"
        operator, values = term.get("operator"), term.get("values", [])
        if operator in ("In", "NotIn"):
            if not values:
                yield required(path + ".values", "must be specified when `operator` is 'In' or 'NotIn'")
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                yield forbidden(path + ".values", text)
        else:
            yield invalid(path + ".operator", operator or "", "not a valid selector operator")
        yield from each(path + ".key", term.get("key", ""), names.qualified_name)
        for j, value in enumerate(values):
            yield from each(f"{path}.values[{j}]", value, names.label_value)


def selects(selector: Object, held: Mapping[str, str] | None) -> bool:
    """Whether a valid LabelSelector object matches the labels."""
    return from_object(selector).matches(held)


def unique(field: str, values: list[str]) -> Causes:
    """`field` has `{}` where the index goes."""
    seen = set()
    for i, value in enumerate(values):
        if value in seen:
            yield duplicate(field.format(i), value)
        seen.add(value)


def int_or_percent(field: str, value: int | str | None) -> Causes:
    if isinstance(value, str):
        bad = names.percent(value)
        for text in bad:
            yield invalid(field, value, text)
        if not bad and int(value[:6].rstrip("%")) > 100 and field.endswith("maxUnavailable"):
            yield invalid(field, value, "must not be greater than 100%")
    elif value is not None:
        yield from nonnegative(field, value)

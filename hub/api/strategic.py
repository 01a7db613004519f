"""Strategic merge: a merge patch that knows the schema. [pure]

Job: merge objects field by field, and lists by their merge key or as sets where the schema says so, obeying the
directives `$patch`, `$retainKeys`, `$setElementOrder/<field>` and `$deleteFromPrimitiveList/<field>`. Invariant: the
original is not changed and no directive is left in the result.

Order of a merged list: the patch's own elements keep the order that the patch (or $setElementOrder) gives them, the
others keep the original's; where the original ordered both, that order decides, else the patch's element goes first.

Source: the Kubernetes contributors' page on strategic merge patch.
"""

from __future__ import annotations

from typing import Any, Final

from hub.api import schema
from hub.api.schema import Node

_PATCH: Final = "$patch"
_RETAIN: Final = "$retainKeys"
_ORDER: Final = "$setElementOrder/"
_DELETE: Final = "$deleteFromPrimitiveList/"

Object = dict[str, Any]


class BadPatch(Exception):
    """The patch is not well formed; the text says why."""


def _field(node: Node | None, name: str) -> Node | None:
    """The type of a field; None where the schema does not say (such fields merge as in RFC 7386)."""
    if node is None:
        return None
    if node.kind == "struct":
        return schema.struct(node.ref).fields.get(name)
    return node.elem if node.kind == "map" else None


def merge_object(original: Object, patch: Object, node: Node | None) -> Object:
    """`original` with `patch` merged into it. Raises BadPatch."""
    directive = patch.get(_PATCH)
    if directive == "replace":
        return {k: _stripped(v) for k, v in patch.items() if v is not None and not k.startswith("$")}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise BadPatch(f"unknown patch type: {directive}")
    out = _retained(original, patch)
    ordered: set[str] = set()
    for key, value in patch.items():
        if key.startswith(_DELETE):
            name = key[len(_DELETE) :]
            if not isinstance(value, list):
                raise BadPatch("invalid patch format of primitive list")
            if isinstance(out.get(name), list):
                gone = {_key(item, "") for item in value}
                out[name] = [item for item in out[name] if _key(item, "") not in gone]
    for key, value in patch.items():
        if key.startswith(_ORDER):
            name = key[len(_ORDER) :]
            ordered.add(name)
            _set_order(out, name, patch.get(name), value, _field(node, name))
    for key, value in patch.items():
        if key in (_PATCH, _RETAIN) or key.startswith((_ORDER, _DELETE)) or key in ordered:
            continue
        if value is None:
            out.pop(key, None)
        else:
            out[key] = _merge_value(out.get(key), value, _field(node, key))
    return out


def _merge_value(original: Any, patch: Any, node: Node | None) -> Any:
    if isinstance(patch, dict):
        return merge_object(original if isinstance(original, dict) else {}, patch, node)
    if isinstance(patch, list):
        if node is not None and node.merge:
            return _merge_list(original if isinstance(original, list) else [], patch, node)
        return _stripped(patch)
    return patch


def _stripped(value: Any) -> Any:
    """A value taken over as it is: without directives, and without nulls in objects."""
    if isinstance(value, dict):
        return {
            k: _stripped(v)
            for k, v in value.items()
            if v is not None and k not in (_PATCH, _RETAIN) and not k.startswith((_ORDER, _DELETE))
        }
    if isinstance(value, list):
        return [
            _stripped(item)
            for item in value
            if not (isinstance(item, dict) and item.get(_PATCH) in ("delete", "replace"))
        ]
    return value


def _retained(original: Object, patch: Object) -> Object:
    """A copy of the original, without what $retainKeys does not name."""
    if _RETAIN not in patch:
        return dict(original)
    keep = patch[_RETAIN]
    if not isinstance(keep, list) or not all(isinstance(name, str) for name in keep):
        raise BadPatch("invalid patch format of retainKeys")
    given = [k for k, v in patch.items() if v is not None and not k.startswith("$")]
    if any(name not in keep for name in given):
        raise BadPatch("patch content doesn't match retainKeys list")
    return {k: v for k, v in original.items() if k in keep}


def _key(item: Any, merge_key: str) -> Any:
    """What identifies a list element: its merge key's value, or the element itself in a set."""
    if not merge_key:
        if isinstance(item, (dict, list)):
            raise BadPatch("lists of lists are not supported" if isinstance(item, list) else _PRIMITIVES)
        return item
    if not isinstance(item, dict):
        raise BadPatch(f"expected a map in a list merged by {merge_key}")
    if item.get(merge_key) is None:
        raise BadPatch(f"map: {item} does not contain declared merge key: {merge_key}")
    value = item[merge_key]
    if isinstance(value, (dict, list)):
        raise BadPatch(f"the merge key {merge_key} must not be an object or a list")
    return value


_PRIMITIVES: Final = "expected primitive values in a list merged as a set"


def _merge_list(original: list[Any], patch: list[Any], node: Node) -> list[Any]:
    merged, wanted = _merged_elements(original, patch, node)
    return _arrange(merged, wanted, original, node.merge_key)


def _merged_elements(original: list[Any], patch: list[Any], node: Node) -> tuple[list[Any], list[Any]]:
    """(the elements in no particular order, the keys that the patch gives in its order)."""
    merge_key = node.merge_key
    if merge_key and any(isinstance(item, dict) and item.get(_PATCH) == "replace" for item in patch):
        kept = [i for i in patch if not (isinstance(i, dict) and i.get(_PATCH) == "replace" and len(i) == 1)]
        replaced = [_stripped(item) for item in kept]
        return replaced, [_key(item, merge_key) for item in replaced]
    merged: dict[Any, Any] = {}  # in the original's order; what has no key stays, under a key of its own
    for i, held in enumerate(original):
        key = _held_key(held, merge_key)
        merged[(i,) if key is None or key in merged else key] = held
    wanted: list[Any] = []
    for item in patch:
        key = _key(item, merge_key)
        if not merge_key:
            merged.setdefault(key, item)
        elif item.get(_PATCH) == "delete":
            merged.pop(key, None)
            continue
        else:
            merged[key] = merge_object(merged.get(key, {}), item, node.elem)
        wanted.append(key)
    return list(merged.values()), wanted


def _held_key(item: Any, merge_key: str) -> Any:
    """As `_key`, for what is stored: an element without the key matches nothing."""
    if not merge_key:
        return item
    return item.get(merge_key) if isinstance(item, dict) else None


def _set_order(out: Object, name: str, patch: Any, order: Any, node: Node | None) -> None:
    """$setElementOrder/<name>: merges the patch's list, if any, then puts all into the given order."""
    if node is None or not node.merge or not isinstance(order, list):
        raise BadPatch("invalid patch format of setElementOrder list")
    wanted = [_key(item, node.merge_key) for item in order]
    original = out.get(name)
    original = original if isinstance(original, list) else []
    if patch is None:
        merged = list(original)
    elif isinstance(patch, list):
        _check_order(patch, wanted, name, node.merge_key)
        merged, _ = _merged_elements(original, patch, node)
    else:
        raise BadPatch(f"expected a list for {name}")
    if name in out or merged:
        out[name] = _arrange(merged, wanted, original, node.merge_key)


def _check_order(patch: list[Any], wanted: list[Any], name: str, merge_key: str) -> None:
    """The patch's elements must come in the order that the directive names."""
    given = [
        _key(item, merge_key)
        for item in patch
        if not (isinstance(item, dict) and item.get(_PATCH) in ("delete", "replace"))
    ]
    remaining = iter(wanted)
    if not all(any(key == held for held in remaining) for key in given):
        raise BadPatch(f"The order in patch list:\n{given}\n doesn't match {_ORDER}{name} list:\n{wanted}\n")


def _arrange(merged: list[Any], wanted: list[Any], original: list[Any], merge_key: str) -> list[Any]:
    """Interleaves the elements that the patch names with the others; see the module's docstring."""
    rank = {key: i for i, key in reversed(list(enumerate(wanted)))}
    before = {_held_key(item, merge_key): i for i, item in reversed(list(enumerate(original)))}
    named = [item for item in merged if _held_key(item, merge_key) in rank]
    named.sort(key=lambda item: rank[_held_key(item, merge_key)])
    others = [item for item in merged if _held_key(item, merge_key) not in rank]
    out: list[Any] = []
    i = j = 0
    while i < len(others) and j < len(named):
        left = before.get(_held_key(others[i], merge_key))
        right = before.get(_held_key(named[j], merge_key))
        if left is not None and right is not None and left < right:
            out.append(others[i])
            i += 1
        else:
            out.append(named[j])
            j += 1
    return out + others[i:] + named[j:]

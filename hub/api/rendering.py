"""Objects, lists and watch events as bytes, in the representation that was asked for. [pure]

Invariant: what is sent whole is the stored bytes with the resourceVersion spliced in; only tables, metadata-only
answers and YAML decode an object.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson
import yaml

from hub import errors, objects
from hub.api import tables
from hub.api.kinds import Kind, Object
from hub.api.negotiation import META_GROUP, YAML, Representation
from hub.jointokens import conceal

LIST_TAIL: Final = b"]}\n"
INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"


def encode(value: Any) -> bytes:
    """JSON. Raises BadRequest for text that UTF-8 cannot hold, which can only come from a client."""
    try:
        return orjson.dumps(value)
    except TypeError as bad:
        raise errors.BadRequest(f"the object cannot be written as JSON: {bad}") from bad


def to_yaml(value: Any) -> bytes:
    return yaml.dump(value, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class View:
    """A kind in one representation. `include`: what a table's rows carry of their object. Hashable, so that watchers
    with equal views share their bytes."""

    kind: Kind
    form: Representation
    include: str = "Metadata"

    @property
    def content_type(self) -> str:
        return self.form.media

    def one(self, raw: bytes, revision: int, now: float) -> bytes:
        """One object as a whole answer."""
        if self.form.form == "Object" and self.form.media != YAML:
            return self._item(raw, revision)
        obj = self._decode(raw, revision)
        return self.answer(self._table([obj], str(revision), now) if self._is_table else self._shape(obj))

    def answer(self, value: Object) -> bytes:
        """An object that is not (yet) stored, or any other document."""
        return to_yaml(value) if self.form.media == YAML else encode(value)

    def created(self, obj: Object, now: float) -> bytes:
        """As `one`, of a dict."""
        if self._is_table:
            return self.answer(self._table([obj], obj["metadata"].get("resourceVersion", ""), now))
        return self.answer(self._shape(obj))

    # -- lists --------------------------------------------------------------------------------------------------

    def list_head(self, revision: int, token: str, now: float, *, remaining: int | None = None) -> bytes:
        """A list up to its first item. `list_items` and `LIST_TAIL` complete it."""
        meta: Object = {"resourceVersion": str(revision)}
        if token:
            meta["continue"] = token
        if remaining is not None:
            meta["remainingItemCount"] = remaining
        if self._is_table:
            head = self._table([], "", now) | {"metadata": meta}
            head.pop("rows")
            return encode(head)[:-1] + b',"rows":['
        if self.form.form == "PartialObjectMetadata":
            head = {
                "kind": "PartialObjectMetadataList",
                "apiVersion": f"{META_GROUP}/{self.form.version}",
                "metadata": meta,
            }
        else:
            head = {
                "kind": self.kind.schema.list_kind,
                "apiVersion": self.kind.res.api_version,
                "metadata": meta,
            }
        return encode(head)[:-1] + b',"items":['

    def list_items(self, items: Iterable[tuple[bytes, int]], now: float) -> bytes:
        """Some items, comma separated, from their (stored bytes, revision)."""
        if self._is_table:
            return b",".join(encode(self._row(self._decode(raw, rev), now)) for raw, rev in items)
        if self.form.form == "PartialObjectMetadata":
            return b",".join(encode(self._shape(self._decode(raw, rev))) for raw, rev in items)
        return b",".join(self._item(raw, rev) for raw, rev in items)

    # -- watch events -------------------------------------------------------------------------------------------

    def event(self, event: str, raw: bytes, revision: int, now: float, *, columns: bool = True) -> bytes:
        """One watch event with its newline. `columns`: whether a table's event repeats the column definitions."""
        if self.form.form == "Object":
            body = self._item(raw, revision)
        elif self._is_table:
            body = encode(self._table([self._decode(raw, revision)], str(revision), now, columns=columns))
        else:
            body = encode(self._shape(self._decode(raw, revision)))
        return b'{"type":"%b","object":%b}\n' % (event.encode(), body)

    def bookmark(self, revision: int, *, initial_end: bool = False) -> bytes:
        """Progress: everything through `revision` has been sent."""
        meta: Object = {"resourceVersion": str(revision), "creationTimestamp": None}
        if initial_end:
            meta["annotations"] = {INITIAL_EVENTS_END: "true"}
        if self._is_table:
            obj: Object = self._table([], str(revision), 0.0, columns=False)
            if initial_end:
                marked = {
                    "kind": self.kind.res.kind,
                    "apiVersion": self.kind.res.api_version,
                    "metadata": meta,
                }
                obj["rows"] = [{"cells": [], "object": marked}]
        elif self.form.form == "PartialObjectMetadata":
            obj = self._shape({"metadata": meta})
        else:
            obj = {"kind": self.kind.res.kind, "apiVersion": self.kind.res.api_version, "metadata": meta}
        return encode({"type": "BOOKMARK", "object": obj}) + b"\n"

    # -- parts --------------------------------------------------------------------------------------------------

    @property
    def _is_table(self) -> bool:
        return self.form.form == "Table"

    def _item(self, raw: bytes, revision: int) -> bytes:
        if self.kind.res == objects.JOINTOKENS:
            return encode(self._decode(raw, revision))
        return self.kind.encode(raw, revision)

    def _decode(self, raw: bytes, revision: int) -> Object:
        obj = self.kind.decode(raw, revision)
        return conceal(obj) if self.kind.res == objects.JOINTOKENS else obj

    def _shape(self, obj: Object) -> Object:
        if self.form.form != "PartialObjectMetadata":
            return obj
        return {
            "kind": "PartialObjectMetadata",
            "apiVersion": f"{META_GROUP}/{self.form.version}",
            "metadata": obj["metadata"],
        }

    def _table(self, objs: list[Object], revision: str, now: float, *, columns: bool = True) -> Object:
        return tables.table(
            self.kind.schema,
            objs,
            now=now,
            include=self.include,
            list_meta={"resourceVersion": revision},
            columns=columns,
            version=self.form.version,
        )

    def _row(self, obj: Object, now: float) -> Object:
        return tables.row(self.kind.schema, obj, now=now, include=self.include, version=self.form.version)


def view(kind: Kind, form: Representation, include: str) -> View:
    """Checks the parameter includeObject. Raises BadRequest."""
    if include and include not in tables.INCLUDE:
        raise errors.BadRequest(
            f"includeObject: Invalid value: {errors.quote(include[:64])}: must be 'Metadata', 'Object', 'None', or empty"
        )
    return View(kind, form, include or "Metadata")

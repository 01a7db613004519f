"""Pod specs that were decoded, completed and found valid of late: whoever creates the same pod on many nodes has it looked at
once. [pure]

What becomes of a spec depends on nothing but its own bytes, the label that says whether its containers need images, and this
program; its node's name, which is what differs, is left out and looked at each time. Decoding and judging a small Pod takes
0.2 ms, finding it here a tenth.

Bounds: SPECS_MAX specs of at most SPEC_BYTES_MAX; those unused longest go first. A spec about which anything is to be said to
its client is not kept.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import orjson

from hub.api.validation.pods import RUNTIME_LABEL

SPECS_MAX: Final = 256
SPEC_BYTES_MAX: Final = 16 << 10
NODE_NAME: Final = "nodeName"

Object = dict[str, Any]
Key = tuple[bytes, bool]


class PodSpecs:
    """See the module."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def key(self, value: Any) -> Key | None:
        """Of a Pod as its client sent it. None: it has to be looked at."""
        if type(value) is not dict:
            return None
        spec, meta = value.get("spec"), value.get("metadata")
        labels = meta.get("labels") if isinstance(meta, dict) else None
        # A dict of another type is one in which a name was given twice, of which the client is told.
        if type(spec) is not dict or not isinstance(spec.get(NODE_NAME, ""), str):
            return None
        rest = {field: part for field, part in spec.items() if field != NODE_NAME}
        try:
            text = orjson.dumps(rest, option=orjson.OPT_PASSTHROUGH_SUBCLASS)
        except TypeError:
            return None
        if len(text) > SPEC_BYTES_MAX or b"null" in text:
            return None
        return text, isinstance(labels, Mapping) and labels.get(RUNTIME_LABEL) == "process"

    def get(self, key: Key | None, value: Object) -> Object | None:
        """What the spec of `value`, whose key this is, becomes: a dict of the caller's. None: it is not known."""
        known = self._known.get(key) if key is not None else None
        if key is None or known is None:
            return None
        self._known.move_to_end(key)
        spec: Object = orjson.loads(known)
        if NODE_NAME in value["spec"]:
            spec[NODE_NAME] = value["spec"][NODE_NAME]
        return spec

    def put(self, key: Key, spec: Object) -> None:
        """`spec` is what became of it."""
        if key in self._known:
            return
        self._known[key] = orjson.dumps({field: part for field, part in spec.items() if field != NODE_NAME})
        while len(self._known) > SPECS_MAX:
            self._known.popitem(last=False)

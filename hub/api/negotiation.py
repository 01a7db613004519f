"""Which form an answer takes: the Accept header. [pure]

An object can be asked for whole, as a Table for printing, or as its metadata alone, in JSON or YAML. What else is
listed (protobuf, CBOR) is passed over in favour of the next; if nothing is left the answer is 406.

Source: the Kubernetes API concepts, "Resource representations" and "Alternate representations".
"""

import functools
from dataclasses import dataclass
from typing import Final, Literal

from hub import errors

Form = Literal["Object", "Table", "PartialObjectMetadata"]

JSON: Final = "application/json"
YAML: Final = "application/yaml"
META_GROUP: Final = "meta.k8s.io"
DISCOVERY_GROUP: Final = "apidiscovery.k8s.io"
_ANY: Final = ("*/*", "application/*", JSON)
_CLAUSES_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class Representation:
    """`version` is that of the alternate form's group: v1 or v1beta1 for tables, v2 or v2beta1 for discovery."""

    form: Form = "Object"
    media: str = JSON
    version: str = "v1"


OBJECT: Final = Representation()


@dataclass(frozen=True, slots=True)
class Clause:
    """One alternative of an Accept header."""

    media: str
    quality: float
    params: dict[str, str]


def clauses(accept: str) -> list[Clause]:
    """The alternatives, best first; equal ones in the order given. Malformed parameters are left out."""
    found: list[Clause] = []
    for text in accept.split(",")[:_CLAUSES_MAX]:
        media, *parts = (part.strip() for part in text.split(";"))
        if not media:
            continue
        params = dict(part.split("=", 1) for part in parts if "=" in part)
        try:
            quality = float(params.pop("q", "1"))
        except ValueError:
            quality = 0.0
        found.append(Clause(media.lower(), quality, params))
    return sorted((c for c in found if c.quality > 0), key=lambda c: -c.quality)


@functools.lru_cache(maxsize=256)
def representation(accept: str, *, is_list: bool) -> Representation:
    """The form of an answer that holds one object (or a watch's events), or a list. Raises NotAcceptable."""
    if not accept.strip():
        return OBJECT
    for clause in clauses(accept):
        media = JSON if clause.media in _ANY else clause.media
        if media not in (JSON, YAML):
            continue
        wanted = clause.params.get("as", "")
        if not wanted:
            return Representation("Object", media)
        if clause.params.get("g") != META_GROUP or clause.params.get("v") not in ("v1", "v1beta1"):
            continue
        version = clause.params["v"]
        if wanted == "Table":
            return Representation("Table", media, version)
        if wanted == ("PartialObjectMetadataList" if is_list else "PartialObjectMetadata"):
            return Representation("PartialObjectMetadata", media, version)
    raise errors.NotAcceptable([JSON, YAML])


@functools.lru_cache(maxsize=64)
def discovery_version(accept: str) -> str:
    """`v2` or `v2beta1` when aggregated discovery is asked for before the plain one, else ``. Raises NotAcceptable."""
    if not accept.strip():
        return ""
    for clause in clauses(accept):
        if clause.media not in _ANY:
            continue
        if "as" not in clause.params:
            return ""
        version = clause.params.get("v", "")
        known = clause.params["as"] == "APIGroupDiscoveryList" and clause.params.get("g") == DISCOVERY_GROUP
        if known and version in ("v2", "v2beta1"):
            return version
    raise errors.NotAcceptable([JSON])


def accepts_yaml_first(accept: str) -> bool:
    """For documents that have no alternate forms."""
    for clause in clauses(accept):
        if clause.media in _ANY:
            return False
        if clause.media == YAML:
            return True
    return False

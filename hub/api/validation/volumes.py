"""Rules for volumes. [pure]"""

from __future__ import annotations

from typing import Final

from hub.api.validation import names
from hub.api.validation.containers import VOLUME_FIELD_PATHS, field_ref, resource_field_ref
from hub.api.validation.meta import Causes, Object, each, named, one_of
from hub.errors import duplicate, forbidden, invalid, required

_HOST_PATH_TYPES: Final = (
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
)
_MODE: Final = "must be a number between 0 and 0777 (octal), both inclusive"


def volumes(path: str, values: list[Object]) -> Causes:
    seen = set()
    for i, volume in enumerate(values):
        at = f"{path}[{i}]"
        name = volume.get("name")
        yield from named(at + ".name", name, names.dns_label)
        if name in seen:
            yield duplicate(at + ".name", name)
        seen.add(name)
        yield from _source(at, {k: v for k, v in volume.items() if k != "name"})


def _source(path: str, sources: Object) -> Causes:
    if not sources:
        yield required(path, "must specify a volume type")
    for extra in list(sources)[1:]:
        yield forbidden(f"{path}.{extra}", "may not specify more than 1 volume type")
    for kind, value in list(sources.items())[:1]:
        at = f"{path}.{kind}"
        if kind == "hostPath":
            yield from _host_path(at, value)
        elif kind == "configMap":
            yield from named(at + ".name", value.get("name"), names.dns_subdomain)
            yield from _files(at, value)
        elif kind == "secret":
            yield from named(at + ".secretName", value.get("secretName"), names.dns_subdomain)
            yield from _files(at, value)
        elif kind == "downwardAPI":
            yield from _mode(at + ".defaultMode", value.get("defaultMode"))
            yield from _downward(at, value)
        elif kind == "projected":
            yield from _projected(at, value)
        elif kind == "emptyDir" and value.get("sizeLimit", "0").startswith("-"):
            yield forbidden(at + ".sizeLimit", "SizeLimit field must be a valid resource quantity")
        elif kind == "persistentVolumeClaim":
            yield from named(at + ".claimName", value.get("claimName"), names.dns_subdomain)


def _host_path(path: str, value: Object) -> Causes:
    target = value.get("path", "")
    if not target:
        yield required(path + ".path")
    elif ".." in target.split("/"):
        yield invalid(path + ".path", target, "must not contain '..'")
    yield from one_of(path + ".type", value.get("type"), _HOST_PATH_TYPES)


def _mode(path: str, mode: int | None) -> Causes:
    if mode is not None and not 0 <= mode <= 0o777:
        yield invalid(path, mode, _MODE)


def _files(path: str, value: Object) -> Causes:
    """The items of a configMap or secret source."""
    yield from _mode(path + ".defaultMode", value.get("defaultMode"))
    for i, item in enumerate(value.get("items", [])):
        at = f"{path}.items[{i}]"
        if not item.get("key"):
            yield required(at + ".key")
        yield from _file(at, item)


def _file(path: str, item: Object) -> Causes:
    target = item.get("path", "")
    if not target:
        yield required(path + ".path")
    yield from each(path + ".path", target, names.relative_path)
    if target.startswith("..") and not target.startswith("../") and target != "..":
        yield invalid(path + ".path", target, "must not start with '..'")
    yield from _mode(path + ".mode", item.get("mode"))


def _downward(path: str, value: Object) -> Causes:
    for i, item in enumerate(value.get("items", [])):
        at = f"{path}.items[{i}]"
        yield from _file(at, item)
        if "fieldRef" in item and "resourceFieldRef" in item:
            text = "fieldRef and resourceFieldRef can not be specified simultaneously"
            yield invalid(at, "resource", text)
        elif "fieldRef" in item:
            yield from field_ref(at + ".fieldRef", item["fieldRef"], VOLUME_FIELD_PATHS)
        elif "resourceFieldRef" in item:
            if not item["resourceFieldRef"].get("containerName"):
                yield required(at + ".resourceFieldRef.containerName")
            yield from resource_field_ref(at + ".resourceFieldRef", item["resourceFieldRef"])
        else:
            yield required(at, "one of fieldRef and resourceFieldRef is required")


def _projected(path: str, value: Object) -> Causes:
    yield from _mode(path + ".defaultMode", value.get("defaultMode"))
    for i, source in enumerate(value.get("sources", [])):
        at = f"{path}.sources[{i}]"
        if not source:
            yield required(at, "must specify a projected volume type")
        for extra in list(source)[1:]:
            yield forbidden(f"{at}.{extra}", "may not specify more than 1 volume type")
        for kind in ("configMap", "secret"):
            if kind in source:
                yield from named(f"{at}.{kind}.name", source[kind].get("name"), names.dns_subdomain)
                yield from _files(f"{at}.{kind}", source[kind])
        if "downwardAPI" in source:
            yield from _downward(at + ".downwardAPI", source["downwardAPI"])
        token = source.get("serviceAccountToken")
        if token is not None and not token.get("path"):
            yield required(at + ".serviceAccountToken.path")

"""Rules for ConfigMap, Secret, Namespace, Node, Event, Lease, JoinToken, Revocation and Device. [pure]"""

from __future__ import annotations

import base64
import re
from typing import Final

import msgspec

from edgelite import devices
from hub.api import quantity
from hub.api.validation import names
from hub.api.validation.meta import (
    NEGATIVE,
    Causes,
    Object,
    each,
    immutable,
    in_range,
    nonnegative,
    one_of,
    unique,
)
from hub.errors import duplicate, forbidden, invalid, required, too_long
from security import join
from security.revocation import KINDS, REASON_CHARS_MAX
from security.serials import serial_text

DATA_BYTES_MAX: Final = 1024 * 1024
_REDACTED: Final = "<secret contents redacted>"
_FROZEN: Final = "field is immutable when `immutable` is set"
_EFFECTS: Final = ("NoExecute", "NoSchedule", "PreferNoSchedule")
_SECRET_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}


def _size(encoded: str) -> int:
    """Bytes behind standard base64."""
    return len(encoded) // 4 * 3 - encoded[-2:].count("=")


def config_map(obj: Object) -> Causes:
    data, binary = obj.get("data", {}), obj.get("binaryData", {})
    total = 0
    for key, text in data.items():
        yield from each(f"data[{key}]", key, names.config_key)
        if key in binary:
            yield invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
        total += len(text.encode("utf-8", "surrogatepass"))
    for key, encoded in binary.items():
        yield from each(f"binaryData[{key}]", key, names.config_key)
        total += _size(encoded)
    if total > DATA_BYTES_MAX:
        yield too_long("", DATA_BYTES_MAX)


def secret(obj: Object) -> Causes:
    data = obj.get("data", {})
    total = 0
    for key, encoded in data.items():
        yield from each(f"data[{key}]", key, names.config_key)
        total += _size(encoded)
    if total > DATA_BYTES_MAX:
        yield too_long("data", DATA_BYTES_MAX)
    kind = obj.get("type", "Opaque")
    for key in _SECRET_KEYS.get(kind, ()):
        if key not in data:
            yield required(f"data[{key}]")
        elif key.startswith(".docker") and not _is_json_object(data[key]):
            yield invalid(f"data[{key}]", _REDACTED, "must be a JSON object")
    if kind == "kubernetes.io/basic-auth" and not {"username", "password"} & data.keys():
        yield required("data[username]")
        yield required("data[password]")
    account = "kubernetes.io/service-account.name"
    held = obj.get("metadata", {}).get("annotations", {})
    if kind == "kubernetes.io/service-account-token" and not held.get(account):
        yield required(f"metadata.annotations[{account}]")


def _is_json_object(encoded: str) -> bool:
    try:
        msgspec.json.decode(base64.b64decode(encoded), type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


def _frozen(new: Object, old: Object, fields: tuple[str, ...]) -> Causes:
    if not old.get("immutable"):
        return
    if not new.get("immutable"):
        yield forbidden("immutable", _FROZEN)
    for field in fields:
        if new.get(field, {}) != old.get(field, {}):
            yield forbidden(field, _FROZEN)


def config_map_update(new: Object, old: Object) -> Causes:
    yield from _frozen(new, old, ("data", "binaryData"))


def secret_update(new: Object, old: Object) -> Causes:
    yield from immutable("type", new.get("type"), old.get("type"))
    yield from _frozen(new, old, ("data",))


def namespace(obj: Object) -> Causes:
    for name in obj.get("spec", {}).get("finalizers", []):
        yield from each("spec.finalizers", name, names.qualified_name)


def node(obj: Object) -> Causes:
    seen = set()
    for i, taint in enumerate(obj.get("spec", {}).get("taints", [])):
        at = f"spec.taints[{i}]"
        yield from each(at + ".key", taint.get("key", ""), names.qualified_name)
        yield from each(at + ".value", taint.get("value", ""), names.label_value)
        if not taint.get("effect"):
            yield required(at + ".effect")
        else:
            yield from one_of(at + ".effect", taint["effect"], _EFFECTS)
        key = (taint.get("key"), taint.get("effect"))
        if key in seen:
            yield duplicate(at, taint)
        seen.add(key)
    for field in ("capacity", "allocatable"):
        for name, amount in obj.get("status", {}).get(field, {}).items():
            if quantity.parse(amount) < 0:
                yield invalid(f"status.{field}.{name}", amount, NEGATIVE)
    addresses = obj.get("status", {}).get("addresses", [])
    yield from unique(
        "status.addresses[{}]", [f"{a.get('type', '')}/{a.get('address', '')}" for a in addresses]
    )


def node_update(new: Object, old: Object) -> Causes:
    was = old.get("spec", {}).get("providerID", "")
    if was and new.get("spec", {}).get("providerID", "") != was:
        text = 'node updates may not change providerID except from "" to valid'
        yield forbidden("spec.providerID", text)


def core_event(obj: Object) -> Causes:
    involved = obj.get("involvedObject", {}).get("namespace", "")
    held = obj.get("metadata", {}).get("namespace", "")
    if (involved or "default") != held:  # what is in no namespace has its events in default
        yield invalid("involvedObject.namespace", involved, "does not match event.namespace")


def new_event(obj: Object) -> Causes:
    """events.k8s.io/v1: what the core kind leaves open is required."""
    for field, limit in (("reportingController", 0), ("reportingInstance", 128), ("action", 128)):
        value = obj.get(field, "")
        if not value:
            yield required(field)
        elif limit and len(value.encode()) > limit:
            yield invalid(field, "", f"can have at most {limit} characters")
    if obj.get("reportingController"):
        yield from each("reportingController", obj["reportingController"], names.qualified_name)
    if not obj.get("eventTime"):
        yield required("eventTime")
    if not obj.get("reason"):
        yield required("reason")
    if len(obj.get("note", "").encode()) > 1024:
        yield invalid("message", "", "can have at most 1024 characters")
    yield from one_of("type", obj.get("type", ""), ("Normal", "Warning"))
    regarding = obj.get("regarding", {}).get("namespace", "")
    held = obj.get("metadata", {}).get("namespace", "")
    if (regarding or "default") != held:
        yield invalid("involvedObject.namespace", regarding, "does not match event.namespace")


def lease(obj: Object) -> Causes:
    spec = obj.get("spec", {})
    duration = spec.get("leaseDurationSeconds")
    if duration is not None and duration <= 0:
        yield invalid("spec.leaseDurationSeconds", duration, "must be greater than 0")
    yield from nonnegative("spec.leaseTransitions", spec.get("leaseTransitions"))
    if "holderIdentity" in spec and not spec["holderIdentity"]:
        yield invalid("spec.holderIdentity", "", "must not be empty")


def join_token(obj: Object) -> Causes:
    spec = obj.get("spec", {})
    bound, pool = spec.get("node", ""), spec.get("pool", "")
    if bound and pool:
        yield forbidden("spec.pool", "may not be set together with `node`")
    elif not bound and not pool:
        yield required("spec.node", "one of `node` and `pool` is required")
    if bound:
        yield from each("spec.node", bound, names.dns_subdomain)
        if "count" in spec and spec["count"] != 1:
            yield invalid("spec.count", spec["count"], "must be 1 or left out when `node` is set")
    elif pool:
        if spec.get("replace"):
            yield forbidden(
                "spec.replace", "goes with `node`: a pool's token takes no place of another machine"
            )
        yield from each("spec.pool", pool, names.dns_label)
        if "count" not in spec:
            yield required("spec.count", "a token of a pool says how many nodes may join")
        yield from in_range("spec.count", spec.get("count"), 1, join.POOL_COUNT_MAX)
    for field in ("site", "tenant"):
        if spec.get(field):
            yield from each(f"spec.{field}", spec[field], names.dns_label)
    yield from in_range("spec.ttlSeconds", spec.get("ttlSeconds"), 1, int(join.TTL_S_MAX))


def join_token_update(new: Object, old: Object) -> Causes:
    yield from immutable("spec", new.get("spec"), old.get("spec"))


def revocation(obj: Object) -> Causes:
    spec = obj.get("spec", {})
    given = [kind for kind in KINDS if spec.get(kind)]
    if not given:
        yield required("spec.node", "one of `node`, `token` and `serial` is required")
    for extra in given[1:]:
        yield forbidden(f"spec.{extra}", f"may not be set together with `{given[0]}`")
    if spec.get("node"):
        yield from each("spec.node", spec["node"], names.dns_subdomain)
    if spec.get("token") and re.fullmatch("[0-9a-f]{16}", spec["token"]) is None:
        yield invalid(
            "spec.token", spec["token"], "must be the id of a join token: 16 hex digits, its object's name"
        )
    if spec.get("serial") and not serial_text(spec["serial"]):
        yield invalid(
            "spec.serial", spec["serial"], "must be a certificate's serial number in hex, at most 20 bytes"
        )
    if len(spec.get("reason", "")) > REASON_CHARS_MAX:
        yield invalid("spec.reason", "...", f"must have at most {REASON_CHARS_MAX} characters")


def revocation_update(new: Object, old: Object) -> Causes:
    yield from immutable("spec", new.get("spec"), old.get("spec"))


def device(obj: Object) -> Causes:
    spec = obj.get("spec", {})
    if not spec.get("nodeName"):
        yield required("spec.nodeName", "a device belongs to one node")
    else:
        yield from each("spec.nodeName", spec["nodeName"], names.dns_subdomain)
    for path, fault in devices.faults(spec):
        yield invalid(f"spec.{path}", "...", fault)


def device_update(new: Object, old: Object) -> Causes:
    yield from immutable(
        "spec.nodeName", new.get("spec", {}).get("nodeName"), old.get("spec", {}).get("nodeName")
    )

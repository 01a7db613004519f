"""Rules for CertificateSigningRequest. [pure]

Nodes that wait for an operator are such objects (`hub.approvals`). What they ask for never changes; what was decided is
never taken back, as in Kubernetes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from hub.api.validation.meta import Causes, Object, immutable
from hub.errors import duplicate, forbidden, invalid, not_supported, required

_DECISIONS: Final = ("Approved", "Denied", "Failed")
_STATUS: Final = ("True", "False", "Unknown")


def _conditions(obj: Object) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, condition in enumerate(obj.get("status", {}).get("conditions", [])):
        yield f"status.conditions[{i}]", condition


def signing_request(obj: Object) -> Causes:
    spec = obj.get("spec", {})
    for field in ("request", "signerName", "usages"):
        if not spec.get(field):
            yield required(f"spec.{field}")
    seen: set[str] = set()
    for at, condition in _conditions(obj):
        kind = condition.get("type", "")
        if not kind:
            yield required(at + ".type")
        elif kind in seen:
            yield duplicate(at + ".type", kind)
        seen.add(kind)
        if condition.get("status") not in _STATUS:
            yield not_supported(at + ".status", condition.get("status", ""), _STATUS)
        elif kind in _DECISIONS and condition["status"] != "True":
            yield not_supported(at + ".status", condition["status"], ("True",))
    if {"Approved", "Denied"} <= seen:
        yield invalid("status.conditions", "Denied", "Approved and Denied conditions are mutually exclusive")


def signing_request_update(new: Object, old: Object) -> Causes:
    yield from immutable("spec", new.get("spec"), old.get("spec"))
    left = {condition.get("type") for _, condition in _conditions(new)}
    for _, condition in _conditions(old):
        kind = condition.get("type")
        if kind in _DECISIONS and kind not in left:
            yield forbidden("status.conditions", f"updates may not remove a condition of type {kind!r}")
    was, now = old.get("status", {}).get("certificate"), new.get("status", {}).get("certificate")
    if was and now != was:
        yield forbidden("status.certificate", "updates may not set certificate content that exists")

"""Devices in the node's own API: how workloads read what is desired of them, and report. [pure]

Reading is as of every kind there. Reporting is a PATCH of the subresource `status` as a JSON merge patch, as of any
Kubernetes object: {"status":{"reported":{<property>:{"value":<value>}}}}. It is taken or refused as a whole.
"""

import json

from edgelite.localapi import failure
from edgelite.twins import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edgelite.localapi import Answer
    from edgelite.twins import Twin

    Object = dict[str, Any]

MERGE_PATCH = "application/merge-patch+json"
BODY_BYTES_MAX = 64 << 10


def device_object(twin: "Twin", node: str, rfc3339: "Callable[[int], str]") -> "Object":
    """The Device as its node knows it. rfc3339: of Unix milliseconds."""
    doc = twin.doc
    spec: "Object" = {"nodeName": node, "properties": doc["properties"]}
    if twin.desired:
        spec["desired"] = twin.desired
    reported = {name: {"value": value, "time": rfc3339(at)} for name, (at, value) in twin.reported.items()}
    return {
        "kind": "Device",
        "apiVersion": "cloudhub.dev/v1alpha1",
        "metadata": {
            "name": doc["name"],
            "namespace": doc["ns"],
            "uid": doc["uid"],
            "generation": twin.generation,
        },
        "spec": spec,
        "status": {"observedGeneration": twin.generation, "reported": reported},
    }


def patch(
    content_type: str,
    body: "bytes | None",
    twin: "Twin | None",
    name: str,
    report: "Callable[[Twin, Object], None]",
    shown: "Callable[[Twin], Object]",
) -> "Answer":
    """Answers a report. body: None when it was longer than BODY_BYTES_MAX; twin: None when the pod's namespace has no such
    device here; report: takes the values, raising Refused."""
    if twin is None:
        text = 'devices.cloudhub.dev "%s" not found: the pod\'s namespace has no such device on this node'
        return failure(404, "NotFound", text % name, {"name": name, "kind": "devices"})
    if content_type.split(";")[0].strip().lower() != MERGE_PATCH:
        return failure(415, "UnsupportedMediaType", "a report is a JSON merge patch: %s" % MERGE_PATCH)
    if body is None:
        text = "a report has at most %d bytes" % BODY_BYTES_MAX
        return failure(413, "RequestEntityTooLarge", text)
    try:
        values = _values(json.loads(body))
    except (ValueError, RuntimeError) as error:  # RuntimeError: nested too deep
        return failure(400, "BadRequest", "not a report: %s" % error)
    try:
        report(twin, values)
    except Refused as refused:
        causes = [
            {"reason": "FieldValueInvalid", "field": "status.reported.%s" % prop, "message": fault}
            for prop, fault in refused.faults
        ]
        details = {"name": name, "group": "cloudhub.dev", "kind": "Device", "causes": causes}
        return failure(422, "Invalid", 'Device.cloudhub.dev "%s" is invalid: %s' % (name, refused), details)
    return 200, shown(twin)


def _values(sent: "Any") -> "Object":
    """The values of a merge patch, by property. Raises ValueError."""
    status = sent.get("status") if isinstance(sent, dict) else None
    reported = status.get("reported") if isinstance(status, dict) else None
    if not isinstance(reported, dict) or not reported:
        raise ValueError('send {"status":{"reported":{"<property>":{"value":<value>}}}}')
    values = {}
    for name, report in reported.items():
        if not isinstance(report, dict) or "value" not in report:
            raise ValueError('status.reported.%s has to be {"value":<value>}' % name)
        values[name] = report["value"]
    return values

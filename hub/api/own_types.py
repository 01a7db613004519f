"""Schemas of the kinds in the group cloudhub.dev, in the form of the published Kubernetes definitions.

Job: plain data, read by `schema` like a definition of Kubernetes itself, so that validation, patches, OpenAPI and
`kubectl explain` treat our kinds the same way.
"""

from __future__ import annotations

from typing import Any, Final

from edgelite import devices
from security.join import POOL_COUNT_MAX
from security.revocation import REASON_CHARS_MAX

GROUP: Final = "cloudhub.dev"
_META: Final = "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1."
_PREFIX: Final = "dev.cloudhub.v1alpha1."
_TYPE_META: Final[dict[str, Any]] = {
    "apiVersion": {
        "type": "string",
        "description": "The version of this object's schema: cloudhub.dev/v1alpha1.",
    },
    "kind": {"type": "string", "description": "The kind of this object."},
}

_VALUE: Final[dict[str, Any]] = {
    "description": "A value of the property's type.",
    "x-kubernetes-preserve-unknown-fields": True,
}


def _gvk(kind: str) -> list[dict[str, str]]:
    return [{"group": GROUP, "version": "v1alpha1", "kind": kind}]


DEFINITIONS: Final[dict[str, dict[str, Any]]] = {
    _PREFIX + "JoinToken": {
        "description": "JoinToken admits one edge node, or a number of nodes of a pool, until it expires.",
        "type": "object",
        "properties": {
            **_TYPE_META,
            "metadata": {"$ref": _META + "ObjectMeta", "description": "Standard object metadata."},
            "spec": {
                "$ref": "#/$defs/" + _PREFIX + "JoinTokenSpec",
                "description": "Who may join with it. Cannot be changed.",
            },
            "status": {
                "$ref": "#/$defs/" + _PREFIX + "JoinTokenStatus",
                "description": "What the hub made of it.",
            },
        },
        "required": ["spec"],
        "x-kubernetes-group-version-kind": _gvk("JoinToken"),
    },
    _PREFIX + "JoinTokenSpec": {
        "description": "JoinTokenSpec says who may join. Exactly one of node and pool is set.",
        "type": "object",
        "properties": {
            "node": {"type": "string", "description": "The one node that may join, by name."},
            "pool": {
                "type": "string",
                "description": "The pool whose nodes may join; each node brings its name.",
            },
            "count": {
                "type": "integer",
                "format": "int32",
                "description": f"How many nodes of the pool may join: 1 to {POOL_COUNT_MAX}. Only with pool, which "
                "requires it.",
            },
            "site": {
                "type": "string",
                "description": "The site that the nodes belong to; it becomes part of their identity.",
            },
            "tenant": {
                "type": "string",
                "description": 'The tenant that the nodes belong to; it becomes part of their identity. Default "default".',
            },
            "ttlSeconds": {
                "type": "integer",
                "format": "int64",
                "description": "Seconds until the token expires: at least 1, at most 30 days. Default: 1 hour for a "
                "node, 24 hours for a pool.",
            },
            "replace": {
                "type": "boolean",
                "description": "Whether the node may take the place of one of its name that has joined already, whose "
                "certificates are void then. Only with node.",
            },
            "approval": {
                "type": "boolean",
                "description": "Whether each node waits, as a CertificateSigningRequest of the signer cloudhub.dev/node, "
                "until it is approved: kubectl certificate approve.",
            },
        },
    },
    _PREFIX + "JoinTokenStatus": {
        "description": "JoinTokenStatus is written by the hub.",
        "type": "object",
        "properties": {
            "token": {
                "type": "string",
                "description": "The token's text, shown only in the answer to its creation; the hub keeps a hash.",
            },
            "expires": {
                "$ref": _META + "Time",
                "description": "When the token stops admitting nodes.",
            },
            "redeemed": {
                "type": "integer",
                "format": "int32",
                "description": "How many nodes have joined with it.",
            },
        },
    },
    _PREFIX + "JoinTokenList": {
        "description": "JoinTokenList is a list of join tokens.",
        "type": "object",
        "properties": {
            **_TYPE_META,
            "items": {
                "type": "array",
                "items": {"$ref": "#/$defs/" + _PREFIX + "JoinToken"},
                "description": "The tokens.",
            },
            "metadata": {"$ref": _META + "ListMeta", "description": "Standard list metadata."},
        },
        "required": ["items"],
        "x-kubernetes-group-version-kind": _gvk("JoinTokenList"),
    },
    _PREFIX + "Revocation": {
        "description": "Revocation refuses a node, a join token or one certificate, from the moment when it is made.",
        "type": "object",
        "properties": {
            **_TYPE_META,
            "metadata": {"$ref": _META + "ObjectMeta", "description": "Standard object metadata."},
            "spec": {
                "$ref": "#/$defs/" + _PREFIX + "RevocationSpec",
                "description": "Who is refused. Cannot be changed; deleting the object ends the refusal.",
            },
        },
        "required": ["spec"],
        "x-kubernetes-group-version-kind": _gvk("Revocation"),
    },
    _PREFIX + "RevocationSpec": {
        "description": "RevocationSpec says who is refused. Exactly one of node, token and serial is set.",
        "type": "object",
        "properties": {
            "node": {
                "type": "string",
                "description": "A node: all its certificates that began before this object was made. It comes back when it "
                "joins with a token that was made since.",
            },
            "token": {
                "type": "string",
                "description": "A join token, by its id: it admits nobody, and the nodes that were enrolled with it are "
                "refused until they are enrolled with another one.",
            },
            "serial": {
                "type": "string",
                "description": "One certificate, of a node or a user, by its serial number in hex.",
            },
            "reason": {
                "type": "string",
                "description": f"Why, for people; at most {REASON_CHARS_MAX} characters. Whoever is refused is told.",
            },
        },
    },
    _PREFIX + "RevocationList": {
        "description": "RevocationList is a list of revocations.",
        "type": "object",
        "properties": {
            **_TYPE_META,
            "items": {
                "type": "array",
                "items": {"$ref": "#/$defs/" + _PREFIX + "Revocation"},
                "description": "The revocations.",
            },
            "metadata": {"$ref": _META + "ListMeta", "description": "Standard list metadata."},
        },
        "required": ["items"],
        "x-kubernetes-group-version-kind": _gvk("RevocationList"),
    },
    _PREFIX + "Device": {
        "description": "Device is something that an edge node can see and set: its properties, what is desired of them, and "
        "what the node has reported.",
        "type": "object",
        "properties": {
            **_TYPE_META,
            "metadata": {"$ref": _META + "ObjectMeta", "description": "Standard object metadata."},
            "spec": {
                "$ref": "#/$defs/" + _PREFIX + "DeviceSpec",
                "description": "What the device has, and what is wanted of it.",
            },
            "status": {
                "$ref": "#/$defs/" + _PREFIX + "DeviceStatus",
                "description": "What its node has reported. Written by the hub.",
            },
        },
        "required": ["spec"],
        "x-kubernetes-group-version-kind": _gvk("Device"),
    },
    _PREFIX + "DeviceSpec": {
        "description": "DeviceSpec is what a device has, and what is wanted of it.",
        "type": "object",
        "properties": {
            "nodeName": {
                "type": "string",
                "description": "The node that the device belongs to. Cannot be changed.",
            },
            "properties": {
                "type": "array",
                "items": {"$ref": "#/$defs/" + _PREFIX + "DeviceProperty"},
                "description": f"What can be reported or set: 1 to {devices.PROPERTIES_MAX}.",
                "x-kubernetes-list-map-keys": ["name"],
                "x-kubernetes-list-type": "map",
                "x-kubernetes-patch-merge-key": "name",
                "x-kubernetes-patch-strategy": "merge",
            },
            "desired": {
                "type": "object",
                "additionalProperties": dict(_VALUE),
                "description": "The values that are wanted, by property. They are checked against type and range.",
            },
        },
        "required": ["nodeName", "properties"],
    },
    _PREFIX + "DeviceProperty": {
        "description": "DeviceProperty is one property of a device.",
        "type": "object",
        "properties": {
            "name": {
                "type": "string",
                "description": f"Up to {devices.NAME_CHARS_MAX} letters, digits, '_', '.' and '-'.",
            },
            "type": {"type": "string", "description": "boolean, integer, number or string."},
            "unit": {
                "type": "string",
                "description": "The unit, for people; UCUM by convention: Cel, %, m/s.",
            },
            "access": {
                "type": "string",
                "description": "ReadOnly (default): the node reports it; WriteOnly: it is set; ReadWrite: both.",
            },
            "minimum": {"type": "number", "description": "The least value of an integer or number."},
            "maximum": {"type": "number", "description": "The greatest value of an integer or number."},
            "values": {
                "type": "array",
                "items": {"type": "string"},
                "description": "What a string may be.",
            },
            "maxLength": {
                "type": "integer",
                "format": "int32",
                "description": f"Characters of a string; default and at most {devices.TEXT_CHARS_MAX}.",
            },
            "deadband": {
                "type": "number",
                "description": "A number is reported when it differs from what was reported last by at least this. Without: "
                "when it is another.",
            },
            "minIntervalSeconds": {
                "type": "integer",
                "format": "int32",
                "description": f"No two reports of it within this time; default {devices.INTERVAL_DEFAULT_S}, at most "
                f"{devices.INTERVAL_MAX_S}. The last value arrives when the time is over.",
            },
            "keep": {
                "type": "integer",
                "format": "int32",
                "description": "How many reports are kept, by the node while the hub is away and in the status: 1 (default) is "
                f"the latest alone, at most {devices.KEEP_MAX}.",
            },
        },
        "required": ["name", "type"],
    },
    _PREFIX + "DeviceStatus": {
        "description": "DeviceStatus is what a device's node has reported.",
        "type": "object",
        "properties": {
            "observedGeneration": {
                "type": "integer",
                "format": "int64",
                "description": "The generation of the spec that the node follows.",
            },
            "reported": {
                "type": "object",
                "additionalProperties": {"$ref": "#/$defs/" + _PREFIX + "DeviceReport"},
                "description": "The latest report of each property.",
            },
            "conditions": {
                "type": "array",
                "items": {"$ref": _META + "Condition"},
                "description": "Accepted: whether the node follows the spec, or why it refuses it.",
                "x-kubernetes-list-map-keys": ["type"],
                "x-kubernetes-list-type": "map",
                "x-kubernetes-patch-merge-key": "type",
                "x-kubernetes-patch-strategy": "merge",
            },
        },
    },
    _PREFIX + "DeviceReport": {
        "description": "DeviceReport is what was reported of one property.",
        "type": "object",
        "properties": {
            "value": dict(_VALUE),
            "time": {"$ref": _META + "MicroTime", "description": "When it was so, by the node's clock."},
            "history": {
                "type": "array",
                "items": {"$ref": "#/$defs/" + _PREFIX + "DeviceReading"},
                "description": "The last reports, oldest first, where the property keeps more than one.",
                "x-kubernetes-list-type": "atomic",
            },
        },
    },
    _PREFIX + "DeviceReading": {
        "description": "DeviceReading is one value at one time.",
        "type": "object",
        "properties": {
            "value": dict(_VALUE),
            "time": {"$ref": _META + "MicroTime", "description": "When it was so, by the node's clock."},
        },
    },
    _PREFIX + "DeviceList": {
        "description": "DeviceList is a list of devices.",
        "type": "object",
        "properties": {
            **_TYPE_META,
            "items": {
                "type": "array",
                "items": {"$ref": "#/$defs/" + _PREFIX + "Device"},
                "description": "The devices.",
            },
            "metadata": {"$ref": _META + "ListMeta", "description": "Standard list metadata."},
        },
        "required": ["items"],
        "x-kubernetes-group-version-kind": _gvk("DeviceList"),
    },
}

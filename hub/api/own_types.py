"""Schemas of the kinds in the group cloudhub.dev, in the form of the published Kubernetes definitions.

Job: plain data, read by `schema` like a definition of Kubernetes itself, so that validation, patches, OpenAPI and
`kubectl explain` treat our kinds the same way.
"""

from __future__ import annotations

from typing import Any, Final

from security.join import POOL_COUNT_MAX

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
}

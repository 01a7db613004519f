"""Desired documents in a dict, and HELLO bodies, for tests of the pure cores."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from edgelite.desired import digest_of
from hub.documents import Document

INC = "ab" * 16


class FakeDocs:
    """`hub.session.Docs` over plain bytes; `put` and `drop` return the key, as `Desired` would tell it."""

    def __init__(self) -> None:
        self.revision = 10
        self.bodies: dict[str, bytes] = {}
        self.documents: dict[str, Document] = {}
        self.unknown: set[str] = set()

    def of(self, node: str) -> Mapping[str, Document]:
        return self.documents

    def body(self, document: Document) -> bytes | None:
        return self.bodies.get(document.version)

    def withhold(self, node: str, key: str) -> bool:
        return key in self.unknown

    def put(self, key: str, body: bytes) -> str:
        self.revision += 1
        document = self.documents[key] = Document(key, body)
        self.bodies[document.version] = body
        return key

    def drop(self, key: str) -> str:
        self.revision += 1
        self.documents.pop(key, None)
        return key


def hello(docs: Mapping[str, str] | None = None, **fields: Any) -> bytes:
    body: dict[str, Any] = {
        "proto": [1, 1],
        "features": ["log"],
        "agent": "test",
        "inc": INC,
        "boot": 1,
        "conn": 1,
        "digest": digest_of(dict(docs or {})),
        "docs": len(docs or {}),
        "claim": None,
        "rev": 0,
    }
    return json.dumps({**body, **fields}).encode()


def version(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:32]

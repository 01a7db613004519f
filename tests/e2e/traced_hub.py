"""A hub that signs its transactions, so that a history tells who wrote what.

    python -m tests.e2e.traced_hub serve ...

Every writing transaction gets one operation more: `trace/<process>` says which member's process made it and which
fences (epoch keys and their revisions) it compared. `tests.e2e.history` reads it.

What the store refused because a fence was passed is a line in the file REFUSED of the hub's data directory: a hub that
minds its lease never gets so far.
"""

import importlib
import itertools
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from hub import cli
from shards.kv import TXN_OPS_MAX, Compare, Delete, Put, TxnResult

_FENCE = re.compile(r"/(slot|role)/[^/]+/epoch$")
_ROOT = re.compile(r"^/cloudhub/[^/]+/")
PROCESS = os.urandom(6).hex()
REFUSED = "refused.jsonl"


def sign(store: Any, member: str, refused: Path) -> None:
    """Makes the store class's `txn` add the trace."""
    plain = store.txn

    async def txn(self: Any, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        root = _ROOT.match(ops[0].key) if ops and len(ops) < TXN_OPS_MAX else None
        if root is None:
            return await plain(self, compares, ops)  # type: ignore[no-any-return]
        fences = {c.key.removeprefix(root[0]): c.mod_revision for c in compares if _FENCE.search(c.key)}
        claims = any(_FENCE.search(op.key) for op in ops)
        trace = {"member": member, "process": PROCESS, "fences": fences}
        signature = Put(f"{root[0]}trace/{PROCESS}", orjson.dumps(trace))
        result: TxnResult = await plain(self, compares, [*ops, signature])
        if not result.succeeded and fences and not claims:
            for compare, now in zip(compares, result.current, strict=True):
                if _FENCE.search(compare.key) and (now is None or now.mod_revision != compare.mod_revision):
                    with open(refused, "ab") as file:
                        line = {"at": time.time(), "key": compare.key, "ops": [op.key for op in ops]}
                        file.write(orjson.dumps(line) + b"\n")
        return result

    store.txn = txn


def option(arguments: Sequence[str], name: str, otherwise: str) -> str:
    return next((b for a, b in itertools.pairwise(arguments) if a == name), otherwise)


def main() -> int:
    """The command `cloudhub`, signing; its exit code."""
    if "--etcd" in sys.argv:
        store = getattr(importlib.import_module("hub.store.etcd"), "EtcdStore")  # noqa: B009
    else:
        from hub.store.sqlite import SqliteStore as store
    sign(store, option(sys.argv, "--name", "hub"), Path(option(sys.argv, "--data-dir", "."), REFUSED))
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())

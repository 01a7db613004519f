"""JoinTokens as custom resources.

The command line makes the token, so that its secret never reaches the API: `spec.record` holds what `security.join`
minted (of the secret a salted hash alone), which nobody can change; `status.used` who has joined with it, which the hub
writes. To the hub's own code both are one record in `status.record`, as they are in its own store.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from hub.jointokens import RECORD
from hub.objects import JOINTOKENS

Object = dict[str, Any]
USED: Final = "used"


def new_token(spec: Mapping[str, Any], record: Mapping[str, Any]) -> Object:
    """The object to create for a record that was minted from `spec`."""
    minted = {k: v for k, v in record.items() if k != USED and v is not None}
    return {
        "apiVersion": JOINTOKENS.api_version,
        "kind": JOINTOKENS.kind,
        "metadata": {"name": record["id"]},
        "spec": {
            **spec,
            "expires": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record["expires"])),
            RECORD: minted,
        },
    }


def from_api(obj: Object) -> Object:
    """As the hub reads it. A token without a record stays without one, and admits nobody."""
    minted = (obj.get("spec") or {}).get(RECORD)
    if not isinstance(minted, dict):
        return obj
    status = obj.get("status") or {}
    record = {"node": None, "pool": None, "site": None, **minted, USED: status.get(USED) or {}}
    return {**obj, "status": {**status, RECORD: record}}


def to_api(obj: Object) -> Object:
    """As it is written."""
    status = obj.get("status") or {}
    record = status.get(RECORD)
    if not isinstance(record, dict):
        return obj
    left = {k: v for k, v in status.items() if k != RECORD}
    return {**obj, "status": {**left, USED: record[USED]}}

"""`cloudhub ca`, `cloudhub cert` and `cloudhub revoke`: what is asked and printed; whichever replica answers does the work."""

import argparse
import asyncio
import datetime
import sys
import time
from typing import Any, Final

import orjson
from cryptography import x509

from hub import kubeconfig
from hub.api.ages import human_duration
from hub.certpaths import CA_PATH, CERTIFICATES_PATH, REVOCATIONS_PATH, ROTATION_PATH
from hub.client import ApiClient, ClientError
from hub.config import ConfigError, duration_s
from hub.objects import PREFIX
from hub.statustable import table
from security.revocation import KINDS, SERIAL, TOKEN
from security.serials import serial_text

FAILED: Final = 1
WAIT_TICK_S: Final = 1.0
NAME_STEM_MAX: Final = 100
OUTAGE_S: Final = 120.0
"""How long --wait goes on while no replica answers."""


async def ca_status(api: ApiClient, values: argparse.Namespace) -> int:
    """Exit code 0."""
    _show(await api.get(CA_PATH), values.output)
    return 0


async def ca_rotate(api: ApiClient, values: argparse.Namespace) -> int:
    """Exit code 0 once it has begun, with --wait once it is over."""
    path = ROTATION_PATH + ("?voidTokens=true" if values.void_tokens else "")
    found = await api.post(path, {})
    if values.wait:
        found = await _wait(api, found)
    _show(found, values.output)
    return 0


async def revoke(api: ApiClient, values: argparse.Namespace) -> int:
    """Exit code 0."""
    value = values.value
    if values.kind == TOKEN and value.startswith("chub1."):
        value = value.split(".")[1]  # the text of a token
    if values.kind == SERIAL:
        value = serial_text(value) or value
    spec = {values.kind: value, **({"reason": values.reason} if values.reason else {})}
    stem = "".join(c if c.isalnum() and c.isascii() else "-" for c in value.lower())[:NAME_STEM_MAX]
    body = {
        "apiVersion": f"{PREFIX}/v1alpha1",
        "kind": "Revocation",
        "metadata": {"generateName": f"{values.kind}-{stem}-"},
        "spec": spec,
    }
    made = await api.post(REVOCATIONS_PATH, body)
    print(f"revoked {values.kind} {value} ({made['metadata']['name']})")
    return 0


async def revoke_list(api: ApiClient, values: argparse.Namespace) -> int:
    """Exit code 0."""
    found = (await api.get(REVOCATIONS_PATH))["items"]
    if values.output == "json":
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return 0
    rows = []
    for item in found:
        spec = item["spec"]
        kind = next(kind for kind in KINDS if spec.get(kind))
        meta = item["metadata"]
        rows.append((kind, spec[kind], meta["creationTimestamp"], meta["name"], spec.get("reason", "-")))
    print("\n".join(table(("OF", "VALUE", "SINCE", "NAME", "REASON"), rows)))
    return 0


async def cert_list(api: ApiClient, values: argparse.Namespace) -> int:
    """Exit code 0; 1 when --within is given and something ends sooner."""
    try:
        within_s = duration_s(values.within, "--within") if values.within else None
    except ConfigError as wrong:
        raise ClientError(str(wrong)) from wrong
    found = await api.get(f"{CERTIFICATES_PATH}?nodes={values.nodes}")
    found["certificates"].insert(0, _own(values))
    found["certificates"].sort(key=lambda item: item["ends"])
    if values.output == "json":
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        now = time.time()
        rows = [
            (
                c["kind"],
                c["name"],
                c["phase"] or "-",
                date(c["ends"]),
                _left(c["ends"] - now),
                c["issuer"][:16],
            )
            for c in found["certificates"]
        ]
        print("\n".join(table(("KIND", "NAME", "PHASE", "ENDS", "LEFT", "ROOT"), rows)))
        more = found["nodes"]["total"] - found["nodes"]["shown"]
        if more:
            print(
                f"and {more} nodes more, of which {found['nodes']['unknown']} have shown no certificate yet"
            )
    ends = [c["ends"] for c in found["certificates"]]
    if within_s is not None and ends and min(ends) < time.time() + within_s:
        print(f"something ends within {values.within}", file=sys.stderr)
        return FAILED
    return 0


def _own(values: argparse.Namespace) -> dict[str, Any]:
    """The user's certificate in the kubeconfig that is used: of users the hub knows no others."""
    path = kubeconfig.path_of(values)
    certificate = x509.load_pem_x509_certificate(kubeconfig.read(path).cert_pem.encode())
    name = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return {
        "kind": "user",
        "name": f"{str(name[0].value) if name else '?'} ({path})",
        "phase": "",
        "issuer": "",
        "ends": certificate.not_valid_after_utc.timestamp(),
    }


def _left(seconds: float) -> str:
    return "ended" if seconds <= 0 else human_duration(seconds)


async def _wait(api: ApiClient, found: Any) -> Any:
    """Until no rotation is under way; a hub that is restarted meanwhile is waited for. Raises ClientError."""
    told: Any = None
    reached = time.monotonic()
    while found["rotating"]:
        progress = (found["next"], found["waitsFor"], found["nodes"]["renewed"])
        if progress != told:
            told = progress
            print(_progress(found), file=sys.stderr, flush=True)
        await asyncio.sleep(WAIT_TICK_S)
        try:
            found = await api.get(CA_PATH)
            reached = time.monotonic()
        except ClientError:
            if time.monotonic() - reached > OUTAGE_S:
                raise
    return found


def _progress(found: Any) -> str:
    nodes = found["nodes"]
    what = found["next"] or "; ".join(found["waitsFor"]) or "the next step"
    return f"{nodes['renewed']} of {nodes['total']} nodes have renewed; next: {what}"


def _show(found: Any, output: str) -> None:
    if output == "json":
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return
    header = ("ROOT", "PHASE", "SINCE", "ENDS", "NODES", "TOKENS", "SIGNS")
    rows = [
        (
            root["id"][:16],
            root["phase"],
            date(root["since"]),
            date(root["ends"]),
            str(root["nodes"]),
            str(root["joinTokens"]),
            _signs(root),
        )
        for root in found["roots"]
    ]
    nodes = found["nodes"]
    lines = [
        *table(header, rows),
        "",
        f"nodes {nodes['total']}, renewed {nodes['renewed']}, not seen with a certificate yet {nodes['unknown']};"
        f" connected {nodes['connected']}, with this bundle {nodes['withBundle']}",
    ]
    if found["rotating"]:
        lines.append(f"rotating; {_progress(found)}")
    print("\n".join(lines))


def _signs(root: Any) -> str:
    signs = ["nodes,users"] if root["phase"] == "active" else []
    return ",".join(signs + (["hubs"] if root["signsHubs"] else [])) or "-"


def date(unix_s: float) -> str:
    """A time for people, UTC."""
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")

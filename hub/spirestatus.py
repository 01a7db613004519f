"""What `cloudhub ca status` shows, and metrics say, where the authority of nodes is SPIRE's.

Before an authority of SPIRE is revoked, operators see here whether nodes still depend on it: a node that was away the
whole time knows neither the new root nor may it show a certificate of the old one, and has to join anew.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from hub import errors
from hub.api.documents import Document
from hub.certpaths import CA_PATH, CERTIFICATES_PATH, ROTATION_PATH
from hub.figures import MetricsSink
from hub.rotation import Fleet, row
from hub.spire import SpireTrust
from hub.status import Status
from security.spiffe.material import life, not_after, sha256


def documents(
    spire: SpireTrust,
    status: Status,
    fleet: Fleet,
    own: Mapping[tuple[str, str], Document],
    wall: Callable[[], float] = time.time,
) -> dict[tuple[str, str], Document]:
    """What the API server answers, by method and path. `own`: what it would without SPIRE."""

    async def show(query: Mapping[str, str]) -> Mapping[str, Any]:
        return await document(spire, status, fleet, wall())

    async def rotate(query: Mapping[str, str]) -> Mapping[str, Any]:
        raise errors.BadRequest(
            "the authority of nodes is SPIRE's: rotate it there, with `spire-server localauthority x509 prepare`,"
            " `activate`, `taint` and `revoke`; nodes follow by themselves, see `cloudhub ca status`"
        )

    async def certificates(query: Mapping[str, str]) -> Mapping[str, Any]:
        found = dict(await own["GET", CERTIFICATES_PATH](query))
        rows = [*found["certificates"], *_rows(spire)]
        found["certificates"] = sorted(rows, key=lambda row: row["ends"])
        return found

    return {
        **own,
        ("GET", CA_PATH): show,
        ("POST", ROTATION_PATH): rotate,
        ("GET", CERTIFICATES_PATH): certificates,
    }


def _rows(spire: SpireTrust) -> list[Mapping[str, Any]]:
    """What SPIRE gave, among the certificates that end: its roots, this replica's SVID and intermediate."""
    svid, serving = spire.material.svid, spire.root_sha256.hex()
    below = sha256(spire.intermediate.root).hex()
    roots = [(sha256(der).hex(), not_after(der)) for der in spire.material.own_bundle]
    return [
        *(row("root", name[:16], ends, name, "SPIRE") for name, ends in roots),
        row("hub", svid.spiffe_id, not_after(svid.chain[0]), serving),
        row("hub", svid.spiffe_id, spire.intermediate.not_after, below, "authority"),
    ]


async def document(spire: SpireTrust, status: Status, fleet: Fleet, now: float) -> Mapping[str, Any]:
    """The roots of SPIRE's bundle, and how many nodes lean on each. Raises ApiError."""
    leaning: Counter[str] = Counter()
    async for node in fleet.node_facts():
        leaning[node.root] += 1
    tokens: Counter[str] = Counter()
    async for token in fleet.token_facts(now):
        tokens[token.root] += 1
    said = await status.read()
    bundles: Counter[str] = Counter()
    for figures in said.values():
        bundles.update(figures.bundles)
    roots, known = [], 0
    for der in spire.material.own_bundle:
        name, (since, ends) = sha256(der).hex(), life(der)
        active = name[:16] == spire.active_id
        known += leaning[name[:16]]
        roots.append(
            {
                "id": name,
                "phase": "active" if active else "trusted",
                "since": since,
                "ends": ends,
                "lastNodeCertificateEnds": None,
                "signsHubs": name == spire.root_sha256.hex(),
                "nodes": leaning[name[:16]],
                "joinTokens": tokens[name],
            }
        )
    total = leaning.total()
    return {
        "kind": "CertificateAuthorities",
        "trustDomain": spire.trust_domain,
        "bundle": spire.id,
        "rotating": False,
        "next": "",
        "waitsFor": [text for text in (spire.source.problem, spire.problem) if text],
        "roots": roots,
        "nodes": {
            "total": total,
            "connected": sum(sum(figures.connected.values()) for figures in said.values()),
            "withBundle": bundles[spire.id],
            "renewed": leaning[spire.active_id],
            "unknown": total - known,
        },
        "spire": {
            "svidEnds": not_after(spire.material.svid.chain[0]),
            "authorityEnds": spire.intermediate.not_after,
        },
    }


def publish(spire: SpireTrust, metrics: MetricsSink) -> None:
    """Has `metrics` read it from now on."""

    def read() -> Mapping[str, float]:
        return {
            "svid_ends": not_after(spire.material.svid.chain[0]),
            "authority_ends": spire.intermediate.not_after,
            "roots": len(spire.material.own_bundle),
            "workload_api_up": 0.0 if spire.source.problem else 1.0,
            "authority_up": 0.0 if spire.problem else 1.0,
            "updates": spire.source.updates,
        }

    metrics.figures("cloudhub.spire", read)

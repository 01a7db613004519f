"""`cloudhub status` as tables of text."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from hub.client import ApiClient


async def show(api: "ApiClient", values: argparse.Namespace) -> int:
    """Exit code 1 when slots or roles have no owner."""
    found = await api.get("/cloudhub/status")
    if values.output == "json":
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        print(render(found, values.slots))
    owned = not found["store"]["unownedSlots"] and all(role["owner"] for role in found["roles"])
    return 0 if owned else 1


def render(status: dict[str, Any], slots: bool = False) -> str:
    """The status document of `hub.status` for a terminal; `slots`: a line for each slot as well."""
    store, members = status["store"], status["members"]
    lines = [
        f"store {store['uuid']}  generation {store['generation']}  slots {store['slots']}, without an owner"
        f" {store['unownedSlots']}"
    ]
    if status["answeredBy"]["stale"]:
        lines.append(f"stale: {status['answeredBy']['member']} has lost touch with the store")
    header = (
        "NAME",
        "STATE",
        "VERSION",
        "WEIGHT",
        "SLOTS",
        "NODES",
        "CONNECTED",
        "RELAYED",
        "EDGE",
        "AGE",
        "ROLES",
    )
    rows = [
        (
            m["name"],
            m["state"],
            m["version"],
            f"{m['weight']:g}",
            str(m["slots"]),
            str(m["nodes"]),
            str(m["connected"]),
            str(m["relayedHere"]),
            m["edge"] or ("(relayed)" if m["bus"] else "-"),
            f"{m['ageSeconds']}s",
            ",".join(m["roles"]) or "-",
        )
        for m in members
    ]
    lines += ["", *table(header, rows)]
    roles = [(r["role"], r["owner"] or "<none>", _text(r["epoch"])) for r in status["roles"]]
    lines += ["", *table(("ROLE", "OWNER", "EPOCH"), roles)]
    if slots:
        each = [
            (
                str(s["slot"]),
                s["owner"] or "<none>",
                _text(s["epoch"]),
                _text(s["nodes"]),
                _text(s["connected"]),
            )
            for s in status["slots"]
        ]
        lines += ["", *table(("SLOT", "OWNER", "EPOCH", "NODES", "CONNECTED"), each)]
    return "\n".join(lines)


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "   ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]

"""`cloudhub serviceaccount keys` and `rotate-keys`: what is asked and printed; whichever replica answers does the work."""

import argparse
from typing import Any

import orjson

from hub.certcommands import date
from hub.certpaths import SIGNERS_PATH, SIGNERS_ROTATION_PATH
from hub.client import ApiClient
from hub.statustable import table


async def show(api: ApiClient, values: argparse.Namespace) -> int:
    """Exit code 0."""
    _print(await api.get(SIGNERS_PATH), values.output)
    return 0


async def rotate(api: ApiClient, values: argparse.Namespace) -> int:
    """Exit code 0 once the new key is stored."""
    path = SIGNERS_ROTATION_PATH + ("?void=true" if values.void else "")
    _print(await api.post(path, {}), values.output)
    return 0


def _print(found: Any, output: str) -> None:
    if output == "json":
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return
    rows = [
        (
            key["id"][:16],
            key["phase"],
            date(key["begins"]) if key["begins"] else "-",
            date(key["ends"]) if key["ends"] else "-",
        )
        for key in found["keys"]
    ]
    print("\n".join(table(("KEY", "PHASE", "SIGNS SINCE", "VERIFIES UNTIL"), rows)))

"""The options of `cloudhub release`."""

import argparse
from collections.abc import Callable
from typing import Any

from hub.sharedoptions import add_api_options

DEADLINE_S = 300
HOLD_S = 10
TIMEOUT_S = 3600


def add_release(commands: Any) -> None:
    parser = commands.add_parser(
        "release",
        help="has agents replace themselves by another release",
        description="Agents take a release that somebody has signed whom they trust (`edgelite join --update-key`), try it, and go back by "
        "themselves where it does not work. What became of it is the Node's condition AgentUpdate.",
    )
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    keygen = actions.add_parser(
        "keygen",
        help="makes a key that releases are signed with",
        description="Makes a private key of P-256 and prints the public key that nodes are given. Keep the file apart from the hub: whoever "
        "has it decides what nodes run.",
    )
    keygen.add_argument("file", metavar="FILE", help="where the private key goes; must not exist")
    keygen.set_defaults(run="release_keygen")
    publish = actions.add_parser(
        "publish",
        help="signs a release and keeps it where nodes get it from",
        description="Signs an edgelite.pyz and keeps it as ConfigMaps with the label cloudhub.dev/agent-release.",
    )
    publish.add_argument("file", metavar="FILE", help="the release: an edgelite.pyz")
    publish.add_argument("--key", metavar="FILE", required=True, help="the private key, of `release keygen`")
    publish.add_argument("--version", metavar="VERSION", required=True, help="what `FILE --version` says")
    publish.add_argument(
        "--namespace", metavar="NAME", default="default", help="of the ConfigMaps (default: default)"
    )
    publish.add_argument("--name", metavar="NAME", help="of the first ConfigMap (default: edgelite-VERSION)")
    publish.add_argument(
        "--platform",
        choices=("pyz", "mpy"),
        default="pyz",
        help="mpy: an edgelite.board, for boards (default: pyz)",
    )
    publish.add_argument("--downgrade", action="store_true", help="allow that it replaces a newer release")
    add_api_options(publish)
    publish.set_defaults(run="release_publish")
    roll = actions.add_parser(
        "roll",
        help="has nodes take a release, some at a time",
        description="Sets the annotation cloudhub.dev/agent-update of Nodes, as many at a time as may be unavailable, and waits for what "
        "becomes of it; stops at the first node that has not become the release. Called again it goes on where it was.",
    )
    roll.add_argument("release", metavar="[NAMESPACE/]NAME", help="as `release publish` said")
    roll.add_argument(
        "nodes", metavar="NODE", nargs="*", help="these nodes (default: all that --selector leaves)"
    )
    roll.add_argument("--selector", metavar="LABELS", help="nodes with these labels (default: all)")
    for name, default, meaning in (
        ("max-unavailable", 1, "how many nodes may be on their way at a time"),
        ("deadline", DEADLINE_S, "seconds within which a release has to show that it works"),
        ("hold", HOLD_S, "seconds for which it has to stay connected for that"),
        ("attempt", 1, "another number has nodes try again what they have given up"),
        ("timeout", TIMEOUT_S, "seconds after which the command gives up waiting"),
    ):
        roll.add_argument(
            f"--{name}",
            metavar="N",
            type=_count(0 if name == "hold" else 1),
            default=default,
            help=f"{meaning} (default: {default})",
        )
    add_api_options(roll)
    roll.set_defaults(run="release_roll")


def _count(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return number

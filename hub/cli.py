"""The `cloudhub` command. Exit codes: 0 done, 1 failed, 2 wrong usage or settings."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from hub.accessoptions import add_access
from hub.dataoptions import add_data
from hub.releaseoptions import add_release
from hub.serveoptions import add_serve
from hub.sharedoptions import add_api_options, add_output
from hub.simulate.options import add_simulate

USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses and runs one command; returns the exit code."""
    try:
        import hub.commands as commands

        parser = build_parser()
        values = parser.parse_args(arguments)
        run = getattr(values, "run", None)
        if run is None:
            parser.print_help(sys.stderr)
            return USAGE
        return commands.run(run, values)
    except ModuleNotFoundError as missing:
        print(
            f"cloudhub: the hub's packages are not installed ({missing.name} is missing); "
            "install them with: pip install 'cloudhub[hub]'",
            file=sys.stderr,
        )
        return USAGE


def build_parser() -> argparse.ArgumentParser:
    """All commands and options; `--help` of each explains them with default and unit."""
    from edgelite import __version__

    parser = argparse.ArgumentParser(
        prog="cloudhub", description="The cloud hub: kubectl on one side, a fleet of edge nodes on the other."
    )
    parser.add_argument("--version", action="version", version=f"cloudhub {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    add_serve(commands)
    add_access(commands)
    _confirm(commands)
    _status(commands)
    _ca(commands)
    _cert(commands)
    _revoke(commands)
    add_data(commands)
    add_release(commands)
    add_simulate(commands)
    return parser


def _confirm(commands: Any) -> None:
    confirm = commands.add_parser(
        "confirm",
        help="lets this hub speak for nodes whose history it does not know",
        description="After a restore, a copy or a start on other data, nodes may hold a history that this hub does not "
        "know. It then changes nothing on them and says so in a condition of the Node (HistoryParted or Unconfirmed). "
        "`confirm` tells the hub that its data is right: the nodes then converge to it, which may delete workloads there.",
    )
    which = confirm.add_mutually_exclusive_group(required=True)
    which.add_argument("--node", metavar="NAME", help="this node")
    which.add_argument(
        "--all",
        action="store_true",
        help="every node whose Node says that it waits; says how many may follow",
    )
    add_api_options(confirm)
    confirm.set_defaults(run="confirm")


def _status(commands: Any) -> None:
    status = commands.add_parser(
        "status",
        help="shows replicas, slots, owners and nodes",
        description="Shows the replicas that are up, what each owns and serves, and which slots nobody owns. Any replica "
        "answers for all. Exit code 1 when slots have no owner or no role has one.",
    )
    status.add_argument("--slots", action="store_true", help="a line for each slot as well")
    add_output(status)
    add_api_options(status)
    status.set_defaults(run="status")


def _ca(commands: Any) -> None:
    ca = commands.add_parser(
        "ca", help="the fleet's certificate authority", description="The fleet's certificate authority."
    )
    actions = ca.add_subparsers(title="commands", metavar="COMMAND", required=True)
    status = actions.add_parser(
        "status",
        help="shows roots, their phases, and what a rotation waits for",
        description="Shows the fleet's roots, what each signs, how many nodes have a certificate of it, and what a rotation "
        "that is under way waits for. Any replica answers for all.",
    )
    rotate = actions.add_parser(
        "rotate",
        help="puts a new root in the old one's place",
        description="Begins a rotation, or shows the one that is under way: a new root is trusted everywhere, then signs, all "
        "nodes renew, and the old root is removed once nobody depends on it: each node has renewed, or its certificate has "
        "ended and it is not taken back any more; join tokens that name the old root have ended or are used up. The hubs "
        "drive it by themselves, over restarts. Kubeconfigs other than the one in the data directory have to be made anew "
        "before it is over.",
    )
    rotate.add_argument(
        "--wait", action="store_true", help="return when it is over; progress on standard error"
    )
    rotate.add_argument(
        "--void-tokens",
        action="store_true",
        help="do not wait for join tokens that name the old root: they are void when it goes",
    )
    for action, run in ((status, "ca_status"), (rotate, "ca_rotate")):
        add_output(action)
        add_api_options(action)
        action.set_defaults(run=run)


def _cert(commands: Any) -> None:
    cert = commands.add_parser(
        "cert", help="shows what expires when", description="Shows which certificates expire when."
    )
    # `cloudhub cert` alone is `cloudhub cert list`.
    shown = cert.add_subparsers(title="commands", metavar="COMMAND").add_parser(
        "list",
        help="roots, hubs, this user and nodes, what ends first first",
        description="Shows when certificates end, the first first: the fleet's roots, every replica's, that of the kubeconfig "
        "in use, and nodes', as they have shown them last. Hubs and connected nodes renew by themselves.",
    )
    for parser in (cert, shown):
        parser.add_argument(
            "--nodes",
            metavar="N",
            type=int,
            default=20,
            help="how many nodes are shown, 0 to 10000 (default: 20)",
        )
        parser.add_argument(
            "--within",
            metavar="DURATION",
            help="exit code 1 when something that is shown ends within this time: 12h, 30d (default: exit code 0)",
        )
        add_output(parser)
        add_api_options(parser)
        parser.set_defaults(run="cert_list")


def _revoke(commands: Any) -> None:
    revoke = commands.add_parser(
        "revoke",
        help="refuses a node, a join token or a certificate from now on",
        description="Refuses a node, a join token or one certificate from now on: sessions are closed within seconds on every "
        "replica that reaches the store, and the others admit no connection. The Node and its workloads stay as they are. "
        "`kubectl` shows, makes and deletes the same as revocations.cloudhub.dev.",
    )
    actions = revoke.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for kind, metavar, text in (
        (
            "node",
            "NAME",
            "a node: all certificates that it has; it comes back when it joins with a token that is made later",
        ),
        (
            "token",
            "ID",
            "a join token, by the id in its text (chub1.ID.) or its object's name, and the nodes that were enrolled with it",
        ),
        ("serial", "HEX", "one certificate of a node or a user, by its serial number"),
    ):
        action = actions.add_parser(
            kind, help=text.partition(",")[0].partition(":")[0], description=f"Refuses {text}."
        )
        action.add_argument("value", metavar=metavar, help="which one")
        action.add_argument(
            "--reason", metavar="TEXT", help="why; whoever is refused is told (default: none)"
        )
        add_api_options(action)
        action.set_defaults(run="revoke", kind=kind)
    shown = actions.add_parser("list", help="shows what is revoked", description="Shows what is revoked.")
    add_output(shown)
    add_api_options(shown)
    shown.set_defaults(run="revoke_list")

"""The `cloudhub` command. Exit codes: 0 done, 1 failed, 2 wrong usage or settings."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

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
    _serve(commands)
    _token(commands)
    _confirm(commands)
    return parser


def _serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="runs the hub",
        description="Runs the hub until SIGTERM or Ctrl-C. Once it serves, its data directory holds `kubeconfig` "
        "(administrator) and `endpoints.json` (where API and edge port are). Every option is also a key of the "
        "config file, with underscores; the option wins.",
    )
    serve.add_argument("--config", metavar="FILE", help="YAML file of settings (default: none)")
    serve.add_argument(
        "--data-dir",
        metavar="DIR",
        help="store, CA and kubeconfig; made with mode 0700, locked by the process (default: /var/lib/cloudhub as "
        "root, else $XDG_STATE_HOME/cloudhub)",
    )
    serve.add_argument(
        "--api-address",
        metavar="HOST:PORT",
        help="where kubectl is served; port 0 picks a free one (default: 127.0.0.1:8443)",
    )
    serve.add_argument(
        "--edge-address",
        metavar="HOST:PORT",
        help="where edges connect; port 0 picks a free one (default: 0.0.0.0:8444)",
    )
    serve.add_argument(
        "--advertise-edge",
        metavar="HOST:PORT",
        help="the address that joining agents keep (default: the one that they joined through)",
    )
    serve.add_argument(
        "--tls-san",
        metavar="NAME",
        action="append",
        help="extra DNS name or IP of the hub's certificate; may be repeated",
    )
    serve.set_defaults(run="serve")


def _token(commands: Any) -> None:
    token = commands.add_parser("token", help="join tokens", description="Makes join tokens for edge nodes.")
    actions = token.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = actions.add_parser(
        "create",
        help="makes a token and prints it, alone",
        description="Makes a join token through the API and prints it alone, for `edgelite join --token`. It is shown "
        "once; the hub keeps only a hash.",
    )
    whom = create.add_mutually_exclusive_group(required=True)
    whom.add_argument("--node", metavar="NAME", help="for the one node of this name")
    whom.add_argument(
        "--pool", metavar="POOL", help="for --count nodes, named POOL-<random> unless they choose a name"
    )
    create.add_argument("--count", metavar="N", type=int, help="how many nodes may join with a pool token")
    create.add_argument(
        "--site", metavar="SITE", help="the nodes' site: nodes of one site share a slot (default: none)"
    )
    create.add_argument("--tenant", metavar="TENANT", help="the nodes' tenant (default: default)")
    create.add_argument(
        "--ttl",
        metavar="DURATION",
        help="how long it can be used: 30m, 1h, 7d; at most 30d (default: 1h, for a pool 24h)",
    )
    _add_api_options(create)
    create.set_defaults(run="token_create")


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
    which.add_argument("--all", action="store_true", help="every node that waits for it")
    _add_api_options(confirm)
    confirm.set_defaults(run="confirm")


def _add_api_options(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--data-dir",
        metavar="DIR",
        help="the hub's data directory, whose kubeconfig is used (default: as for serve)",
    )
    where.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="a kubeconfig with a client certificate (default: the data directory's)",
    )


def kubeconfig_path(values: argparse.Namespace, default_data_dir: str) -> str:
    """The kubeconfig that the options name."""
    return values.kubeconfig or os.path.join(values.data_dir or default_data_dir, "kubeconfig")

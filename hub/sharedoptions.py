"""Options that several commands of `cloudhub` have."""

import argparse
from typing import Any

from hub.serveoptions import names_in


def add_api_options(parser: argparse.ArgumentParser) -> None:
    """Where the API is."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--data-dir",
        metavar="DIR",
        help="the hub's data directory, whose kubeconfig is used (default: as for serve)",
    )
    where.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="a kubeconfig of the hub, or of the cluster that keeps its objects (default: the data directory's)",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """For what shows something."""
    parser.add_argument(
        "-o",
        "--output",
        choices=("table", "json"),
        default="table",
        help="form of the output (default: table)",
    )


def add_result(parser: argparse.ArgumentParser) -> None:
    """For what does something."""
    parser.add_argument(
        "-o",
        "--output",
        choices=("text", "json"),
        default="text",
        help="form of the result on standard output; progress goes to standard error (default: text)",
    )


def add_yes(parser: argparse.ArgumentParser) -> None:
    """For what asks first."""
    parser.add_argument(
        "--yes", action="store_true", help="do not ask (required where standard input is no terminal)"
    )


def add_etcd(where: Any, parser: argparse.ArgumentParser, meaning: str, required: bool = False) -> None:
    """`where`: the parser, or its group of places; `meaning`: of the fleet that lies there."""
    given = {"required": True} if required else {}
    where.add_argument(
        "--etcd", metavar="HOST:PORT,..", type=names_in, help=f"{meaning}; its members", **given
    )
    parser.add_argument("--etcd-ca", metavar="FILE", help="PEM roots for etcd (default: no TLS)")
    parser.add_argument("--etcd-cert", metavar="FILE", help="PEM client certificate for etcd (default: none)")
    parser.add_argument("--etcd-key", metavar="FILE", help="PEM key of --etcd-cert (default: none)")

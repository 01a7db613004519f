"""The options of `cloudhub simulate`."""

import argparse
from typing import Any, Final

from hub.sharedoptions import add_api_options

EXAMPLES: Final = """\
examples:
  # 1,000 nodes at the hub on this machine (its data directory says where it is), until Ctrl-C
  cloudhub simulate --nodes 1000

  # 5,000 nodes over two processes, 2 pods each, 200 status changes and 20 pod updates a second, for 10 minutes, as JSON
  cloudhub simulate --nodes 5000 --processes 2 --pods 2 --churn 200 --updates 20 --duration 10m -o json

  # a hub that is elsewhere, with a join token; nothing is asked of its API
  cloudhub simulate --hub edge.example.com:8444 --token-file token.txt --nodes 500 --duration 5m

  # replicas in a Kubernetes cluster, which makes the token and keeps the pods
  cloudhub simulate --hub edge.example.com:8444 --kubeconfig ~/.kube/config --nodes 500 --pods 1 --duration 5m

  # bad links: 300 ms round trips, 5% of them silent for 20 s in each minute, all cut at once every 2 minutes
  cloudhub simulate --nodes 2000 --latency 0.3s --link-loss 0.05 --outage 20s --storm 2m --duration 10m

what is simulated:
  Each node has a key and a certificate of its own and a connection of its own over mutual TLS, and runs the agent's
  session core, codec and back-off: redirects, resumption, heartbeats and reports are the agent's. It has no disk and
  starts nothing: documents are acknowledged at once, and pods reported as running. Keys and certificates stay in the
  cache, so that only the first run joins; a hub lets 50 to 100 nodes join a second.

how to read the report:
  Times are in seconds. "pod delivered" is from before the API is asked for a pod until its node has acknowledged it. The
  simulator takes about as much CPU as the hub: when "simulator: moment late by" is not far below what was measured,
  the machine was too small for both, and the figures are the simulator's own.

exit codes:
  0 all nodes were synchronised at the end (silent links are mended before) and the API refused nothing; 1 not so; 2 wrong usage; 130 ended by Ctrl-C before
  --duration was over. An interrupted run removes its pods and reports what there is.
"""


def add_simulate(commands: Any) -> None:
    parser = commands.add_parser(
        "simulate",
        help="a fleet of simulated nodes, to try and to measure a hub",
        description="Connects a fleet of simulated nodes to a hub, over real mutual TLS with the agent's own protocol core,\n"
        "and reports how the hub did. The Nodes are real objects of that hub: use one that is there for this.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _fleet(parser.add_argument_group("the fleet"))
    _identities(
        parser.add_argument_group("where its identities come from (default: a token made through the API)")
    )
    _load(parser.add_argument_group("what happens to it"))
    _faults(parser.add_argument_group("what goes wrong"))
    _report(parser.add_argument_group("the run and its report"))
    add_api_options(parser)
    parser.set_defaults(run="simulate")


def _fleet(group: Any) -> None:
    group.add_argument(
        "--hub",
        metavar="HOST:PORT",
        help="the hub's edge port, several with commas between (default: that of the hub that serves from the data directory)",
    )
    group.add_argument("--nodes", metavar="N", type=int, default=100, help="how many (default: 100)")
    group.add_argument(
        "--processes",
        metavar="N",
        type=int,
        default=1,
        help="how many processes they run in, of 19,000 nodes at most (default: 1)",
    )
    group.add_argument(
        "--prefix", metavar="NAME", default="sim", help="they are named NAME-<n> (default: sim)"
    )
    group.add_argument(
        "--source",
        metavar="IP",
        action="append",
        help="an address of this machine to connect from; may be repeated. One has 28,000 ports for each hub (default: the "
        "system's choice; for a hub on this machine 127.0.1.1 and on, one for each process and 10,000 nodes)",
    )
    group.add_argument(
        "--at-once",
        metavar="N",
        type=int,
        default=64,
        help="connections that a process may be making at a time (default: 64)",
    )
    group.add_argument(
        "--connect-rate",
        metavar="N",
        type=float,
        default=0.0,
        help="connections begun in a second, over all (default: no bound)",
    )


def _identities(group: Any) -> None:
    token = group.add_mutually_exclusive_group()
    token.add_argument(
        "--token", metavar="TOKEN", help="a pool's join token, for as many nodes as have no certificate yet"
    )
    token.add_argument("--token-file", metavar="FILE", help="a file that holds it, which `ps` does not show")
    group.add_argument(
        "--ca",
        metavar="DIR",
        help="issue the certificates with the authority in this folder, `ca` of a hub's data directory on this machine, and make "
        "the Nodes through the API: thousands a second",
    )
    group.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where keys and certificates are kept between runs, mode 0700 (default: cloudhub/simulate in the user's cache)",
    )
    group.add_argument("--fresh", action="store_true", help="forget what the cache has of this hub before")


def _load(group: Any) -> None:
    group.add_argument(
        "--pods", metavar="M", type=int, default=0, help="pods made on each node through the API (default: 0)"
    )
    group.add_argument(
        "--namespace", metavar="NAME", default="default", help="where they are made (default: default)"
    )
    group.add_argument(
        "--churn",
        metavar="N",
        type=float,
        default=0.0,
        help="statuses of pods that change in a second, over all nodes (default: 0)",
    )
    group.add_argument(
        "--updates",
        metavar="N",
        type=float,
        default=0.0,
        help="pods that are changed through the API in a second (default: 0)",
    )


def _faults(group: Any) -> None:
    group.add_argument(
        "--latency", metavar="DURATION", help="of a round trip, added to the network's: 0.3s (default: none)"
    )
    group.add_argument(
        "--link-loss",
        metavar="SHARE",
        type=float,
        default=0.0,
        help="of all links, 0 to 1, that fall silent in each minute without being closed (default: 0)",
    )
    group.add_argument(
        "--outage", metavar="DURATION", default="10s", help="how long such a link is silent (default: 10s)"
    )
    group.add_argument(
        "--slow",
        metavar="SHARE",
        type=float,
        default=0.0,
        help="of all nodes, 0 to 1, that read slowly (default: 0)",
    )
    group.add_argument(
        "--slow-rate",
        metavar="N",
        type=float,
        default=2048.0,
        help="bytes that each of those reads in a second (default: 2048)",
    )
    group.add_argument(
        "--storm",
        metavar="DURATION",
        help="cut all connections at once that often; nodes come back with the agent's back-off (default: never)",
    )


def _report(group: Any) -> None:
    group.add_argument(
        "--duration",
        metavar="DURATION",
        help="how long the run goes on once all nodes are connected and have their pods: 30s, 10m (default: until Ctrl-C)",
    )
    group.add_argument(
        "--patience",
        metavar="DURATION",
        default="10m",
        help="how long connecting, first pods and the return after a storm may take (default: 10m)",
    )
    group.add_argument("--keep-pods", action="store_true", help="leave the pods at the end")
    group.add_argument(
        "--remove",
        action="store_true",
        help="at the end remove the Nodes as well, and forget their identities",
    )
    group.add_argument(
        "--seed", metavar="N", type=int, default=1, help="of what is left to chance (default: 1)"
    )
    group.add_argument(
        "-o",
        "--output",
        choices=("table", "json"),
        default="table",
        help="form of the report (default: table)",
    )
    group.add_argument("--report-file", metavar="FILE", help="write it there as JSON as well")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress on standard error")

"""`make bench`: all benches, one JSON object a line. ARGS names some of them: access, admission, cluster, connect, edge,
fanout, fleet, fleetpage, fleet-full (only where it is named), hub, kubernetes, pods, relay, replicas, secrets, storm."""

import sys

from tests.bench import (
    access,
    admission,
    cluster,
    connect,
    edge,
    fanout,
    fleet,
    fleetpage,
    hub,
    kubernetes,
    pods,
    relay,
    replicas,
    report,
    secrets,
    storm,
)

BENCHES = {
    "access": access.main,
    "admission": admission.main,
    "hub": hub.main,
    "edge": edge.main,
    "fanout": fanout.main,
    "fleet": fleet.main,
    "fleetpage": fleetpage.main,
    "pods": pods.main,
    "relay": relay.main,
    "replicas": replicas.main,
    "kubernetes": kubernetes.main,
    "cluster": cluster.main,
    "connect": connect.main,
    "secrets": secrets.main,
    "storm": storm.main,
}
LONG = {"fleet-full": lambda: fleet.main(fleet.FULL)}


def main() -> int:
    wanted = sys.argv[1:] or list(BENCHES)
    known = {**BENCHES, **LONG}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"no bench {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    sys.argv[1:] = []
    report.machine()
    for name in wanted:
        known[name]()
    return 0


sys.exit(main())

"""The options of `cloudhub serve`: each is also a key of the config file (`hub.config`)."""

import argparse
from typing import Any

from security.algorithms import ALGORITHMS


def add_serve(commands: Any) -> None:
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
        "--metrics-address",
        "--metrics-listen",
        metavar="HOST:PORT",
        help="where /metrics is served in clear and to everybody (default: nowhere; the API port serves it to its clients)",
    )
    serve.add_argument(
        "--advertise-edge",
        metavar="HOST:PORT",
        help="the address that joining agents keep, or several with commas between (default: the one that they joined "
        "through and those of the other replicas)",
    )
    serve.add_argument(
        "--replica-edge",
        metavar="HOST:PORT",
        help="where edges reach this very replica, for redirects; `none`: nowhere, its nodes are relayed (default: "
        "--edge-address where that is no wildcard)",
    )
    serve.add_argument(
        "--tls-san",
        metavar="NAME",
        action="append",
        help="extra DNS name or IP of the hub's certificate; may be repeated",
    )
    serve.add_argument(
        "--audit-policy",
        metavar="FILE",
        help="audit.k8s.io/v1 Policy: which API requests the audit log tells of (default: none)",
    )
    serve.add_argument(
        "--audit-log",
        metavar="FILE",
        help="the audit log, JSON lines, mode 0600, rotated (default: audit.log in the data directory)",
    )
    serve.add_argument(
        "--otlp-endpoint",
        metavar="URL",
        help="http:// or https:// address of an OpenTelemetry collector (gRPC) that metrics, traces and logs are sent to "
        "(default: what the OTEL_EXPORTER_OTLP_ variables say, else nothing is sent)",
    )
    serve.add_argument(
        "--trace-ratio",
        metavar="RATIO",
        type=float,
        help="which part of the API's changes is traced, 0 to 1; a client's traceparent decides for itself (default: what "
        "OTEL_TRACES_SAMPLER says, else 0.001)",
    )
    serve.add_argument(
        "--kms-socket",
        metavar="PATH",
        help="Unix socket of a plugin of Kubernetes' KMS v2 API: the key management service that wraps the keys of Secrets "
        "and join tokens (default: none; the key file wraps them)",
    )
    several = serve.add_argument_group(
        "several replicas",
        "Replicas that share etcd are one hub: any of them serves any node and any API call.",
    )
    several.add_argument(
        "--etcd",
        metavar="HOST:PORT,..",
        type=names_in,
        help="etcd members that keep the fleet (default: none; this hub is alone, its store is in the data directory)",
    )
    several.add_argument("--etcd-ca", metavar="FILE", help="PEM roots for etcd (default: no TLS)")
    several.add_argument(
        "--etcd-cert", metavar="FILE", help="PEM client certificate for etcd (default: none)"
    )
    several.add_argument("--etcd-key", metavar="FILE", help="PEM key of --etcd-cert (default: none)")
    several.add_argument(
        "--nats",
        metavar="URL,..",
        type=names_in,
        help="NATS servers that carry nodes between replicas (default: none; nodes are redirected, never relayed)",
    )
    several.add_argument(
        "--nats-ca", metavar="FILE", help="PEM roots for NATS (default: the system's, for tls://)"
    )
    several.add_argument(
        "--nats-cert", metavar="FILE", help="PEM client certificate for NATS (default: none)"
    )
    several.add_argument("--nats-key", metavar="FILE", help="PEM key of --nats-cert (default: none)")
    several.add_argument(
        "--key-file",
        metavar="FILE",
        help="seals the fleet's one authority in etcd, and Secrets and join tokens, the same for all replicas; made once "
        "with `cloudhub key create FILE` (required with --etcd; default without: secrets.key in the data directory, made "
        "where there is none)",
    )
    several.add_argument(
        "--name", metavar="NAME", help="this replica's name, different for each (default: the host's name)"
    )
    several.add_argument(
        "--weight",
        metavar="N",
        type=float,
        help="this replica's share of the fleet, 0.01 to 100 (default: 1)",
    )
    serve.add_argument(
        "--join-approval",
        choices=("token", "always"),
        help="which joining nodes wait until an operator approves them, with `kubectl certificate approve`: those whose "
        "token says so, or all (default: token)",
    )
    keys = serve.add_argument_group("keys", "How the fleet's authority and this hub prove who they are.")
    keys.add_argument(
        "--ca-key",
        metavar="URI",
        help="the authority's key in a PKCS #11 token, pkcs11:token=T;object=O?module-path=LIB&pin-source=FILE; made with "
        "`cloudhub key create URI` (default: the hub makes and keeps it)",
    )
    keys.add_argument(
        "--ca-key-algorithm",
        choices=ALGORITHMS,
        help="of the authority's key, when it is made (default: ecdsa-p256)",
    )
    keys.add_argument(
        "--hub-key-algorithm",
        choices=ALGORITHMS,
        help="of the hub's own key; boards know ECDSA alone (default: ecdsa-p256)",
    )
    cluster = serve.add_argument_group(
        "objects in a Kubernetes cluster",
        "The cluster's API server keeps Pods, Nodes, ConfigMaps and Secrets, its scheduler and controllers do their work;"
        " this hub is the kubelet of all edge nodes.",
    )
    cluster.add_argument(
        "--source",
        choices=("own", "kubernetes"),
        help="where objects live: in this hub's own store, or in a cluster's API server (default: own)",
    )
    cluster.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="how to reach the API server (default: as a pod of the cluster)",
    )
    cluster.add_argument(
        "--kubelet-address",
        metavar="HOST:PORT",
        help="where the API server reaches logs, exec and port-forward of every edge node (default: 0.0.0.0:10250)",
    )
    cluster.add_argument(
        "--kubelet-advertise",
        metavar="IP:PORT",
        help="the address of it that Nodes name (default: --kubelet-address where that is no wildcard)",
    )
    cluster.add_argument(
        "--kubelet-client-ca",
        metavar="FILE",
        help="PEM roots of the API server's client certificate (default: none; bearer tokens, reviewed by it)",
    )
    cluster.add_argument(
        "--webhook-address",
        metavar="HOST:PORT",
        help="where the admission webhook is served that has pods of edge nodes tolerate a lost link (default: none)",
    )
    cluster.add_argument(
        "--node-lease",
        metavar="DURATION",
        help="how often the Lease of a living node is renewed, 5s to 30m (default: 10s)",
    )
    _identities(serve)
    serve.set_defaults(run="serve")


def _identities(serve: argparse.ArgumentParser) -> None:
    group = serve.add_argument_group(
        "identities",
        "Identities are SPIFFE's. The authority is the hub's own, or SPIRE's; users of the API keep the hub's own.",
    )
    group.add_argument(
        "--trust-domain",
        metavar="NAME",
        help="the SPIFFE trust domain; fixed at the first start (default: cloudhub.local)",
    )
    group.add_argument(
        "--spire-server",
        metavar="HOST:PORT",
        help="the SPIRE server's API; the hub signs nodes as a downstream authority below it. Its entry is made with "
        "`spire-server entry create -spiffeID spiffe://TRUST-DOMAIN/hub/REPLICA -dns hub.TRUST-DOMAIN -downstream ..` "
        "(default: none; the embedded authority)",
    )
    group.add_argument(
        "--spiffe-socket",
        metavar="URL",
        help="with --spire-server: the Workload API of the SPIRE agent, unix:///path (default: $SPIFFE_ENDPOINT_SOCKET)",
    )
    group.add_argument(
        "--federated-bundle",
        metavar="TD=FILE",
        action="append",
        help="PEM roots of another trust domain, read again when the file changes; may be repeated (default: with "
        "--spire-server what the Workload API says, else none)",
    )
    group.add_argument(
        "--federated-node",
        metavar="TD=node:NAME",
        action="append",
        help="the nodes for which another trust domain speaks: TD=node:NAME or TD=site:NAME, a NAME may end in *; no other "
        "node of it is accepted; may be repeated (default: none)",
    )
    group.add_argument(
        "--workload-identity",
        metavar="UID=SPIFFE-ID",
        action="append",
        help="who gets an X.509-SVID of the embedded authority over this hub's own Workload API; may be repeated (default: "
        "nobody; it is not served)",
    )
    group.add_argument(
        "--workload-socket",
        metavar="PATH",
        help="its Unix socket (default: workload.sock in the data directory)",
    )
    group.add_argument(
        "--workload-group",
        metavar="GROUP",
        help="users of this group may connect to it too (default: this process's user alone)",
    )


def names_in(text: str) -> list[str]:
    """The parts of `a,b,c`."""
    return [part for part in text.split(",") if part]

"""Every metric that a hub exports, in one table. [pure]

`METRICS.md` is made from it (`python -m tests.docs.metrics`), and tests hold both against what running hubs export:
nothing is exported that is not here, and every label value is one that its row allows.
"""

from typing import Final

from observability.metric import BYTES, COUNTER, GAUGE, HISTOGRAM, SECONDS, Label, Metric

_CODE: Final = Label("code", pattern=r"[1-5]\d\d", words="HTTP status code; 499 where the client went away")
HTTP_VERBS: Final = (
    "connect",
    "create",
    "delete",
    "deletecollection",
    "get",
    "head",
    "impersonate",
    "list",
    "options",
    "patch",
    "post",
    "put",
    "update",
    "watch",
)
_VERB: Final = Label("verb", HTTP_VERBS)
HTTP_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
_RESOURCE: Final = Label(
    "resource", pattern=r"[a-z.0-9]*", words="a kind that the hub serves; empty for none"
)
_REASON: Final = Label("reason", pattern=r"[a-z][a-z0-9_-]*", words="a word of the hub's code")
_OUTCOME: Final = Label("outcome", ("written", "lost"))
_SHORT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LOOP_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_KUBERNETES: Final = "--source kubernetes"
_SPIRE: Final = "--spire-server"
_OWN: Final = "objects of its own"

_PROCESS: Final = (
    Metric(
        "cloudhub.build.info",
        GAUGE,
        "1, by the version that runs.",
        labels=(Label("version", pattern=r"[0-9a-z.+-]+", words="of CloudHub"),),
    ),
    Metric(
        "process.cpu.time",
        COUNTER,
        "CPU time of this process.",
        SECONDS,
        (Label("mode", ("user", "system")),),
    ),
    Metric("process.memory.usage", GAUGE, "Memory of this process that is in RAM.", BYTES),
    Metric(
        "process.open_file_descriptor.count",
        GAUGE,
        "Open file descriptors of this process; at most 20,000 are usual.",
    ),
    Metric("process.uptime", GAUGE, "Since this process began.", SECONDS),
    Metric(
        "cloudhub.loop.lateness",
        HISTOGRAM,
        "How late the event loop came back to a timer: heartbeats wait as long.",
        SECONDS,
        bounds=LOOP_BOUNDS_S,
    ),
    Metric(
        "cloudhub.loop.longest",
        GAUGE,
        "The longest lateness of the event loop since the last scrape.",
        SECONDS,
        key="longest_s",
    ),
    Metric(
        "cloudhub.loop.longest_busy",
        GAUGE,
        "As much of the longest lateness as the loop's own thread worked; the rest it waited for a core.",
        SECONDS,
        key="longest_busy_s",
    ),
    Metric("cloudhub.loop.stalls", COUNTER, "Times that the event loop stood still for more than 0.1 s."),
    Metric(
        "cloudhub.loop.busy_stalls",
        COUNTER,
        "Those of the stalls in which the loop's own thread worked for more than 0.1 s.",
    ),
    Metric("cloudhub.loop.late", COUNTER, "All lateness of the event loop together.", SECONDS, key="late_s"),
)

_API: Final = (
    Metric("cloudhub.api.requests", COUNTER, "Requests answered.", labels=(_VERB, _RESOURCE, _CODE)),
    Metric(
        "http.server.request.duration",
        HISTOGRAM,
        "Duration of requests of the API; watches and connections left out.",
        SECONDS,
        (
            Label("http.request.method", (*HTTP_METHODS, "_OTHER")),
            Label("http.response.status_code", pattern=r"[1-5]\d\d", words="as `code`"),
        ),
        bounds=_SHORT_S,
    ),
    Metric(
        "cloudhub.api.refused",
        COUNTER,
        "Requests refused for who asked, for what he may, or how much.",
        labels=(_REASON,),
    ),
    Metric("cloudhub.api.in_flight", GAUGE, "Requests being served."),
    Metric("cloudhub.api.watches", GAUGE, "Watches, followed logs, exec, attach and port-forward."),
    Metric(
        "cloudhub.audit.records",
        COUNTER,
        "Audit records, by what became of them.",
        labels=(_OUTCOME,),
        when="--audit-policy",
    ),
    Metric("cloudhub.policies.policies", GAUGE, "ValidatingAdmissionPolicies in force.", when=_OWN),
    Metric("cloudhub.policies.judged", COUNTER, "Writes that policies were asked about.", when=_OWN),
    Metric("cloudhub.policies.denied", COUNTER, "Writes that policies denied.", when=_OWN),
    Metric("cloudhub.policies.time", COUNTER, "Time spent on policies.", SECONDS, key="seconds", when=_OWN),
)

_CHANNEL: Final = (
    Metric(
        "cloudhub.edge.connections", GAUGE, "Connections of the edge port, those in the handshake included."
    ),
    Metric("cloudhub.edge.handshaking", GAUGE, "Connections whose TLS handshake is not finished."),
    Metric(
        "cloudhub.edge.handshakes_waiting",
        GAUGE,
        "Accepted connections that wait for their handshake to begin.",
    ),
    Metric(
        "cloudhub.edge.nodes", GAUGE, "Nodes of this replica's slots that are connected, here or relayed."
    ),
    Metric("cloudhub.edge.waiting", GAUGE, "Nodes that wait until somebody owns their slot."),
    Metric("cloudhub.edge.redirected", COUNTER, "Nodes sent to the replica that owns their slot."),
    Metric(
        "cloudhub.edge.backlog",
        GAUGE,
        "Bytes queued for nodes that have not been taken by the kernel.",
        BYTES,
        key="backlog_bytes",
    ),
    Metric("cloudhub.edge.accepted", COUNTER, "Connections accepted on the edge port."),
    Metric("cloudhub.edge.handshakes", COUNTER, "TLS handshakes finished."),
    Metric(
        "cloudhub.edge.received", COUNTER, "Bytes received from nodes, before TLS.", BYTES, key="bytes_in"
    ),
    Metric("cloudhub.edge.sent", COUNTER, "Bytes sent to nodes, before TLS.", BYTES, key="bytes_out"),
    Metric("cloudhub.edge.refused", COUNTER, "Messages and connections refused, for all reasons."),
    Metric(
        "cloudhub.edge.throttled",
        COUNTER,
        "Times that a node was not read for a while since it sent too much.",
    ),
    Metric(
        "cloudhub.edge.throttled_time", COUNTER, "For how long, all together.", SECONDS, key="throttled_s"
    ),
    Metric("cloudhub.edge.joined", COUNTER, "Certificates given to joining nodes."),
    Metric("cloudhub.edge.joins_refused", COUNTER, "Joins refused."),
    Metric("cloudhub.edge.joins_limited", COUNTER, "Joins told to come back later."),
    Metric(
        "cloudhub.edge.joins_pending", COUNTER, "Times that a joining node was told to wait for approval."
    ),
    Metric("cloudhub.edge.upstream_jobs", GAUGE, "Status writes of nodes that are under way or wait."),
    Metric("cloudhub.edge.upstream_transactions", COUNTER, "Transactions made of status writes."),
    Metric("cloudhub.edge.upstream_retries", COUNTER, "Of them those that were repeated after a conflict."),
    Metric("cloudhub.edge.closed", COUNTER, "Edge connections closed.", labels=(_REASON,)),
    Metric(
        "cloudhub.channel.refused",
        COUNTER,
        "What was not admitted on the edge port and between hubs.",
        labels=(
            Label("kind", pattern=r"[a-z]+", words="kind of peer"),
            Label(
                "type", pattern=r"[A-Za-z_]+", words="a message of the channel, an upstream entry, `connect`"
            ),
            Label(
                "reason",
                pattern=r"[A-Za-z][A-Za-z0-9 _:,.'()-]*",
                words="a word of the hub's code, or OpenSSL's for a certificate",
            ),
        ),
    ),
    Metric(
        "cloudhub.channel.acknowledgement",
        HISTOGRAM,
        "From a document's SET to its acknowledgement by the node, of traced changes.",
        SECONDS,
        bounds=_LONG_S,
        when="tracing",
    ),
    Metric("cloudhub.trace.sampled", COUNTER, "API requests that are traced.", when="tracing"),
    Metric(
        "cloudhub.trace.limited",
        COUNTER,
        "API requests that were not traced since too many are.",
        when="tracing",
    ),
    Metric("cloudhub.trace.spans", COUNTER, "Spans that ended.", when="tracing"),
    Metric(
        "cloudhub.trace.deliveries",
        GAUGE,
        "Traced documents that wait for a node's acknowledgement.",
        when="tracing",
    ),
    Metric(
        "cloudhub.trace.unacknowledged",
        COUNTER,
        "Traced documents that were not acknowledged in time.",
        when="tracing",
    ),
)

_SHARDS: Final = (
    Metric("cloudhub.shard.slots", GAUGE, "Slots of the fleet."),
    Metric("cloudhub.shard.slots_unowned", GAUGE, "Slots that no replica owns, as this one sees it."),
    Metric(
        "cloudhub.shard.roles_unowned",
        GAUGE,
        "Roles (scheduler, controllers) that no replica owns, as this one sees it.",
    ),
    Metric("cloudhub.shard.roles_owned", GAUGE, "Roles that this replica owns."),
    Metric("cloudhub.shard.members", GAUGE, "Replicas that are up, as this one sees it."),
    Metric(
        "cloudhub.shard.suspended",
        GAUGE,
        "1 while this replica may not act: its lease was not renewed in time.",
    ),
    Metric("cloudhub.shard.claims", COUNTER, "Slots and roles that this replica has claimed."),
    Metric("cloudhub.shard.releases", COUNTER, "Slots and roles that it gave away in order."),
    Metric("cloudhub.shard.losses", COUNTER, "Slots and roles that it lost to others or with its lease."),
    Metric(
        "cloudhub.shard.suspensions",
        COUNTER,
        "Times that it had to stop acting: the lease was not renewed in time.",
    ),
    Metric(
        "cloudhub.shard.fence_rejections",
        COUNTER,
        "Writes as an owner that the store refused: somebody else owns the slot.",
    ),
    Metric("cloudhub.edge.slots_serving", GAUGE, "Slots that this replica serves."),
    Metric("cloudhub.edge.slots_loading", GAUGE, "Slots that it owns and still loads."),
    Metric("cloudhub.edge.slots_draining", GAUGE, "Slots that it gives away."),
    Metric(
        "cloudhub.edge.slots_suspended", GAUGE, "Slots that it serves and may not act for at this moment."
    ),
    Metric(
        "cloudhub.relay.nodes_away",
        GAUGE,
        "Connections that this replica relays to others.",
        key="relayed_away",
        when="--nats",
    ),
    Metric(
        "cloudhub.relay.nodes_here",
        GAUGE,
        "Connections that others relay to this replica.",
        key="relayed_here",
        when="--nats",
    ),
    Metric(
        "cloudhub.relay.logs",
        GAUGE,
        "Streams of nodes open for other replicas.",
        key="relayed_logs",
        when="--nats",
    ),
    Metric(
        "cloudhub.relay.broken",
        COUNTER,
        "Relayed connections that ended for a gap or a lost bus.",
        key="relays_broken",
        when="--nats",
    ),
    Metric("cloudhub.relay.bus_up", GAUGE, "1 while NATS is connected.", key="bus_connected", when="--nats"),
)

_POOL: Final = Label(
    "pool",
    pattern=r"[A-Za-z0-9]?[A-Za-z0-9._-]*",
    words="the pool of the token that the node joined with, `none`; 100 at most",
)
_FLEET: Final = (
    Metric(
        "cloudhub.nodes.nodes",
        GAUGE,
        "Nodes of this replica's slots, by pool and by what their Ready condition says.",
        labels=(_POOL, Label("ready", ("True", "False", "Unknown"))),
    ),
)

_CONTROLLER: Final = Label("controller", pattern=r"[a-z-]+", words="a controller of the hub")
_STORE: Final = (
    Metric(
        "cloudhub.store.transaction.duration",
        HISTOGRAM,
        "Duration of the store's transactions.",
        SECONDS,
        (Label("outcome", ("committed", "conflict", "failed")),),
        bounds=_SHORT_S,
    ),
    Metric("cloudhub.store.revision", GAUGE, "The revision that this replica's documents have reached."),
    Metric(
        "cloudhub.controller.depth",
        GAUGE,
        "Keys that wait, on the replica that runs the controllers.",
        labels=(_CONTROLLER,),
        when=_OWN,
    ),
    Metric("cloudhub.controller.syncs", COUNTER, "Keys looked at.", labels=(_CONTROLLER,), when=_OWN),
    Metric(
        "cloudhub.controller.retries",
        COUNTER,
        "Keys that have to be looked at again after a failure.",
        labels=(_CONTROLLER,),
        when=_OWN,
    ),
    Metric("cloudhub.controller.failures", COUNTER, "Syncs that failed.", labels=(_CONTROLLER,), when=_OWN),
)

_SECURITY: Final = (
    Metric(
        "cloudhub.certificate.hub_ends",
        GAUGE,
        "When this replica's own certificate ends, unix time.",
        SECONDS,
    ),
    Metric(
        "cloudhub.certificate.authority_ends",
        GAUGE,
        "When the active authority of the fleet ends, unix time.",
        SECONDS,
    ),
    Metric("cloudhub.certificate.roots", GAUGE, "Roots that are trusted; more than one during a rotation."),
    Metric("cloudhub.certificate.revocations", GAUGE, "Revocations that this replica knows."),
    Metric(
        "cloudhub.certificate.revocations_fresh",
        GAUGE,
        "1 while it knows them as of late; else nobody new is admitted.",
    ),
    Metric(
        "cloudhub.spire.svid_ends",
        GAUGE,
        "When the SVID that SPIRE gave ends, unix time.",
        SECONDS,
        when=_SPIRE,
    ),
    Metric(
        "cloudhub.spire.authority_ends",
        GAUGE,
        "When the intermediate authority from SPIRE ends, unix time.",
        SECONDS,
        when=_SPIRE,
    ),
    Metric("cloudhub.spire.roots", GAUGE, "Roots of the bundle from SPIRE.", when=_SPIRE),
    Metric("cloudhub.spire.workload_api_up", GAUGE, "1 while the Workload API answers.", when=_SPIRE),
    Metric(
        "cloudhub.spire.authority_up", GAUGE, "1 while the SPIRE server renews the authority.", when=_SPIRE
    ),
    Metric("cloudhub.spire.updates", COUNTER, "Updates from the Workload API.", when=_SPIRE),
)

_CLUSTER: Final = (
    Metric(
        "cloudhub.kubernetes.pods", GAUGE, "Pods cached: those of this replica's slots.", when=_KUBERNETES
    ),
    Metric("cloudhub.kubernetes.pods_own", GAUGE, "Pods of this replica's slots.", when=_KUBERNETES),
    Metric(
        "cloudhub.kubernetes.pods_foreign", GAUGE, "Pods seen that are other replicas'.", when=_KUBERNETES
    ),
    Metric("cloudhub.kubernetes.nodes", GAUGE, "Nodes cached.", when=_KUBERNETES),
    Metric(
        "cloudhub.kubernetes.nodes_foreign",
        GAUGE,
        "Nodes of other replicas of which the slot is kept.",
        when=_KUBERNETES,
    ),
    Metric("cloudhub.kubernetes.services", GAUGE, "Services cached.", when=_KUBERNETES),
    Metric("cloudhub.kubernetes.endpointslices", GAUGE, "EndpointSlices cached.", when=_KUBERNETES),
    Metric(
        "cloudhub.kubernetes.devices",
        GAUGE,
        "Devices cached: those of this replica's slots.",
        when=_KUBERNETES,
    ),
    Metric(
        "cloudhub.kubernetes.namespaced_foreign",
        GAUGE,
        "Services and EndpointSlices seen that no node of ours needs.",
        when=_KUBERNETES,
    ),
    Metric(
        "cloudhub.kubernetes.namespaced_left_out",
        GAUGE,
        "Services and EndpointSlices that nodes are not told for the bound.",
        when=_KUBERNETES,
    ),
    Metric("cloudhub.kubernetes.watches_begun", COUNTER, "Watches begun.", when=_KUBERNETES),
    Metric(
        "cloudhub.kubernetes.reference_watches",
        GAUGE,
        "Watches of single ConfigMaps and Secrets.",
        when=_KUBERNETES,
    ),
    Metric(
        "cloudhub.kubernetes.references",
        GAUGE,
        "ConfigMaps and Secrets that pods here refer to.",
        when=_KUBERNETES,
    ),
    Metric(
        "cloudhub.kubernetes.references_polled",
        GAUGE,
        "Of them those that are asked for now and then.",
        when=_KUBERNETES,
    ),
    Metric(
        "cloudhub.kubernetes.leases",
        GAUGE,
        "Leases of living nodes that this replica renews.",
        when=_KUBERNETES,
    ),
    Metric("cloudhub.kubernetes.leases_renewed", COUNTER, "Leases renewed.", when=_KUBERNETES),
    Metric("cloudhub.kubernetes.leases_failed", COUNTER, "Renewals that failed.", when=_KUBERNETES),
    Metric(
        "cloudhub.kubernetes.leases_oldest",
        GAUGE,
        "Age of the lease that was renewed longest ago.",
        SECONDS,
        key="leases_oldest_s",
        when=_KUBERNETES,
    ),
    Metric("cloudhub.kubernetes.writes", COUNTER, "Writes to the API server.", when=_KUBERNETES),
    Metric("cloudhub.kubernetes.conflicts", COUNTER, "Writes that met a conflict.", when=_KUBERNETES),
    Metric("cloudhub.kubernetes.events_created", COUNTER, "Events created.", when=_KUBERNETES),
    Metric("cloudhub.kubernetes.events_counted", COUNTER, "Events counted up.", when=_KUBERNETES),
    Metric(
        "cloudhub.kubernetes.events_refused", COUNTER, "Events that the API server refused.", when=_KUBERNETES
    ),
    Metric(
        "cloudhub.kubernetes.repairs",
        COUNTER,
        "Pods mended that had lost what keeps them on a node that is away.",
        when=_KUBERNETES,
    ),
    Metric("cloudhub.kubernetes.tolerations_set", COUNTER, "Pods given their tolerations.", when=_KUBERNETES),
    Metric(
        "cloudhub.kubernetes.throttled",
        COUNTER,
        "Requests that the API server answered 429.",
        when=_KUBERNETES,
    ),
    Metric("cloudhub.kubelet.requests", COUNTER, "Requests to the kubelet's face.", when=_KUBERNETES),
    Metric("cloudhub.kubelet.refused", COUNTER, "Of them those that were refused.", when=_KUBERNETES),
    Metric("cloudhub.kubelet.serving", GAUGE, "Requests being served there.", when=_KUBERNETES),
)

SECTIONS: Final = (
    ("The process", _PROCESS),
    ("The fleet", _FLEET),
    ("The API", _API),
    ("The edge-cloud channel", _CHANNEL),
    ("Slots and replicas", _SHARDS),
    ("The store and the controllers", _STORE),
    ("Security", _SECURITY),
    ("Objects in a Kubernetes cluster", _CLUSTER),
)
CATALOGUE: Final = tuple(metric for _, metrics in SECTIONS for metric in metrics)

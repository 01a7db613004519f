"""The dashboards: fleet, replica, shards, channel, store, security. [pure]"""

from typing import Final

from observability.dashboards.grafana import INSTANCE, JOB, RATE, Board, Panel, Query

READY: Final = f'{JOB},ready="True"'
NOT_READY: Final = f'{JOB},ready!="True"'


def _sum(metric: str, by: str = "", where: str = JOB) -> str:
    return f"sum{f' by ({by})' if by else ''} ({metric}{{{where}}})"


def _rate(metric: str, by: str = "", where: str = JOB) -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{where}}}[{RATE}]))"


def _quantile(q: float, metric: str, by: str = "", where: str = JOB) -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[{RATE}])))"


def _stat(title: str, expr: str, unit: str = "short", what: str = "") -> Panel:
    return Panel(title, (Query(expr),), unit, what, kind="stat", per_row=6)


FLEET: Final = Board(
    "fleet",
    "fleet",
    "All replicas together: how many nodes there are, which are lost, what the API does.",
    (
        _stat("Nodes", _sum("cloudhub_nodes_nodes")),
        _stat("Ready", _sum("cloudhub_nodes_nodes", where=READY)),
        _stat("Connected", _sum("cloudhub_edge_nodes")),
        _stat(
            "Not ready",
            _sum("cloudhub_nodes_nodes", where=NOT_READY),
        ),
        _stat("Replicas", f"max (cloudhub_shard_members{{{JOB}}})"),
        _stat("Slots without owner", f"max (cloudhub_shard_slots_unowned{{{JOB}}})"),
        Panel(
            "Nodes by state", (Query(_sum("cloudhub_nodes_nodes", "ready"), "Ready={{ready}}"),), stacked=True
        ),
        Panel(
            "Nodes that are not ready, by pool",
            (
                Query(
                    _sum("cloudhub_nodes_nodes", "pool", NOT_READY),
                    "{{pool}}",
                ),
            ),
        ),
        Panel(
            "Nodes connected, by replica",
            (Query(_sum("cloudhub_edge_nodes", "instance"), "{{instance}}"),),
            stacked=True,
        ),
        Panel(
            "Nodes joined",
            (
                Query(_rate("cloudhub_edge_joined_total"), "joined"),
                Query(_rate("cloudhub_edge_joins_refused_total"), "refused"),
            ),
            "ops",
        ),
        Panel(
            "API requests, by verb",
            (Query(_rate("cloudhub_api_requests_total", "verb"), "{{verb}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "API requests, by code",
            (Query(_rate("cloudhub_api_requests_total", "code"), "{{code}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "API latency",
            (
                Query(_quantile(0.5, "http_server_request_duration_seconds"), "median"),
                Query(_quantile(0.99, "http_server_request_duration_seconds"), "99%"),
            ),
            "s",
        ),
        Panel(
            "From a document's SET to the node's acknowledgement, traced changes",
            (
                Query(_quantile(0.5, "cloudhub_channel_acknowledgement_seconds"), "median"),
                Query(_quantile(0.99, "cloudhub_channel_acknowledgement_seconds"), "99%"),
            ),
            "s",
            "With --otlp-endpoint and a --trace-ratio above 0.",
        ),
    ),
)

REPLICA: Final = Board(
    "replica",
    "replica",
    "One replica: what it costs, and whether its event loop keeps up.",
    (
        Panel(
            "CPU",
            (
                Query(
                    f"sum by (instance, mode) (rate(process_cpu_time_seconds_total{{{INSTANCE}}}[{RATE}]))",
                    "{{instance}} {{mode}}",
                ),
            ),
            "percentunit",
            "1 is one core, which is all that a replica can use.",
        ),
        Panel("Memory", (Query(f"process_memory_usage_bytes{{{INSTANCE}}}", "{{instance}}"),), "bytes"),
        Panel(
            "Memory per connected node",
            (
                Query(
                    f"process_memory_usage_bytes{{{INSTANCE}}} / (cloudhub_edge_nodes{{{INSTANCE}}} > 0)",
                    "{{instance}}",
                ),
            ),
            "bytes",
            "Idle memory included, so it falls with the number of nodes.",
        ),
        Panel(
            "Open file descriptors",
            (Query(f"process_open_file_descriptor_count{{{INSTANCE}}}", "{{instance}}"),),
            what="A process may be limited to 20,000.",
        ),
        Panel(
            "Event loop: stalls of more than 0.1 s",
            (Query(_rate("cloudhub_loop_stalls_total", "instance", INSTANCE), "{{instance}}"),),
            "ops",
        ),
        Panel(
            "Event loop: longest lateness",
            (Query(f"cloudhub_loop_longest_seconds{{{INSTANCE}}}", "{{instance}}"),),
            "s",
            "Since the last scrape; heartbeats wait as long.",
        ),
        Panel(
            "Event loop: lateness",
            (
                Query(
                    f"sum by (le) (increase(cloudhub_loop_lateness_seconds_bucket{{{INSTANCE}}}[{RATE}]))",
                    "{{le}}",
                ),
            ),
            "s",
            kind="heatmap",
        ),
        Panel(
            "API: requests being served, watches",
            (
                Query(_sum("cloudhub_api_in_flight", "instance", INSTANCE), "requests {{instance}}"),
                Query(_sum("cloudhub_api_watches", "instance", INSTANCE), "watches {{instance}}"),
            ),
        ),
        Panel("Uptime", (Query(f"process_uptime_seconds{{{INSTANCE}}}", "{{instance}}"),), "s"),
        Panel(
            "Versions",
            (Query(f"count by (version) (cloudhub_build_info{{{INSTANCE}}})", "{{version}}"),),
            stacked=True,
        ),
    ),
    by_instance=True,
)

SHARDS: Final = Board(
    "shards",
    "shards",
    "Who owns which slots, and how well that goes on.",
    (
        _stat("Slots", f"max (cloudhub_shard_slots{{{JOB}}})"),
        _stat("Without owner", f"max (cloudhub_shard_slots_unowned{{{JOB}}})"),
        _stat("Roles without owner", f"max (cloudhub_shard_roles_unowned{{{JOB}}})"),
        _stat("Replicas", f"max (cloudhub_shard_members{{{JOB}}})"),
        _stat("Suspended replicas", _sum("cloudhub_shard_suspended")),
        _stat(
            "Writes refused by fences, 1 h",
            f"sum (increase(cloudhub_shard_fence_rejections_total{{{JOB}}}[1h]))",
        ),
        Panel(
            "Slots served, by replica",
            (Query(_sum("cloudhub_edge_slots_serving", "instance"), "{{instance}}"),),
            stacked=True,
        ),
        Panel(
            "Slots on the move",
            (
                Query(_sum("cloudhub_edge_slots_loading", "instance"), "loading {{instance}}"),
                Query(_sum("cloudhub_edge_slots_draining", "instance"), "draining {{instance}}"),
                Query(_sum("cloudhub_edge_slots_suspended", "instance"), "suspended {{instance}}"),
            ),
        ),
        Panel(
            "Claims, releases and losses",
            (
                Query(_rate("cloudhub_shard_claims_total"), "claims"),
                Query(_rate("cloudhub_shard_releases_total"), "releases"),
                Query(_rate("cloudhub_shard_losses_total"), "losses"),
            ),
            "ops",
        ),
        Panel(
            "Suspensions",
            (Query(_rate("cloudhub_shard_suspensions_total", "instance"), "{{instance}}"),),
            "ops",
            "A lease that was not renewed in time: the store is slow or away, or the process stood still.",
        ),
        Panel(
            "Writes refused by fences",
            (Query(_rate("cloudhub_shard_fence_rejections_total", "instance"), "{{instance}}"),),
            "ops",
        ),
        Panel(
            "Roles owned",
            (Query(_sum("cloudhub_shard_roles_owned", "instance"), "{{instance}}"),),
            stacked=True,
        ),
        Panel(
            "Relayed connections",
            (
                Query(_sum("cloudhub_relay_nodes_away", "instance"), "away from {{instance}}"),
                Query(_sum("cloudhub_relay_nodes_here", "instance"), "to {{instance}}"),
            ),
            what="With --nats.",
        ),
        Panel(
            "The bus between replicas",
            (
                Query(_sum("cloudhub_relay_bus_up", "instance"), "up {{instance}}"),
                Query(_rate("cloudhub_relay_broken_total", "instance"), "relays broken {{instance}}"),
            ),
            what="With --nats.",
        ),
    ),
)

CHANNEL: Final = Board(
    "channel",
    "channel",
    "The connections of edge nodes.",
    (
        Panel(
            "Connections",
            (Query(_sum("cloudhub_edge_connections", "instance", INSTANCE), "{{instance}}"),),
            stacked=True,
        ),
        Panel(
            "Connections and handshakes per second",
            (
                Query(_rate("cloudhub_edge_accepted_total", where=INSTANCE), "accepted"),
                Query(_rate("cloudhub_edge_handshakes_total", where=INSTANCE), "handshakes"),
            ),
            "ops",
        ),
        Panel(
            "Handshakes",
            (
                Query(_sum("cloudhub_edge_handshaking", where=INSTANCE), "under way"),
                Query(_sum("cloudhub_edge_handshakes_waiting", where=INSTANCE), "waiting"),
            ),
        ),
        Panel(
            "Connections closed, by reason",
            (Query(_rate("cloudhub_edge_closed_total", "reason", INSTANCE), "{{reason}}"),),
            "ops",
            stacked=True,
        ),
        Panel(
            "Bytes",
            (
                Query(_rate("cloudhub_edge_received_bytes_total", where=INSTANCE), "received"),
                Query(_rate("cloudhub_edge_sent_bytes_total", where=INSTANCE), "sent"),
            ),
            "Bps",
        ),
        Panel(
            "Backlog for slow readers",
            (Query(_sum("cloudhub_edge_backlog_bytes", "instance", INSTANCE), "{{instance}}"),),
            "bytes",
            "256 MiB at most, then connections are closed.",
        ),
        Panel(
            "Nodes sent on, and waiting for an owner",
            (
                Query(_rate("cloudhub_edge_redirected_total", where=INSTANCE), "redirected per s"),
                Query(_sum("cloudhub_edge_waiting", where=INSTANCE), "waiting"),
            ),
        ),
        Panel(
            "Throttled",
            (
                Query(_rate("cloudhub_edge_throttled_total", where=INSTANCE), "pauses per s"),
                Query(_rate("cloudhub_edge_throttled_time_seconds_total", where=INSTANCE), "seconds per s"),
            ),
        ),
        Panel(
            "Traces",
            (
                Query(_rate("cloudhub_trace_sampled_total", where=INSTANCE), "requests"),
                Query(_rate("cloudhub_trace_spans_total", where=INSTANCE), "spans"),
                Query(_rate("cloudhub_trace_limited_total", where=INSTANCE), "not traced, over the bound"),
            ),
            "ops",
        ),
        Panel(
            "Traced documents without an answer",
            (
                Query(_sum("cloudhub_trace_deliveries", where=INSTANCE), "waiting"),
                Query(_rate("cloudhub_trace_unacknowledged_total", where=INSTANCE), "given up per s"),
            ),
        ),
    ),
    by_instance=True,
)

STORE: Final = Board(
    "store",
    "store",
    "The store as the replicas see it, what nodes report into it, and the controllers.",
    (
        Panel(
            "Transactions, by outcome",
            (Query(_rate("cloudhub_store_transaction_duration_seconds_count", "outcome"), "{{outcome}}"),),
            "ops",
            stacked=True,
        ),
        Panel(
            "Duration of transactions",
            (
                Query(_quantile(0.5, "cloudhub_store_transaction_duration_seconds"), "median"),
                Query(_quantile(0.99, "cloudhub_store_transaction_duration_seconds"), "99%"),
            ),
            "s",
        ),
        Panel(
            "Status of nodes and pods: what waits",
            (Query(_sum("cloudhub_edge_upstream_jobs", "instance"), "{{instance}}"),),
            what="50,000 at most, then nodes are told to come back later.",
        ),
        Panel(
            "Status of nodes and pods: transactions",
            (
                Query(_rate("cloudhub_edge_upstream_transactions_total"), "transactions"),
                Query(_rate("cloudhub_edge_upstream_retries_total"), "of them repeated"),
            ),
            "ops",
        ),
        Panel(
            "Revision",
            (Query(f"cloudhub_store_revision{{{JOB}}}", "{{instance}}"),),
            what="A replica that stays behind does not see changes.",
        ),
        Panel(
            "Controllers: keys that wait",
            (Query(_sum("cloudhub_controller_depth", "controller"), "{{controller}}"),),
        ),
        Panel(
            "Controllers: syncs",
            (Query(_rate("cloudhub_controller_syncs_total", "controller"), "{{controller}}"),),
            "ops",
        ),
        Panel(
            "Controllers: failures and retries",
            (
                Query(_rate("cloudhub_controller_failures_total", "controller"), "failures {{controller}}"),
                Query(_rate("cloudhub_controller_retries_total", "controller"), "retries {{controller}}"),
            ),
            "ops",
        ),
        Panel(
            "Admission policies",
            (
                Query(_rate("cloudhub_policies_judged_total"), "judged"),
                Query(_rate("cloudhub_policies_denied_total"), "denied"),
            ),
            "ops",
        ),
    ),
)

SECURITY: Final = Board(
    "security",
    "security",
    "Who is refused, and what is going to end.",
    (
        _stat(
            "This hub's certificate ends in",
            f"min (cloudhub_certificate_hub_ends_seconds{{{JOB}}}) - time()",
            "s",
        ),
        _stat(
            "The authority ends in",
            f"min (cloudhub_certificate_authority_ends_seconds{{{JOB}}}) - time()",
            "s",
        ),
        _stat("Trusted roots", f"max (cloudhub_certificate_roots{{{JOB}}})"),
        _stat("Revocations", f"max (cloudhub_certificate_revocations{{{JOB}}})"),
        _stat("Revocations known as of late", f"min (cloudhub_certificate_revocations_fresh{{{JOB}}})"),
        _stat(
            "Joins that wait for approval, 1 h",
            f"sum (increase(cloudhub_edge_joins_pending_total{{{JOB}}}[1h]))",
        ),
        Panel(
            "Refused on the edge port and between hubs, by reason",
            (Query(_rate("cloudhub_channel_refused_total", "kind, reason"), "{{kind}}: {{reason}}"),),
            "ops",
            stacked=True,
        ),
        Panel(
            "Refused on the edge port, by message",
            (Query(_rate("cloudhub_channel_refused_total", "type"), "{{type}}"),),
            "ops",
            stacked=True,
        ),
        Panel(
            "API: refused, by reason",
            (Query(_rate("cloudhub_api_refused_total", "reason"), "{{reason}}"),),
            "ops",
            stacked=True,
        ),
        Panel(
            "API: 401, 403 and 429",
            (Query(_rate("cloudhub_api_requests_total", "code", f'{JOB},code=~"401|403|429"'), "{{code}}"),),
            "ops",
            stacked=True,
        ),
        Panel(
            "Joins",
            (
                Query(_rate("cloudhub_edge_joined_total"), "joined"),
                Query(_rate("cloudhub_edge_joins_refused_total"), "refused"),
                Query(_rate("cloudhub_edge_joins_limited_total"), "told to come back later"),
            ),
            "ops",
        ),
        Panel(
            "Audit records",
            (Query(_rate("cloudhub_audit_records_total", "outcome"), "{{outcome}}"),),
            "ops",
            "With --audit-policy.",
        ),
    ),
)

BOARDS: Final = (FLEET, REPLICA, SHARDS, CHANNEL, STORE, SECURITY)

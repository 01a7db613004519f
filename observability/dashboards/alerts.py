"""What wakes a person, and what that person does. [pure]

An alert is a value and a condition on it, apart from each other: the value always has data, which a test asks a real
Prometheus for, and the alert fires where the condition holds for as long as `lasting` says.
"""

from dataclasses import dataclass
from typing import Any, Final

PAGE: Final = "critical"
TICKET: Final = "warning"


@dataclass(frozen=True, slots=True)
class Alert:
    """`summary`: one line with {{ $labels.x }} in it. `means`: what is so. `steps`: the runbook. `guard`: what has to be so
    besides, as PromQL."""

    name: str
    severity: str
    value: str
    condition: str
    lasting: str
    summary: str
    means: str
    steps: tuple[str, ...]
    guard: str = ""

    @property
    def expr(self) -> str:
        return f"{self.value} {self.condition}" + (f" and {self.guard}" if self.guard else "")


ALERTS: Final = (
    Alert(
        "CloudHubSlotsWithoutOwner", PAGE,
        "max by (job) (cloudhub_shard_slots_unowned)", "> 0", "2m",
        "{{ $value }} slots of {{ $labels.job }} have no owner",
        "Nodes of these slots run on with what they have, and nobody tells them anything new or hears them. A replica that ends takes its slots over within the lease's time; this has lasted longer.",
        ("`cloudhub status` shows members, slots and owners.", "Are enough replicas up? Start those that are missing; one that ends at start says why in its log.", "Do replicas reach etcd (`CloudHubReplicaSuspended`, `CloudHubStoreFails`)? A claim is a write.", "A replica that loads its slots without end names what it waits for in its log."),
    ),
    Alert(
        "CloudHubRolesWithoutOwner", PAGE,
        "max by (job) (cloudhub_shard_roles_unowned)", "> 0", "2m",
        "nobody schedules or controls in {{ $labels.job }}",
        "Pods are not bound, Deployments make no pods. Nodes go on with what they have.",
        ("As for `CloudHubSlotsWithoutOwner`: roles are owned as slots are.",),
    ),
    Alert(
        "CloudHubFenceRejections", PAGE,
        "sum by (job, instance) (increase(cloudhub_shard_fence_rejections_total[10m]))", "> 0", "0m",
        "{{ $labels.instance }} wrote for slots that somebody else owns",
        "The store refused it: nothing is damaged. But a replica believed to own what it had lost, as after a freeze of the process or a step of its clock.",
        ("Look for `stood still` and `suspended` in the replica's log at that time.", "A machine that is overcommitted or live-migrated freezes processes: give the replica a core of its own.", "If it goes on, stop this replica: the others take over at once."),
    ),
    Alert(
        "CloudHubReplicaSuspended", PAGE,
        "max by (job, instance) (cloudhub_shard_suspended)", "> 0", "1m",
        "{{ $labels.instance }} may not act: its lease is not renewed",
        "Its nodes stay connected and are told nothing; its reads are marked stale. Others take its slots over when the lease ends.",
        ("Does this replica reach etcd, and has etcd a leader (`etcdctl endpoint status`)?", "Is its event loop busy (`CloudHubLoopStalls`)?", "If others are well, restart it."),
    ),
    Alert(
        "CloudHubBacklog", PAGE,
        "sum by (job, instance) (cloudhub_edge_backlog_bytes)", "> 64 * 1024 * 1024", "5m",
        "{{ $labels.instance }} holds {{ $value | humanize1024 }}B for nodes that do not read",
        "At 256 MiB connections are closed. Many slow readers at once are most often a link that many nodes share.",
        ("The channel dashboard shows since when, and whether bytes leave at all.", "Is the replica's own uplink full, or a site's?", "A large ConfigMap or Secret that reaches all nodes at once passes by itself."),
    ),
    Alert(
        "CloudHubStatusBacklog", PAGE,
        "sum by (job, instance) (cloudhub_edge_upstream_jobs)", "> 10000", "5m",
        "{{ $value }} status reports wait in {{ $labels.instance }}",
        "What nodes report is not stored as fast as it comes. At 50,000 nodes are sent away, and keep their reports.",
        ("Is the store slow (`CloudHubStoreSlow`)?", "Do pods restart in a loop on many nodes? Their status is what waits.", "More replicas do not help a store that is slow."),
    ),
    Alert(
        "CloudHubHubCertificateEnds", PAGE,
        "min by (job, instance) (cloudhub_certificate_hub_ends_seconds) - time()", "< 6 * 3600", "5m",
        "the certificate of {{ $labels.instance }} ends in {{ $value | humanizeDuration }}",
        "It is made anew at half its 24 hours. When it ends no node and no user can connect to this replica.",
        ("The replica's log says why it is not made: the authority ends, or SPIRE does not answer.", "`cloudhub ca status` shows the authority.", "Restart the replica."),
    ),
    Alert(
        "CloudHubAuthorityEnds", TICKET,
        "min by (job) (cloudhub_certificate_authority_ends_seconds) - time()", "< 60 * 86400", "1h",
        "the authority of {{ $labels.job }} ends in {{ $value | humanizeDuration }}",
        "Certificates end with it at the latest. Nodes need the new root before that, and some are away for weeks.",
        ("`cloudhub ca rotate` makes a new one and hands it to all nodes; `cloudhub ca status` shows who has it.",),
    ),
    Alert(
        "CloudHubRevocationsStale", PAGE,
        "min by (job, instance) (cloudhub_certificate_revocations_fresh)", "< 1", "1m",
        "{{ $labels.instance }} does not know who is revoked, and admits nobody new",
        "It has lost touch with its store. Nodes that are connected stay so.",
        ("Does this replica reach etcd?", "If others are well, restart it."),
    ),
    Alert(
        "CloudHubLoopStalls", PAGE,
        "sum by (job, instance) (rate(cloudhub_loop_stalls_total[5m]))", "> 0.2", "10m",
        "the event loop of {{ $labels.instance }} stands still {{ $value | humanize }} times a second",
        "Everything in this replica waits for it, heartbeats and the lease too. It has more to do than a core can, or does not get its core.",
        ("CPU in the replica dashboard: near 1 it has too much to do; add a replica, or lower the weight of this one.", "Well below 1 it does not get its core: look at what else runs on the machine.", "After a change of the fleet (thousands of nodes at once) it passes by itself."),
    ),
    Alert(
        "CloudHubNodesLost", PAGE,
        'sum by (job, pool) (cloudhub_nodes_nodes{ready!="True"}) / sum by (job, pool) (cloudhub_nodes_nodes)', "> 0.2", "5m",
        "{{ $value | humanizePercentage }} of the nodes of pool {{ $labels.pool }} are not ready",
        "A pool that loses many nodes at once has most often lost its network, its power, or got a bad change. Workloads on nodes that are cut off go on.",
        ("`kubectl get nodes -l cloudhub.dev/pool=POOL` and the Ready condition's reason.", "One site or one network operator? Then it is the link: nothing is to be done here.", "After a change to all of them: undo it (`kubectl rollout undo`).", "Do they come and are refused? The security dashboard tells why."),
        guard="sum by (job, pool) (cloudhub_nodes_nodes) >= 5",
    ),
    Alert(
        "CloudHubStoreSlow", TICKET,
        "histogram_quantile(0.99, sum by (job, le) (rate(cloudhub_store_transaction_duration_seconds_bucket[5m])))", "> 1", "10m",
        "1% of the transactions of {{ $labels.job }} take over {{ $value | humanizeDuration }}",
        "Every change and every status waits for it; above a third of the lease's time replicas are suspended.",
        ("etcd: its disk (`etcd_disk_wal_fsync_duration_seconds`), its size, elections.", "One machine: is the disk full or slow?"),
    ),
    Alert(
        "CloudHubStoreFails", PAGE,
        'sum by (job, instance) (rate(cloudhub_store_transaction_duration_seconds_count{outcome="failed"}[5m]) or cloudhub_build_info * 0)', "> 0.1", "5m",
        "transactions of {{ $labels.instance }} fail",
        "The store is away or refuses: nothing can be changed, and nothing that nodes report is stored.",
        ("Is etcd up and has it a quorum and space left (`etcdctl endpoint status`, alarm NOSPACE)?", "Are the certificates of --etcd-cert still valid?"),
    ),
    Alert(
        "CloudHubApiFails", PAGE,
        'sum by (job) (rate(cloudhub_api_requests_total{code=~"5.."}[5m]) or cloudhub_build_info * 0) / sum by (job) (rate(cloudhub_api_requests_total[5m]))', "> 0.05", "5m",
        "{{ $value | humanizePercentage }} of the requests to {{ $labels.job }} fail",
        "Users and tools cannot change the fleet.",
        ("503: the store (`CloudHubStoreFails`). 504: it is slow. 500: the hub's log has a traceback; report it.",),
    ),
    Alert(
        "CloudHubRefusals", TICKET,
        "sum by (job, kind, reason) (rate(cloudhub_channel_refused_total[5m]))", "> 5", "10m",
        "{{ $value | humanize }} a second from {{ $labels.kind }} are refused: {{ $labels.reason }}",
        "Somebody tries what he may not, or nodes of another release speak wrongly. Nothing of it gets through.",
        ("The log names the peers: `refused`.", "One node: revoke it. Many from outside: let only edges reach the edge port (SECURITY.md)."),
    ),
    Alert(
        "CloudHubBusAway", PAGE,
        "min by (job, instance) (cloudhub_relay_bus_up)", "< 1", "2m",
        "{{ $labels.instance }} has no connection to NATS",
        "Nodes that only another replica can reach are cut off; logs and commands of other replicas' nodes fail.",
        ("Are the NATS servers up and reached from this replica? Its log names the cause.",),
    ),
    Alert(
        "CloudHubDescriptors", TICKET,
        "max by (job, instance) (process_open_file_descriptor_count)", "> 16000", "10m",
        "{{ $labels.instance }} has {{ $value }} open files",
        "At its limit, 20,000 or what the system sets, it accepts nobody.",
        ("Add a replica: slots move to it by themselves.",),
    ),
    Alert(
        "CloudHubAway", PAGE,
        "count by (job) (cloudhub_build_info) / max by (job) (cloudhub_shard_members)", "< 1", "5m",
        "not all replicas of {{ $labels.job }} are scraped",
        "A replica that is a member answers no scrape, so that it shows up in no other alert.",
        ("`up` in Prometheus names the target and what went wrong.",),
    ),
)  # fmt: skip


def rules() -> dict[str, Any]:
    """The rule file of Prometheus; the `spec` of a PrometheusRule is the same."""
    return {"groups": [{"name": "cloudhub", "rules": [_rule(alert) for alert in ALERTS]}]}


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.means,
            "runbook": " ".join(f"({n}) {step}" for n, step in enumerate(alert.steps, 1)),
        },
    }


def runbook() -> str:
    """RUNBOOK.md."""
    parts = [
        "# Runbook\n\nWhat each alert means and what to do; made from `observability/dashboards/alerts.py` by\n`python -m tests.docs.dashboards`. `critical` wakes a person, `warning` can wait for the morning.\n"
    ]
    for alert in ALERTS:
        steps = "\n".join(f"{n}. {step}" for n, step in enumerate(alert.steps, 1))
        head = f"\n## {alert.name}\n\n*{alert.severity}, after {alert.lasting}*: `{alert.expr}`\n"
        parts.append(f"{head}\n{alert.means}\n\n{steps}\n")
    return "".join(parts)

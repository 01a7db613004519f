"""Telemetry of two real replicas and their nodes: what a real Prometheus scrapes and a real OpenTelemetry Collector gets."""

import contextlib
import http.client
import json
import re
import ssl
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from edgelite import wire
from observability.catalogue import CATALOGUE
from observability.dashboards.alerts import ALERTS, rules
from observability.dashboards.boards import BOARDS
from observability.metric import HISTOGRAM, prometheus_label
from security import tls
from tests.e2e.cluster import sleeper, wait_for
from tests.e2e.ha import HaCluster, Replica
from tests.e2e.hostile import peer
from tests.observability import scraped
from tests.ports import free_port
from tests.servers.collector import Collector, SpanSeen
from tests.servers.prometheus import JOB, Prometheus

NODE = "zebra-4711"
"""A name that nothing else has: it is looked for where it must not be."""
CHANGED = "changed-4711"
"""A pod that is there for every test of this module."""
SIMS = 5  # as many as a pool needs for its alert
PODS = "/api/v1/namespaces/default/pods"
CONFIGMAPS = "/api/v1/namespaces/default/configmaps"
ROUTE = "/api/v1/namespaces/{namespace}/pods"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
AUDIT = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n"


class Watched(NamedTuple):
    """Two replicas, of which edges reach the first alone; `NODE` and `SIMS` simulated nodes."""

    ha: HaCluster
    collector: Collector
    prometheus: Prometheus


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    root = tmp_path_factory.mktemp("telemetry")
    (root / "audit.yaml").write_text(AUDIT)
    with contextlib.ExitStack() as started:
        collector = started.enter_context(Collector())
        patch = started.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "500")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_BLRP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        shared = {
            "otlp_endpoint": collector.endpoint,
            "trace_ratio": 1.0,
            "audit_policy": str(root / "audit.yaml"),
            "log_level": "debug",
        }
        ha = started.enter_context(HaCluster(root, replicas=0, etcd=1, nats=1, relayed=[1], **shared))
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        for address in addresses:
            ha.add(wait=False, metrics_address=address)
        prometheus = started.enter_context(Prometheus(addresses, json.dumps(rules())))
        ha.wait_serve()
        ha.sims(SIMS, processes=1)
        ha.agent(NODE)
        ha.send("POST", PODS, sleeper(CHANGED, NODE))
        yield Watched(ha, collector, prometheus)


def request(
    replica: Replica, context: ssl.SSLContext | None, method: str, path: str, body: Any = None, **headers: str
) -> int:
    """One request with these headers; the code."""
    made = http.client.HTTPSConnection("127.0.0.1", replica.api_port, context=context, timeout=30)
    try:
        made.request(
            method,
            path,
            json.dumps(body).encode() if body else None,
            {"Content-Type": "application/json", **headers},
        )
        return made.getresponse().status
    finally:
        made.close()


def trace_of(watched: Watched, trace_id: str) -> dict[str, SpanSeen]:
    """The spans of a trace by their names, once the node's answer is there."""

    def whole() -> dict[str, SpanSeen]:
        mine = {s.name: s for s in watched.collector.spans() if s.trace_id == trace_id}
        return mine if {"channel", f"POST {ROUTE}"} <= mine.keys() else {}

    return wait_for(whole, f"the trace {trace_id}", detail=lambda: watched.ha.logs(3000))


@pytest.mark.parametrize("at", [0, 1])
def test_a_change_is_followed_from_any_replica_to_the_nodes_acknowledgement(
    watched: Watched, at: int
) -> None:
    """One of the two replicas does not own the node's slot: the context reaches the other through the store."""
    replica, trace = watched.ha.replicas[at], TRACE[:-1] + str(at)
    traceparent = f"00-{trace}-{PARENT}-01"
    code = request(
        replica, watched.ha.context(), "POST", PODS, sleeper(f"traced-{at}", NODE), traceparent=traceparent
    )
    assert code == 201
    found = trace_of(watched, trace)
    root, store, owner, channel = (found[n] for n in (f"POST {ROUTE}", "txn etcd", "owner", "channel"))
    assert (root.parent_id, store.parent_id) == (PARENT, root.span_id)
    assert (owner.parent_id, channel.parent_id) == (root.span_id, owner.span_id)
    assert root.attributes["http.response.status_code"] == "201"
    assert root.attributes["http.route"] == ROUTE and root.attributes["cloudhub.object.resource"] == "pods"
    assert channel.attributes["k8s.node.name"] == NODE and channel.attributes["cloudhub.echoed"] is True
    assert channel.attributes["cloudhub.document.key"].startswith(f"pod/default/traced-{at}/")
    assert int(owner.attributes["cloudhub.epoch"]) >= 1 and "cloudhub.slot" in owner.attributes
    assert root.start_ns <= store.start_ns <= owner.start_ns <= channel.start_ns <= channel.end_ns
    assert owner.end_ns == channel.start_ns and not any(s.error for s in found.values())
    about = root.resource
    assert (about["service.name"], about["service.instance.id"]) == ("cloudhub", replica.name)
    assert about["deployment.environment.name"] == "test" and "service.version" in about
    # Both requests were answered by different replicas; the node has one owner.
    assert owner.resource["service.instance.id"] == channel.resource["service.instance.id"]
    assert owner.resource["service.instance.id"] in {r.name for r in watched.ha.replicas}


def test_a_pod_of_a_deployment_bears_the_trace_of_the_deployment(watched: Watched) -> None:
    trace = TRACE[:-1] + "d"
    template = sleeper("x")
    labels = {**template["metadata"]["labels"], "app": "web"}
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": labels},
            "spec": {**template["spec"], "nodeSelector": {"kubernetes.io/hostname": NODE}},
        },
    }
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}
    path = "/apis/apps/v1/namespaces/default/deployments"
    header = f"00-{trace}-{PARENT}-01"
    assert (
        request(watched.ha.replicas[0], watched.ha.context(), "POST", path, body, traceparent=header) == 201
    )

    def answered() -> Any:
        return [s for s in watched.collector.spans() if s.trace_id == trace and s.name == "channel"]

    (channel,) = wait_for(answered, "the pod's acknowledgement", 60, detail=lambda: watched.ha.logs(3000))
    assert channel.attributes["cloudhub.document.key"].startswith("pod/default/web-")


def test_the_fleet_page_of_each_replica_has_all_nodes_and_what_their_owners_tell(watched: Watched) -> None:
    """One of the two does not own the node's slot: what the owner tells comes over NATS."""
    watched.ha.send("POST", PODS, sleeper("shown", NODE))
    first, second = watched.ha.replicas

    def shown(replica: Replica) -> Any:
        return replica.api("GET", f"/cloudhub/fleet/node?name={NODE}")

    def told() -> Any:
        """By both, once the pod is on its node."""
        both = [shown(replica) for replica in (first, second)]
        held = [{d["key"] for d in node["documents"] if d["standing"] == "held"} for node in both]
        return both if all(any("/shown/" in key for key in keys) for keys in held) else None

    here, there = wait_for(told, "both tell", detail=lambda: watched.ha.logs(3000))
    assert here["owner"] == there["owner"] and here["epoch"] == there["epoch"] >= 1
    assert here["session"]["state"] == there["session"]["state"] == "live"
    assert here["session"]["incarnation"] == there["session"]["incarnation"] != ""
    assert here["connections"] == there["connections"] != []
    names = [replica.api("GET", "/cloudhub/fleet/nodes")["names"] for replica in (first, second)]
    assert names[0] == names[1] and NODE in names[0] and len(names[0]) == SIMS + 1


def test_metrics_arrive_with_the_names_kinds_and_units_of_the_catalogue(watched: Watched) -> None:
    def there() -> dict[str, Any]:
        found = watched.collector.metrics()
        return found if {"cloudhub.channel.acknowledgement", "cloudhub.edge.nodes"} <= found.keys() else {}

    found = wait_for(there, "metrics at the collector")
    known = {m.name: m for m in CATALOGUE}
    assert set(found) <= set(known)
    for name, (metric, resource) in found.items():
        assert metric["unit"] == (known[name].unit or "1") and metric["description"] == known[name].help
        kind = {"counter": "sum", "gauge": "gauge", "histogram": "histogram"}[known[name].kind]
        assert kind in metric, name
        assert resource["service.instance.id"] in {r.name for r in watched.ha.replicas}
    point = found["cloudhub.channel.acknowledgement"][0]["histogram"]["dataPoints"][0]
    assert int(point["count"]) >= 1 and sum(map(int, point["bucketCounts"])) == int(point["count"])
    assert found["cloudhub.edge.accepted"][0]["sum"]["isMonotonic"] is True


def test_log_records_arrive_with_their_node_slot_and_trace(watched: Watched) -> None:
    joined = wait_for(
        lambda: [r for r in watched.collector.logs() if "joined with token" in r["body"]["stringValue"]],
        "the join's log record",
    )
    about = next(r for r in joined if r["attributes"]["node"] == NODE)
    assert about["logger"] == "hub.joining" and about["severityText"] == "INFO"
    assert about["resource"]["service.instance.id"] in {r.name for r in watched.ha.replicas}
    line = next(
        json.loads(line)
        for replica in watched.ha.replicas
        for line in replica.log().splitlines()
        if "joined with token" in line and f'"node": "{NODE}"' in line
    )
    assert line["replica"] == about["resource"]["service.instance.id"]


def load(watched: Watched) -> None:
    """A little of everything: writes that reach nodes, refused requests, a stranger who says what only nodes may."""
    context = watched.ha.context()
    nobody = ssl.create_default_context(cadata=watched.ha.credentials.root_pem)
    for replica in watched.ha.replicas:
        pod = {"metadata": {"labels": {"turn": str(free_port())}}}
        headers = {"Content-Type": "application/merge-patch+json"}
        assert request(replica, context, "PATCH", f"{PODS}/{CHANGED}", pod, **headers) == 200
        assert request(replica, context, "GET", f"{CONFIGMAPS}/none") == 404
        assert request(replica, nobody, "GET", PODS) == 401
    edge = watched.ha.replicas[0]
    with peer(edge, tls.client_context(watched.ha.credentials.root_pem)) as one:
        one.send(wire.REPORT, {"e": []})
        assert one.refusal()["code"] == "denied"


def test_every_expression_of_dashboards_and_alerts_has_data_in_a_real_prometheus(watched: Watched) -> None:
    exprs = {(b.name, p.title, q.expr) for b in BOARDS for p in b.panels for q in p.queries}
    exprs |= {("alerts", alert.name, alert.value) for alert in ALERTS}
    exprs |= {("alerts", alert.name, alert.guard) for alert in ALERTS if alert.guard}
    missing = set(exprs)

    def found() -> bool:
        load(watched)
        for where in list(missing):
            expr = where[2].replace("$job", JOB).replace("$instance", ".*").replace("$__rate_interval", "1m")
            if any(row["value"][1] != "NaN" for row in watched.prometheus.query(expr)):
                missing.discard(where)
        return not missing

    wait_for(found, "data for every expression", 60, lambda: sorted(missing))
    assert [t["health"] for t in watched.prometheus.targets()] == ["up", "up"]


def test_everything_that_is_scraped_is_documented_and_bears_bounded_labels(watched: Watched) -> None:
    names = {NODE, *(f"sim-{n}" for n in range(SIMS)), CHANGED, "kubernetes-admin", "hub-1", "hub-2"}
    by_name = {m.prometheus: m for m in CATALOGUE}
    always = {
        m.prometheus + ("_count" if m.kind == HISTOGRAM else "")
        for m in CATALOGUE
        if m.when not in ("--source kubernetes", "--spire-server")
    }

    def scrape() -> list[str]:
        return [replica.api("GET", "/metrics") for replica in watched.ha.replicas]

    def missing() -> set[str]:
        """What is documented and not exported."""
        load(watched)
        return always - {name for text in scrape() for name, _, _ in scraped.samples(text)}

    wait_for(lambda: not missing(), "every metric is exported", 60, missing)
    for replica, text in zip(watched.ha.replicas, scrape(), strict=True):
        typed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
        assert typed == {name: by_name[name].kind for name in typed}
        wait_for(
            lambda typed=typed: typed.items() <= kinds(watched).items(),  # type: ignore[misc]
            "Prometheus has them with their types", 60, lambda: kinds(watched),
        )  # fmt: skip
        for name, labels, _ in scraped.samples(text):
            metric = by_name.get(name) or by_name[re.sub(r"_(bucket|sum|count)$", "", name)]
            values = {k: v for k, v in labels.items() if not (metric.kind == HISTOGRAM and k == "le")}
            allowed = {prometheus_label(label.name): label for label in metric.labels}
            assert values.keys() == allowed.keys(), name
            for label, value in values.items():
                assert allowed[label].allows(value), (name, label, value)
                assert value not in names, (name, label, value)
        assert "is not exported: add it" not in replica.log()


def kinds(watched: Watched) -> dict[str, str]:
    return {name: row["type"] for name, row in watched.prometheus.metadata().items()}

"""The chart lints, renders, and is valid Kubernetes for every value set; what holds for all of them."""

import json
import re

import helm_python
import kubernetes_validate
import pytest
import yaml

from hub.access.authorizer import is_public
from hub.app import HANDOVER_S
from observability.dashboards.alerts import rules
from observability.dashboards.boards import BOARDS
from tests.helm import chart
from tests.helm.chart import FULL, VALUE_SETS, of_kind, one, pod_spec, rendered

KUBERNETES = "1.34"
SETS = sorted(VALUE_SETS)


@pytest.mark.parametrize("name", SETS)
def test_a_value_set_lints_and_is_valid_kubernetes(name: str) -> None:
    report = helm_python.lint(chart.CHART, VALUE_SETS[name], strict=True, kube_version="v1.34.0")
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []
    objects = rendered(VALUE_SETS[name])
    assert objects
    for found in objects:
        if found["kind"] in ("PrometheusRule", "ServiceMonitor"):
            continue  # have no published schema; their own tests read them
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(names) == len(set(names))
    assert all(len(n) <= 63 for _, _, n in names)


def test_there_are_the_value_sets_that_people_ask_for() -> None:
    assert {
        "default",
        "single",
        "external",
        "spire",
        "load-balancers",
        "no-pdb",
        "ipv6",
        "restricted",
    } <= set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_no_pod_may_more_than_the_restricted_standard_allows(name: str) -> None:
    for found in of_kind(rendered(VALUE_SETS[name]), "StatefulSet"):
        spec = found["spec"]["template"]["spec"]
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0
        assert context["seccompProfile"]["type"] == "RuntimeDefault"
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            ports = [p for p in container.get("ports", []) if "hostPort" in p]
            assert not ports or name == "host-ports"
            assert {"requests", "limits"} <= set(container["resources"])
        for volume in spec.get("volumes", []):
            kinds = set(volume) - {"name"}
            assert kinds <= {"configMap", "secret", "emptyDir", "csi"}, volume


@pytest.mark.parametrize("name", SETS)
def test_no_pod_is_placed_on_an_edge_node(name: str) -> None:
    for found in of_kind(rendered(VALUE_SETS[name]), "StatefulSet"):
        node = found["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
        terms = node["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert terms == [{"matchExpressions": [{"key": "cloudhub.dev/edge", "operator": "DoesNotExist"}]}]


@pytest.mark.parametrize("name", SETS)
def test_services_budgets_and_policies_choose_pods_that_there_are(name: str) -> None:
    objects = rendered(VALUE_SETS[name])
    pods = [
        o["spec"]["template"]["metadata"]["labels"]
        | {"statefulset.kubernetes.io/pod-name": f"{o['metadata']['name']}-{n}"}
        for o in of_kind(objects, "StatefulSet")
        for n in range(8)
    ]
    for found in objects:
        selector = found.get("spec", {}).get("selector") or found.get("spec", {}).get("podSelector")
        if found["kind"] not in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
            continue
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= labels.items() for labels in pods), found["metadata"]["name"]
        if found["kind"] == "Service":
            component = wanted["app.kubernetes.io/component"]
            own = FULL if component == "hub" else f"{FULL}-{component}"
            named = {p["name"] for p in pod_spec(objects, own)["containers"][0]["ports"]}
            assert {p["targetPort"] for p in found["spec"]["ports"]} <= named


@pytest.mark.parametrize("name", SETS)
def test_every_secret_and_config_map_that_a_pod_mounts_is_made_or_named_by_the_user(name: str) -> None:
    values = VALUE_SETS[name]
    objects = rendered(values)
    made = {o["metadata"]["name"] for o in objects if o["kind"] in ("Secret", "ConfigMap")}
    given = set(re.findall(r"(?:tlsSecret|keySecret|configMap): ([\w-]+)", yaml.safe_dump(values)))
    for found in of_kind(objects, "StatefulSet"):
        spec = found["spec"]["template"]["spec"]
        volumes = {v["name"]: v for v in spec.get("volumes", [])}
        for volume in volumes.values():
            source = volume.get("secret", {}).get("secretName") or volume.get("configMap", {}).get("name")
            assert source is None or source in made | given, source
            for item in volume.get("secret", {}).get("items", []):
                if source in made:
                    assert item["key"] in one(objects, "Secret", source)["data"]
        claimed = {c["metadata"]["name"] for c in found["spec"].get("volumeClaimTemplates", [])}
        mounted = {m["name"] for m in spec["containers"][0]["volumeMounts"]}
        assert mounted == set(volumes) | claimed


def test_the_grace_period_covers_everything_that_a_stop_may_take() -> None:
    for seconds in (0, 5, 30):
        spec = pod_spec(rendered({"termination": {"preStopSeconds": seconds}}))
        lifecycle = spec["containers"][0].get("lifecycle")
        assert (lifecycle or {"preStop": {"sleep": {"seconds": 0}}})["preStop"]["sleep"]["seconds"] == seconds
        # The hub waits for the hand-over, and 5 s more; the API closes within 3; the rest is for a busy machine.
        assert spec["terminationGracePeriodSeconds"] >= seconds + HANDOVER_S + 5 + 3 + 10


def test_probes_ask_what_the_hub_answers_without_a_certificate() -> None:
    container = pod_spec(rendered({}))["containers"][0]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = container[probe]["httpGet"]
        assert (get["port"], get["scheme"]) == ("api", "HTTPS")
        assert is_public(get["path"])
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_more_replicas_do_not_restart_those_that_run() -> None:
    def template(count: int) -> object:
        return one(rendered({"replicas": count}), "StatefulSet", FULL)["spec"]["template"]

    assert template(3) == template(5)
    assert set(chart.config_files(rendered({"replicas": 5}))) == {f"{FULL}-{n}.yaml" for n in range(5)}


def test_replicas_are_reached_where_each_mode_says() -> None:
    def edges(name: str) -> list[object]:
        files = chart.config_files(rendered(VALUE_SETS[name]))
        return [files[file].get("replica_edge") for file in sorted(files)]

    assert edges("default") == ["none"] * 3
    assert edges("load-balancers") == [f"{FULL}-{n}.edge.example.com:8444" for n in range(3)]
    assert edges("node-ports") == [f"nodes.example.com:{30440 + n}" for n in range(3)]
    assert edges("host-ports") == [None] * 3
    args = pod_spec(rendered(VALUE_SETS["host-ports"]))["containers"][0]["args"]
    assert "--replica-edge=$(HOST_IP):8444" in args
    v6 = chart.merged(VALUE_SETS["host-ports"], {"ipFamily": "IPv6"})
    assert "--replica-edge=[$(HOST_IP)]:8444" in pod_spec(rendered(v6))["containers"][0]["args"]

    objects = rendered(VALUE_SETS["load-balancers"])
    for n in range(3):
        service = one(objects, "Service", f"{FULL}-{n}-edge")
        assert service["spec"]["selector"]["statefulset.kubernetes.io/pod-name"] == f"{FULL}-{n}"
        assert service["metadata"]["annotations"] == {
            "external-dns.alpha.kubernetes.io/hostname": f"{FULL}-{n}.edge.example.com"
        }


def test_a_scaled_hub_has_a_config_file_for_the_most_replicas_and_leaves_their_number_to_the_scaler() -> None:
    objects = rendered(VALUE_SETS["scaled"])
    assert "replicas" not in one(objects, "StatefulSet", FULL)["spec"]
    assert len(chart.config_files(objects)) == 8
    metric = one(objects, "HorizontalPodAutoscaler", FULL)["spec"]["metrics"][0]["pods"]["metric"]
    assert metric == {"name": "cloudhub_edge_nodes"}


def test_the_service_monitor_chooses_one_service_and_a_port_of_it() -> None:
    objects = rendered(VALUE_SETS["scaled"])
    monitor = one(objects, "ServiceMonitor", FULL)
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    chosen = [s for s in of_kind(objects, "Service") if wanted <= s["metadata"]["labels"].items()]
    assert [s["metadata"]["name"] for s in chosen] == [f"{FULL}-replicas"]
    assert monitor["spec"]["endpoints"][0]["port"] in {p["name"] for p in chosen[0]["spec"]["ports"]}


def test_the_hub_may_in_the_cluster_only_what_it_needs() -> None:
    assert not [o for o in rendered(VALUE_SETS["single"]) if "Role" in o["kind"]]
    assert pod_spec(rendered(VALUE_SETS["single"]))["automountServiceAccountToken"] is False
    objects = rendered({})
    roles = of_kind(objects, "ClusterRole") + of_kind(objects, "Role")
    rules = [rule for role in roles for rule in role["rules"]]
    assert not any("*" in rule["verbs"] + rule["resources"] + rule["apiGroups"] for rule in rules)
    for role in roles:
        public = role["metadata"].get("namespace") == "kube-public"
        for rule in role["rules"]:
            if "secrets" in rule["resources"] or ("configmaps" in rule["resources"] and not public):
                assert set(rule["verbs"]) <= {"get", "list", "watch"}
    assert {r["metadata"]["namespace"] for r in of_kind(objects, "Role")} == {
        "kube-node-lease",
        "kube-public",
    }

    named = rendered(VALUE_SETS["restricted"])
    everywhere = [
        r for role in of_kind(named, "ClusterRole") for rule in role["rules"] for r in rule["resources"]
    ]
    assert "secrets" not in everywhere
    assert one(named, "Role", f"edge-{FULL}-config")["metadata"]["namespace"] == "shop"


def test_what_is_lost_with_a_secret_is_kept_and_the_hub_gets_no_server_key() -> None:
    objects = rendered({})
    key = one(objects, "Secret", f"{FULL}-authority-key")
    assert key["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    crd = one(objects, "CustomResourceDefinition", "jointokens.cloudhub.dev")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    for volume in pod_spec(objects)["volumes"]:
        items = {item["key"] for item in volume.get("secret", {}).get("items", [])}
        assert "tls.key" not in items


def test_the_notes_have_the_next_two_commands() -> None:
    text = chart.notes({})
    create = f"kubectl -n edge exec {FULL}-0 -c hub -- cloudhub token create --node edge-1"
    assert f"TOKEN=$({create} --kubeconfig /etc/cloudhub/kubeconfig)\n" in text
    assert f"TOKEN=$({create})\n" in chart.notes(VALUE_SETS["single"])
    assert 'edgelite join --token "$TOKEN" --hub ' in text
    assert f"--hub {FULL}-0.edge.example.com:8444" in chart.notes(VALUE_SETS["load-balancers"])
    assert "--hub nodes.example.com:30440" in chart.notes(VALUE_SETS["node-ports"])
    assert f"-spiffeID spiffe://cloudhub.local/hub/{FULL}-0 -dns hub.cloudhub.local" in chart.notes(
        VALUE_SETS["spire"]
    )
    assert "WARNING" not in text


def test_the_socket_of_a_key_management_service_is_where_the_hub_looks_for_it() -> None:
    objects = rendered(VALUE_SETS["kms"])
    assert {c["kms_socket"] for f, c in chart.config_files(objects).items() if "kms_socket" in c} == {
        "/run/cloudhub-kms/kms.sock"
    }
    spec = pod_spec(objects)
    hub, plugin = spec["containers"]
    mount = {"name": "kms", "mountPath": "/run/cloudhub-kms"}
    assert {**mount, "readOnly": True} in hub["volumeMounts"] and plugin["volumeMounts"] == [mount]
    assert plugin["args"] == ["--listen", "/run/cloudhub-kms/kms.sock"]
    on_the_machine = pod_spec(rendered({"kms": {"socket": "kms.sock", "hostPath": "/run/kms"}}))
    assert len(on_the_machine["containers"]) == 1
    assert {"name": "kms", "hostPath": {"path": "/run/kms", "type": "Directory"}} in on_the_machine["volumes"]


def test_dashboards_and_alerts_are_those_that_are_made_from_code() -> None:
    objects = rendered(VALUE_SETS["scaled"])
    shipped = one(objects, "ConfigMap", f"{FULL}-dashboards")["data"]
    assert {name: json.loads(text)["uid"] for name, text in shipped.items()} == {
        f"{board.name}.json": f"cloudhub-{board.name}" for board in BOARDS
    }
    rule = one(objects, "PrometheusRule", FULL)
    assert rule["spec"] == rules() and rule["metadata"]["labels"]["release"] == "prometheus"
    assert not of_kind(rendered({}), "PrometheusRule")

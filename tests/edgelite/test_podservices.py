"""What containers and clients on the node are told of Services; runs on CPython and in the MicroPython VM."""

import json

from edgelite.podenv import Library, NodeFacts, environment
from edgelite.podservices import fault, shown

NODE = NodeFacts("edge-1")
WEB = {
    "kind": "Service",
    "ns": "shop",
    "name": "my-web",
    "labels": {"app": "web"},
    "spec": {
        "clusterIP": "10.0.0.9",
        "ports": [
            {"name": "http", "port": 80, "protocol": "TCP"},
            {"name": "dns-udp", "port": 53, "protocol": "UDP"},
        ],
    },
}
MASTER = {
    "kind": "Service",
    "ns": "default",
    "name": "kubernetes",
    "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "https", "port": 443}]},
}
SLICE = {
    "kind": "EndpointSlice",
    "ns": "shop",
    "name": "my-web-1",
    "labels": {"kubernetes.io/service-name": "my-web"},
    "addressType": "IPv4",
    "ports": [{"port": 80}],
    "endpoints": [{"addresses": ["10.1.0.1"], "zone": "a", "hints": {"forZones": [{"name": "a"}]}}],
}


def library(*docs):
    made = Library()
    for doc in docs or (WEB, MASTER, SLICE):
        made.put(doc["kind"], doc["ns"], doc["name"], json.dumps(doc).encode())
    return made


def pod(namespace="shop", **spec):
    spec.setdefault("containers", [{"name": "c"}])
    return {"ns": namespace, "name": "p", "uid": "u", "spec": spec}


def told(doc, lib=None, container=None):
    made = environment(doc, container or {"name": "c"}, lib or library(), NODE)
    return dict(made.pairs())


def service(name, namespace="shop", **spec):
    return {"kind": "Service", "ns": namespace, "name": name, "spec": spec}


def test_a_container_is_told_of_services_in_the_names_that_a_kubelet_gives_them():
    # By the rules of Kubernetes' documentation, written out.
    assert told(pod()) == {
        "MY_WEB_SERVICE_HOST": "10.0.0.9",
        "MY_WEB_SERVICE_PORT": "80",
        "MY_WEB_SERVICE_PORT_HTTP": "80",
        "MY_WEB_SERVICE_PORT_DNS_UDP": "53",
        "MY_WEB_PORT": "tcp://10.0.0.9:80",
        "MY_WEB_PORT_80_TCP": "tcp://10.0.0.9:80",
        "MY_WEB_PORT_80_TCP_PROTO": "tcp",
        "MY_WEB_PORT_80_TCP_PORT": "80",
        "MY_WEB_PORT_80_TCP_ADDR": "10.0.0.9",
        "MY_WEB_PORT_53_UDP": "udp://10.0.0.9:53",
        "MY_WEB_PORT_53_UDP_PROTO": "udp",
        "MY_WEB_PORT_53_UDP_PORT": "53",
        "MY_WEB_PORT_53_UDP_ADDR": "10.0.0.9",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
        "KUBERNETES_SERVICE_PORT_HTTPS": "443",
        "KUBERNETES_PORT": "tcp://10.0.0.1:443",
        "KUBERNETES_PORT_443_TCP": "tcp://10.0.0.1:443",
        "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
        "KUBERNETES_PORT_443_TCP_PORT": "443",
        "KUBERNETES_PORT_443_TCP_ADDR": "10.0.0.1",
    }


def test_who_wants_no_links_is_told_of_the_api_server_alone():
    for namespace in ("shop", "default"):
        found = told(pod(namespace, enableServiceLinks=False), library(WEB, MASTER, service("x", "default")))
        assert {name.split("_")[0] for name in found} == {"KUBERNETES"}


def test_other_namespaces_are_not_told_of_and_the_own_kubernetes_wins():
    own = service("kubernetes", clusterIP="10.0.0.7", ports=[{"port": 1}])
    assert told(pod(), library(own, MASTER))["KUBERNETES_SERVICE_HOST"] == "10.0.0.7"
    assert "MY_WEB_PORT" not in told(pod("bank"))
    assert told(pod("bank"), library(WEB)) == {}


def test_services_without_an_address_or_a_port_have_no_variables_and_ipv6_stands_in_brackets():
    lib = library(
        service("headless", clusterIP="None", ports=[{"port": 1}]),
        service("elsewhere", externalName="example.org"),
        service("portless", clusterIP="10.0.0.2"),
        service("six", clusterIP="fd00::1", ports=[{"port": 1}]),
    )
    found = told(pod(), lib)
    assert {name.split("_")[0] for name in found} == {"SIX"}
    assert (found["SIX_SERVICE_HOST"], found["SIX_PORT"]) == ("fd00::1", "tcp://[fd00::1]:1")


def test_what_the_pod_sets_itself_wins_and_may_refer_to_services():
    env = [
        {"name": "MY_WEB_PORT", "value": "mine"},
        {"name": "URL", "value": "http://$(MY_WEB_SERVICE_HOST)"},
    ]
    found = told(pod(), container={"name": "c", "env": env})
    assert found["MY_WEB_PORT"] == "mine" and found["URL"] == "http://10.0.0.9"
    assert found["MY_WEB_SERVICE_HOST"] == "10.0.0.9"


def test_where_the_nodes_own_api_answers_nothing_points_to_the_clusters():
    token = {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}, "name": "t"}
    mount = {"name": "t", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    container = {"name": "c", "volumeMounts": [mount]}
    doc = pod(volumes=[token], containers=[container, {"name": "other"}])
    lib = library()
    lib.local_api = lambda: (4711, "cert")
    found = told(doc, lib, container)
    assert [v for v in found.values() if "10.0.0.1" in v] == []
    assert (found["KUBERNETES_SERVICE_HOST"], found["KUBERNETES_SERVICE_PORT"]) == ("127.0.0.1", "4711")
    assert found["MY_WEB_SERVICE_HOST"] == "10.0.0.9"
    # One that does not mount the token is told what a kubelet would tell it.
    assert told(doc, lib, {"name": "other"})["KUBERNETES_SERVICE_HOST"] == "10.0.0.1"


def test_documents_that_could_not_be_used_are_refused():
    def said(key, doc):
        return fault(key, doc if isinstance(doc, bytes) else json.dumps(doc).encode())

    assert said("service/shop/my-web", WEB) is None
    assert said("endpointslice/shop/my-web-1", SLICE) is None
    for key, doc in (
        ("service/shop/my-web", b"{"),
        ("service/shop/my-web", []),
        ("service/shop/other", WEB),
        ("service/bank/my-web", WEB),
        ("endpointslice/shop/my-web", WEB),
        ("service/shop/s", service("s", clusterIP=7)),
        ("service/shop/s", service("s", ports={"port": 1})),
        ("service/shop/s", service("s", ports=[{"name": "x"}])),
        ("service/shop/s", service("s", ports=[{"port": 1, "name": 7}])),
        ("service/shop/s", dict(service("s"), spec="x")),
        ("endpointslice/shop/my-web-1", dict(SLICE, endpoints=["10.1.0.1"])),
    ):
        assert said(key, doc), (key, doc)


def test_the_nodes_own_api_shows_a_namespaces_services_and_what_is_ready_behind_them():
    web, master = shown("services", "shop", library())
    assert (web["apiVersion"], web["metadata"]["labels"], web["spec"]) == ("v1", WEB["labels"], WEB["spec"])
    assert (master["metadata"]["namespace"], master["metadata"]["name"]) == ("default", "kubernetes")
    (found,) = shown("endpointslices", "shop", library())
    assert found["apiVersion"] == "discovery.k8s.io/v1"
    assert found["metadata"]["labels"] == SLICE["labels"] and found["ports"] == SLICE["ports"]
    (endpoint,) = found["endpoints"]
    assert endpoint["conditions"]["ready"] is True and endpoint["hints"] == SLICE["endpoints"][0]["hints"]
    assert shown("endpointslices", "bank", library()) == []
    assert [o["metadata"]["name"] for o in shown("services", "default", library())] == ["kubernetes"]

"""What is kept of Services and EndpointSlices: small, and the same bytes while nothing that counts has changed."""

from typing import Any

import orjson

from hub.documents import render_space
from hub.kubernetes.services import kept
from hub.objects import ENDPOINTSLICES, SERVICES

META = {
    "name": "web-1",
    "namespace": "shop",
    "uid": "u",
    "resourceVersion": "7",
    "labels": {"kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "controller"},
    "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
    "managedFields": [{"manager": "kube-controller-manager"}],
}


def endpoint(address: str, ready: bool | None = True, **more: Any) -> dict[str, Any]:
    conditions = {"serving": True, **({} if ready is None else {"ready": ready})}
    return {
        "addresses": [address],
        "conditions": conditions,
        "targetRef": {"kind": "Pod", "name": "p", "uid": "x"},
        **more,
    }


def endpoint_slice(*endpoints: Any, **meta: Any) -> bytes:
    made = {"metadata": {**META, **meta}, "addressType": "IPv4", "ports": [{"name": "", "port": 80}]}
    return orjson.dumps({**made, "endpoints": endpoints})


def test_of_a_slice_what_is_ready_is_kept_with_its_topology() -> None:
    hints = {"forZones": [{"name": "a"}]}
    found = orjson.loads(
        kept(
            ENDPOINTSLICES,
            endpoint_slice(
                endpoint("10.1.0.2", nodeName="n", zone="a", hints=hints),
                endpoint("10.1.0.3", ready=False),
                endpoint("10.1.0.1", ready=None),
            ),
        )
    )
    assert found == {
        "metadata": {
            "name": "web-1", "namespace": "shop", "uid": "u", "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 80}],
        "endpoints": [
            {"addresses": ["10.1.0.1"]},
            {"addresses": ["10.1.0.2"], "nodeName": "n", "zone": "a", "hints": hints},
        ],
    }  # fmt: skip


def test_changes_that_nobody_at_the_edge_sees_make_no_other_document() -> None:
    first, second = endpoint("10.1.0.1"), endpoint("10.1.0.2")
    versions = {
        render_space(ENDPOINTSLICES, orjson.loads(kept(ENDPOINTSLICES, raw)))
        for raw in (
            endpoint_slice(first, second),
            endpoint_slice(second, first, resourceVersion="8"),
            endpoint_slice(first, second, endpoint("10.1.0.9", ready=False), annotations={}, uid="v"),
        )
    }
    assert len(versions) == 1
    other = orjson.loads(kept(ENDPOINTSLICES, endpoint_slice(first)))
    assert render_space(ENDPOINTSLICES, other) not in versions


def test_of_a_service_addresses_ports_and_selector_are_kept() -> None:
    spec = {
        "type": "LoadBalancer",
        "clusterIP": "10.0.0.9",
        "clusterIPs": ["10.0.0.9"],
        "ipFamilyPolicy": "SingleStack",
        "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP", "nodePort": 30080}],
    }
    status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.7", "ipMode": "VIP"}]}, "conditions": []}
    raw = orjson.dumps(
        {"metadata": {**META, "name": "web", "labels": {"a": "b"}}, "spec": spec, "status": status}
    )
    document = orjson.loads(render_space(SERVICES, orjson.loads(kept(SERVICES, raw))))
    del spec["ipFamilyPolicy"]
    assert document == {
        "kind": "Service", "ns": "shop", "name": "web", "labels": {"a": "b"}, "spec": spec,
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}},
    }  # fmt: skip

"""Services as a pod sees them: documents, environment variables, and objects for the node's own API. [pure]

A node holds the Services and EndpointSlices of the namespaces that its pods are in, and `kubernetes` of `default`. A container
is told of Services when it starts, as by a kubelet (Kubernetes, "Discovering services", environment variables); nothing restarts
when they change. Of EndpointSlices a document holds only what is ready.
"""

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.podenv import Library

    Object = dict[str, Any]

DEFAULT, MASTER = "default", "kubernetes"
# document key prefix -> (kind, apiVersion)
KINDS = {"service": ("Service", "v1"), "endpointslice": ("EndpointSlice", "discovery.k8s.io/v1")}


def fault(key: str, body: bytes) -> "str | None":
    """What is wrong with a Service's or an EndpointSlice's document, or None."""
    prefix, namespace, name = key.split("/", 2)
    try:
        doc = json.loads(body)
    except ValueError as error:
        return "not JSON: %s" % error
    if not isinstance(doc, dict) or doc.get("kind") != KINDS[prefix][0]:
        return "the document is not a %s" % KINDS[prefix][0]
    if doc.get("ns") != namespace or doc.get("name") != name:
        return "the document's namespace and name are not those of its key"
    spec = doc.get("spec") or {}
    if not isinstance(spec, dict) or not isinstance(doc.get("labels") or {}, dict):
        return "spec and labels have to be objects"
    if not isinstance(spec.get("clusterIP") or "", str):
        return "spec.clusterIP has to be a text"
    ports = (spec if prefix == "service" else doc).get("ports") or []
    if not isinstance(ports, list):
        return "ports have to be a list"
    endpoints = doc.get("endpoints") or []
    if not isinstance(endpoints, list) or not all(isinstance(e, dict) for e in endpoints):
        return "endpoints have to be a list of objects"
    for port in ports:
        if not isinstance(port, dict) or not all(
            isinstance(port.get(f) or "", str) for f in ("name", "protocol")
        ):
            return "a port is an object with a name and a protocol"
        if prefix == "service" and not isinstance(port.get("port"), int):
            return "a port of a Service has a number"
    return None


def variables(pod: "Object", library: "Library", without_master: bool) -> "list[tuple[str, str]]":
    """What a container of the pod is told of Services. without_master: it is told elsewhere where the API server is."""
    spec = pod.get("spec") or {}
    found: "dict[str, Object]" = {}
    if spec.get("enableServiceLinks") is not False:
        for doc in _documents(library, "Service", pod["ns"]):
            found[doc["name"]] = doc
    if without_master:
        found.pop(MASTER, None)
    elif MASTER not in found:
        # Also for who wants no links: without it no client library finds the API server.
        body = library.body("Service", DEFAULT, MASTER)
        if body is not None:
            found[MASTER] = json.loads(body)
    told: "list[tuple[str, str]]" = []
    for name in sorted(found):
        told += _of_service(found[name])
    return told


def _documents(library: "Library", kind: str, namespace: str) -> "list[Object]":
    bodies = [library.body(kind, namespace, name) for name in library.names(kind, namespace)]
    return [json.loads(body) for body in bodies if body is not None]


def _of_service(doc: "Object") -> "list[tuple[str, str]]":
    spec = doc.get("spec") or {}
    address, ports = spec.get("clusterIP") or "", spec.get("ports") or []
    if address in ("", "None") or not ports:
        return []  # headless, or only a name elsewhere: there is no address that a variable could hold
    prefix = _name(doc["name"])
    told = [(prefix + "_SERVICE_HOST", address), (prefix + "_SERVICE_PORT", str(ports[0]["port"]))]
    for port in ports:
        if port.get("name"):
            told.append((prefix + "_SERVICE_PORT_" + _name(port["name"]), str(port["port"])))
    host = "[%s]" % address if ":" in address else address
    for at, port in enumerate(ports):
        protocol, number = (port.get("protocol") or "TCP").lower(), str(port["port"])
        url = "%s://%s:%s" % (protocol, host, number)
        if at == 0:
            told.append((prefix + "_PORT", url))
        link = "%s_PORT_%s_%s" % (prefix, number, protocol.upper())
        told += [
            (link, url),
            (link + "_PROTO", protocol),
            (link + "_PORT", number),
            (link + "_ADDR", address),
        ]
    return told


def _name(name: str) -> str:
    return name.upper().replace("-", "_")


def shown(plural: str, namespace: str, library: "Library") -> "list[Object]":
    """The objects that the node's own API shows to a pod of this namespace."""
    if plural == "endpointslices":
        return [_slice_object(doc) for doc in _documents(library, "EndpointSlice", namespace)]
    found = [_service_object(doc) for doc in _documents(library, "Service", namespace)]
    master = library.body("Service", DEFAULT, MASTER)
    if namespace != DEFAULT and master is not None:
        found.append(_service_object(json.loads(master)))
    return found


def _service_object(doc: "Object") -> "Object":
    obj = _object(doc, "service")
    obj["spec"] = doc.get("spec") or {}
    obj["status"] = doc.get("status") or {"loadBalancer": {}}
    return obj


def _slice_object(doc: "Object") -> "Object":
    obj = _object(doc, "endpointslice")
    obj["addressType"] = doc.get("addressType") or ""
    obj["ports"] = doc.get("ports") or []
    obj["endpoints"] = []
    for endpoint in doc.get("endpoints") or []:
        one = dict(endpoint)
        one["conditions"] = {"ready": True, "serving": True, "terminating": False}
        obj["endpoints"].append(one)
    return obj


def _object(doc: "Object", prefix: str) -> "Object":
    kind, version = KINDS[prefix]
    meta = {"name": doc["name"], "namespace": doc["ns"]}
    if doc.get("labels"):
        meta["labels"] = doc["labels"]
    return {"kind": kind, "apiVersion": version, "metadata": meta}

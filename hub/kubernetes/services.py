"""Services and EndpointSlices as far as an edge node has a use for them. [pure]

What is kept has Kubernetes' own shape: of a Service its addresses, ports and selector, of an EndpointSlice the endpoints
that are ready, in order, with their topology. Equal content gives equal bytes, whatever else has changed of the object.
"""

from typing import Final

import msgspec

from hub.objects import SERVICES, Resource

SERVICE_NAME: Final = "kubernetes.io/service-name"
"""The one label of an EndpointSlice that readers select by."""


class _Kept(msgspec.Struct, omit_defaults=True):
    pass


class _Meta(_Kept):
    name: str
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] | None = None


class _Port(_Kept):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    targetPort: int | str | None = None
    nodePort: int | None = None
    appProtocol: str | None = None


class _ServiceSpec(_Kept):
    type: str = ""
    clusterIP: str = ""
    clusterIPs: list[str] | None = None
    externalIPs: list[str] | None = None
    externalName: str = ""
    ports: list[_Port] | None = None
    selector: dict[str, str] | None = None


class _Ingress(_Kept):
    ip: str = ""
    hostname: str = ""


class _Balancer(_Kept):
    ingress: list[_Ingress] | None = None


class _ServiceStatus(_Kept):
    loadBalancer: _Balancer = msgspec.field(default_factory=_Balancer)


class _Service(_Kept):
    metadata: _Meta
    spec: _ServiceSpec = msgspec.field(default_factory=_ServiceSpec)
    status: _ServiceStatus = msgspec.field(default_factory=_ServiceStatus)


class _Conditions(_Kept):
    ready: bool | None = None


class _Zone(_Kept):
    name: str = ""


class _Hints(_Kept):
    forZones: list[_Zone] | None = None


class _Endpoint(_Kept):
    addresses: list[str] | None = None
    hostname: str | None = None
    nodeName: str | None = None
    zone: str | None = None
    hints: _Hints | None = None
    conditions: _Conditions | None = None


class _Slice(_Kept):
    metadata: _Meta
    addressType: str = ""
    ports: list[_Port] | None = None
    endpoints: list[_Endpoint] | None = None


_service_of = msgspec.json.Decoder(_Service).decode
_slice_of = msgspec.json.Decoder(_Slice).decode
_encode = msgspec.json.Encoder(order="deterministic").encode


def kept(res: Resource, raw: bytes | msgspec.Raw) -> bytes:
    """The JSON of a Service or EndpointSlice that is kept of `raw`. Raises msgspec.DecodeError."""
    if res == SERVICES:
        return _encode(_service_of(raw))
    found = _slice_of(raw)
    labels = found.metadata.labels or {}
    found.metadata.labels = {SERVICE_NAME: labels[SERVICE_NAME]} if SERVICE_NAME in labels else None
    # Absent is ready (EndpointConditions.ready: "a nil value should be interpreted as true").
    ready = [e for e in found.endpoints or () if e.conditions is None or e.conditions.ready is not False]
    for endpoint in ready:
        endpoint.conditions = None
    found.endpoints = sorted(ready, key=lambda endpoint: endpoint.addresses or [])
    return _encode(found)

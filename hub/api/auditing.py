"""Audit events of API requests: audit.k8s.io/v1 Event, as the policy wants them.

The event's facts are taken on the loop; bodies are parsed and lines made in the log's thread. No header is told but the user
agent: credentials stand in headers.

Source: the Kubernetes documentation, "Auditing"; the reference of audit.k8s.io/v1 Event.
"""

import uuid
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from aiohttp import hdrs, web

from hub import errors
from hub.access.auditlog import AuditLog
from hub.access.auditpolicy import COMPLETE, RECEIVED, STARTED, Policy
from hub.api import decode, protobuf
from hub.api.calls import Call
from hub.api.requests import KeptBody
from hub.api.reviews import user_info
from hub.policies.matching import Attempt
from security.rbac import Request, User

BODY_BYTES_MAX: Final = 256 << 10
"""A larger object is left out of its event, which says so."""
URI_CHARS_MAX: Final = 4096
EDGE_URI: Final = "/cloudhub/edge"
"""Stands for the URI of what came over the edge channel."""
_AGENT_CHARS_MAX: Final = 1024
_EVENT_BYTES: Final = 1024
"""About what an event takes without bodies."""
_TRUNCATED: Final = "audit.k8s.io/truncated"
Object = dict[str, Any]


class Record:
    """One request's events: their level, and the stages that are not told of."""

    def __init__(self, level: str, omitted: frozenset[str], event: Object, keep_body: bool) -> None:
        self.level = level
        self.omitted = omitted
        self.event = event
        self.keep_body = keep_body
        self.body = KeptBody()


class Auditor:
    """Makes records of calls, and events of records."""

    def __init__(self, policy: Policy, log: AuditLog) -> None:
        self._policy = policy
        self._log = log

    def begin(self, call: Call) -> Record | None:
        """Once it is known who wants what; None when the policy does not want it."""
        level, omitted = self._policy.decide(call.acting, call.asked)
        if level == "None":
            return None
        record = Record(level, omitted, _event(call, level), level in ("Request", "RequestResponse"))
        self._tell(record, RECEIVED, {})
        return record

    def started(self, record: Record) -> None:
        """Of what lasts: watches, followed logs, exec, attach, port-forward."""
        self._tell(record, STARTED, {"responseStatus": {"metadata": {}, "code": 200}})

    def end(self, call: Call, record: Record | None, response: web.StreamResponse | None) -> None:
        """`record`: None for a request that was refused before it was known who wants what."""
        if record is None:
            level, omitted = self._policy.decide(call.acting, call.asked)
            if level == "None":
                return
            record = Record(level, omitted, _event(call, level), False)
        more: Object = {"responseStatus": {"metadata": {}, "code": call.code}}
        annotations = dict(call.notes)
        if (failure := call.failure) is not None:
            more["responseStatus"] |= {
                "status": "Failure",
                "reason": failure.reason,
                "message": failure.message,
            }
        if call.reason:
            annotations |= {
                "authorization.k8s.io/decision": "allow",
                "authorization.k8s.io/reason": call.reason,
            }
        elif call.code == 403:
            annotations["authorization.k8s.io/decision"] = "forbid"
        if annotations:
            more["annotations"] = annotations
        answer = b""
        if record.level == "RequestResponse" and isinstance(response, web.Response):
            is_json = response.content_type == decode.JSON
            answer = response.body if is_json and isinstance(response.body, bytes) else b""
        self._tell(record, COMPLETE, more, answer)

    def judged(self, attempt: Attempt, annotations: dict[str, str], refused: errors.ApiError | None) -> None:
        """A write that came over the edge channel, of which policies had something to say (`hub.policies.watching.Audit`). Its
        event is that of the request that a kubelet would have made; never with bodies."""
        res = attempt.res
        verb = attempt.operation.lower()
        user = User(attempt.user, attempt.groups)
        asked = Request(verb, res.group, res.resource, attempt.subresource, attempt.namespace, attempt.name)
        level, omitted = self._policy.decide(user, asked)
        if level == "None":
            return
        about = {
            "resource": res.resource,
            "namespace": attempt.namespace,
            "name": attempt.name,
            "apiGroup": res.group,
            "apiVersion": res.version,
            "subresource": attempt.subresource,
        }
        now = _now()
        event = {
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": level,
            "auditID": str(uuid.uuid4()),
            "requestURI": EDGE_URI,
            "verb": verb,
            "user": user_info(user),
            "requestReceivedTimestamp": now,
            "objectRef": {key: value for key, value in about.items() if value},
        }
        status: Object = {"metadata": {}, "code": 200 if refused is None else refused.code}
        if refused is not None:
            status |= {"status": "Failure", "reason": refused.reason, "message": refused.message}
        more = {"responseStatus": status, **({"annotations": annotations} if annotations else {})}
        self._tell(Record(level, omitted, event, False), COMPLETE, more)

    def _tell(self, record: Record, stage: str, more: Object, answer: bytes = b"") -> None:
        if stage in record.omitted:
            return
        event = {**record.event, "stage": stage, "stageTimestamp": _now(), **more}
        # The body comes later than this stage, and the line is made later still.
        body = record.body if stage != RECEIVED else KeptBody()

        def render() -> bytes:
            return orjson.dumps(_with_bodies(event, body, answer))

        self._log.put(render, _EVENT_BYTES + len(body.data) + len(answer))


def _event(call: Call, level: str) -> Object:
    request, asked = call.request, call.asked
    event: Object = {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": level,
        "auditID": str(uuid.uuid4()),
        "requestURI": str(request.rel_url)[:URI_CHARS_MAX],
        "verb": asked.verb,
        "user": user_info(call.user),
        "requestReceivedTimestamp": _shown(call.received),
    }
    if call.acting is not call.user:
        event["impersonatedUser"] = user_info(call.acting)
    if request.remote:
        event["sourceIPs"] = [request.remote]
    if agent := request.headers.get(hdrs.USER_AGENT):
        event["userAgent"] = agent[:_AGENT_CHARS_MAX]
    if asked.resource:
        about = {
            "resource": asked.resource,
            "namespace": asked.namespace,
            "name": asked.name,
            "apiGroup": asked.group,
            "apiVersion": "v1" if call.target is None else call.target.kind.res.version,
            "subresource": asked.subresource,
        }
        event["objectRef"] = {key: value for key, value in about.items() if value}
    return event


def _with_bodies(event: Object, body: KeptBody, answer: bytes) -> Object:
    """In the log's thread: the event with what was sent and answered, as far as that can be read and is not too long."""
    found = {}
    if body.data:
        found["requestObject"] = _object(body.content_type or decode.JSON, body.data)
    if answer:
        found["responseObject"] = _object(decode.JSON, answer)
    if None in found.values():
        found = {key: value for key, value in found.items() if value is not None}
        event = {**event, "annotations": {**event.get("annotations", {}), _TRUNCATED: "true"}}
    return {**event, **found}


def _object(content_type: str, data: bytes) -> Any:
    """A body as a value; None for one that is too long or no object."""
    if len(data) > BODY_BYTES_MAX:
        return None
    try:
        media = content_type.partition(";")[0].strip().lower()
        if media == decode.PROTOBUF:
            return protobuf.parse(data)
        return decode.parse_body(decode.YAML if "yaml" in media else decode.JSON, data)
    except errors.ApiError:
        return None


def _now() -> str:
    return _shown(datetime.now(UTC))


def _shown(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")

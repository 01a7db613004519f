"""The edge end of one connection to the hub, without sockets, clocks or files. [pure]

The driver's contract, in this order ("save before send"):

    actions = session.receive(kind, stream, body, now)   # or tick, start, renew, ...
    perform the actions; then
    journal.write(session.writes()); journal.sync()      # many messages may share one sync
    perform session.commit(now)                          # ACKs, applied documents, reports: only now

When `sync` fails, `commit` is simply not called until a later sync succeeded: nothing is acknowledged or applied
meanwhile, while heartbeats go on.

Who may speak for the desired state (invariant I9): after WELCOME the session is `live`, or it `hold`s: then neither
documents nor reports pass, and what runs goes on running. It holds when the hub says so, and when the hub's claim is
of another store, a lower generation, a lower epoch of the same slot (or the same epoch with another id), and not
confirmed. Unknown message types are ignored and counted, whatever the peer's version; a known one in a wrong place
ends the connection.

Bounds: STAGED_MAX unsynced documents, PAIRS_MAX digest repairs, three heartbeats of silence, HELLO_TIMEOUT_S.
Runs on MicroPython.
"""

import json

from edgelite import __version__, wire
from edgelite.actions import Apply, Bundle, Close, Delivered, Note, Renewed, Send, Stream, Welcomed
from edgelite.desired import (
    CLAIM,
    DOCUMENT,
    PIECE,
    REVISION,
    TOKEN,
    Claim,
    Desired,
    body_of,
    compact,
    encode_document,
    valid_key,
    version_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edgelite.upstream import Upstream, Writes

FEATURES = ["log", "exec", "portforward", "services", "usage"]
HELLO_TIMEOUT_S = 30.0
SILENT_HEARTBEATS = 3
HEARTBEAT_MIN_S = 0.1
HEARTBEAT_MAX_S = 600.0
PAIRS_MAX = 3
STAGED_MAX = 1024
TRACE_CHARS_MAX = 64  # of the context that a SET may carry; its ACK carries it back
WINDOW_MAX = 1024
MESSAGE_CHARS_MAX = 1024


class Identity:
    """What HELLO says about this agent: journal incarnation, boot count, connection count, frame and document
    limits in bytes, and the short name of the trust bundle that it holds ("": it does not say)."""

    __slots__ = ("boot", "conn", "document_bytes_max", "frame_bytes_max", "inc", "trust")

    def __init__(
        self,
        inc: str,
        boot: int,
        conn: int,
        document_bytes_max: int = wire.DOCUMENT_BYTES_MAX,
        frame_bytes_max: int = wire.FRAME_BYTES_MAX,
        trust: str = "",
    ) -> None:
        self.trust = trust
        self.inc = inc
        self.boot = boot
        self.conn = conn
        self.document_bytes_max = document_bytes_max
        self.frame_bytes_max = frame_bytes_max


class _Staged:
    """A document message that is on its way to the disk. `value` None is a DEL."""

    __slots__ = ("key", "refusal", "value", "version")

    def __init__(
        self, key: str, version: str, value: "bytes | None", refusal: "tuple[str, str] | None"
    ) -> None:
        self.key = key
        self.version = version
        self.value = value
        self.refusal = refusal


class _Protocol(Exception):
    """The peer broke the protocol; becomes GOAWAY `protocol`."""


class Session:
    """See the module. `admit(key, document)` -> (reason, message) or None decides on a document before it is
    journalled; `fetch(journal key)` reads the journal. `redirects`, `unreached`: how the driver came here
    (`edgelite.hubs`), for HELLO."""

    def __init__(
        self,
        desired: Desired,
        upstream: "Upstream",
        identity: Identity,
        admit: "Callable[[str, bytes], tuple[str, str] | None]",
        fetch: "Callable[[str], bytes | None]",
    ) -> None:
        self._desired = desired
        self._upstream = upstream
        self._identity = identity
        self._admit = admit
        self._fetch = fetch
        self.state = "hello"
        self.hold_reason = ""
        self.heartbeat_s = 30.0
        self.window = 64
        self.features: "list[str]" = []
        self.ignored = 0
        self.welcomed_at: "float | None" = None
        self.redirects = 0
        self.unreached = ""
        self.synced = False
        """Set whenever both ends agree and that is durable here; the driver clears it once it has taken note."""
        self._in_step = False
        self._heard = 0.0
        self._next_ping = 0.0
        self._pairs_sent = 0
        self._staged: "list[_Staged]" = []
        self._staged_claim: "Claim | None" = None
        self._staged_synced = ""
        self._traces: "list[str]" = []
        self._revision = desired.revision
        self._revision_written = desired.revision
        self._writes: "Writes" = []
        self._out: "list[Any]" = []

    # Driver's side

    def start(self, now: float) -> "list[Any]":
        """The TLS handshake is done: HELLO."""
        me = self._identity
        claim = self._desired.claim
        self._heard = now
        self._upstream.reset()
        hello: "dict[str, Any]" = {
            "proto": [wire.PROTOCOL_MIN, wire.PROTOCOL_MAX],
            "features": FEATURES,
            "agent": __version__,
            "inc": me.inc,
            "boot": me.boot,
            "conn": me.conn,
            "digest": self._desired.digest(),
            "docs": len(self._desired.versions),
            "claim": None if claim is None else claim.as_json(),
            "rev": self._desired.revision,
            "limits": {"document": me.document_bytes_max, "frame": me.frame_bytes_max},
        }
        if me.trust:
            hello["trust"] = me.trust
            hello["features"] = FEATURES + ["trust"]
        if self.redirects:
            hello["redirects"] = self.redirects
        if self.unreached:
            hello["unreached"] = self.unreached
        self._send(wire.HELLO, hello)
        return self._take()

    def receive(self, kind: int, stream: int, body: bytes, now: float) -> "list[Any]":
        """A message has arrived."""
        if self.state == "closed":
            return []
        self._heard = now
        handler = _HANDLERS.get(kind)
        try:
            if handler is not None:
                if self.state == "hello" and kind not in (
                    wire.WELCOME,
                    wire.GOAWAY,
                    wire.REDIRECT,
                    wire.BUNDLE,
                ):
                    raise _Protocol("%s before WELCOME" % wire.NAMES[kind])
                handler(self, stream, body, now)
            elif kind in wire.NAMES:
                raise _Protocol("%s is not for an agent" % wire.NAMES[kind])
            else:
                self.ignored += 1
        except (_Protocol, wire.WireError) as error:
            self._fail("protocol", str(error), 30.0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            self._fail("protocol", "%s is malformed: %r" % (wire.NAMES[kind], error), 30.0)
        return self._take()

    def writes(self) -> "Writes":
        """What has to be journalled and synced before `commit`; each write is handed out once."""
        out = self._writes
        self._writes = []
        if self._revision > self._revision_written:
            self._revision_written = self._revision
            out.append((REVISION, str(self._revision).encode()))
        return out

    def commit(self, now: float) -> "list[Any]":
        """Everything handed out by `writes` is durable: acknowledge, apply, report."""
        if self._staged_claim is not None:
            self._desired.claim = self._staged_claim
            self._staged_claim = None
        self._desired.revision = self._revision
        acks: "list[list[str]]" = []
        for staged in self._staged:
            self._commit_document(staged, acks)
            self.synced = self._in_step
        self._staged = []
        if acks and self.state == "live":
            ack: "dict[str, Any]" = {"a": acks}
            if self._traces:
                ack["t"] = self._traces
            self._send(wire.ACK, ack)
        self._traces = []
        self._upstream.committed()
        if self._staged_synced:
            self._compare(self._staged_synced)
            self._staged_synced = ""
        self._report()
        return self._take()

    def tick(self, now: float) -> "list[Any]":
        """Time has passed: heartbeat, silence, reports that wait."""
        if self.state == "closed":
            return []
        if now >= self._dead_at():
            silent = now - self._heard
            self._fail("silent", "the hub has not answered for %.1f s" % silent, 0.0, goaway=False)
        elif self.state != "hello":
            if now >= self._next_ping:
                self._next_ping = now + self.heartbeat_s
                self._out.append(Send(wire.frame(wire.PING)))
            self._report()
        return self._take()

    def deadline(self) -> float:
        """When `tick` has to be called at the latest."""
        dead = self._dead_at()
        return dead if self.state == "hello" else min(dead, self._next_ping)

    def set_heartbeat(self, seconds: float) -> None:
        """Another heartbeat interval from now on, within HEARTBEAT_MIN_S and HEARTBEAT_MAX_S."""
        self.heartbeat_s = min(max(seconds, HEARTBEAT_MIN_S), HEARTBEAT_MAX_S)

    def renew(self, csr_pem: str) -> "list[Any]":
        """Asks for a new certificate; the answer is a Renewed action."""
        self._send(wire.RENEW, {"csr": csr_pem})
        return self._take()

    def installed(self, trust: str, cert: str) -> "list[Any]":
        """What the hub sent is on disk: `trust`, the short name of the bundle, and `cert`, the first 16 hex digits of the
        SHA-256 of the newest certificate's DER. Not said to a hub that does not know what it means."""
        if "trust" in self.features and self.state != "closed":
            self._send(wire.BUNDLE, {"have": trust, "cert": cert})
        return self._take()

    def stream(self, kind: int, stream: int, body: bytes) -> "list[Any]":
        """Sends DATA, CREDIT or CLOSE of a stream."""
        if self.state == "closed":
            return []
        self._out.append(Send(wire.message(kind, body, stream)))
        return self._take()

    def goodbye(self, code: str, message: str) -> "list[Any]":
        """Ends the connection from this side."""
        if self.state != "closed":
            self._fail(code, message, 0.0)
        return self._take()

    # Messages

    def _welcome(self, stream: int, body: bytes, now: float) -> None:
        if self.state != "hello":
            raise _Protocol("a second WELCOME")
        fields = json.loads(body)
        proto = fields["proto"]
        if not wire.PROTOCOL_MIN <= proto <= wire.PROTOCOL_MAX:
            raise _Protocol(
                "the hub chose protocol %r, this agent speaks %d to %d; update the older of the two"
                % (proto, wire.PROTOCOL_MIN, wire.PROTOCOL_MAX)
            )
        self.set_heartbeat(float(fields["heartbeat"]))
        self.window = min(max(int(fields["window"]), 1), WINDOW_MAX)
        self.features = list(fields.get("features") or [])
        self.welcomed_at = now
        self._next_ping = now + self.heartbeat_s
        sync = fields["sync"]
        if sync not in ("match", "diff", "hold"):
            raise _Protocol("WELCOME with sync %r" % sync)
        claim = None
        if sync != "hold":
            claim = Claim(
                str(fields["store"]),
                int(fields["gen"]),
                int(fields["slot"]),
                int(fields["epoch"]),
                str(fields["claim"]),
            )
        reason = self._hold_reason(claim, fields)
        self.state = "hold" if reason else "live"
        self.hold_reason = reason
        resync = False
        if claim is not None and not reason:
            resync = self._accept(claim, fields.get("confirmed"))
            if sync == "diff":
                self._send_pairs()
            else:
                self._in_step = self.synced = True
        self._out.append(Welcomed(reason, resync, float(fields.get("time") or 0)))

    def _hold_reason(self, claim: "Claim | None", fields: "dict[str, Any]") -> str:
        """Why nothing may pass, or "" (I9)."""
        if claim is None:
            return str(fields.get("reason") or "the hub holds this node")
        held = self._desired.claim
        if held is None or (fields.get("confirmed") and fields["confirmed"] == held.id):
            return ""
        parted = claim.parted_from(held)
        return parted + "; nothing is changed here before `cloudhub confirm`" if parted else ""

    def _accept(self, claim: Claim, confirmed: object) -> bool:
        """Journals the claim; True when all status has to be reported anew."""
        held = self._desired.claim
        anew = held is not None and (
            confirmed == held.id or claim.gen != held.gen or bool(claim.parted_from(held))
        )
        if not claim.same(held):
            self._staged_claim = claim
            self._writes.append((CLAIM, compact(claim.as_json())))
        if anew:
            # Revisions of the other history say nothing about this one.
            self._revision = self._revision_written = 0
            self._writes.append((REVISION, b"0"))
        return anew

    def _set(self, stream: int, body: bytes, now: float) -> None:
        if not self._may_change("SET"):
            return
        header, document = wire.split_set_body(body)
        fields = json.loads(header)
        key, version, revision = fields["k"], fields["v"], int(fields["r"])
        trace = fields.get("t")
        if isinstance(trace, str) and 0 < len(trace) <= TRACE_CHARS_MAX and trace not in self._traces:
            self._traces.append(trace)
        if not valid_key(key):
            raise _Protocol("SET with the key %r" % (key,))
        if version != version_of(document):
            raise _Protocol("SET of %s: its bytes do not have the version %s" % (key, version))
        if key.startswith(PIECE):
            self._out.append(Apply(key, document))
            return
        if key.startswith(TOKEN):
            # Part of no digest: who lacks one asks again, so it is neither acknowledged nor refused.
            fault = self._refusal(key, document)
            self._out.append(Note("warning", "%s: %s" % fault) if fault else Apply(key, document))
            return
        self._revision = max(self._revision, revision)
        refusal = self._refusal(key, document)
        if refusal is None:
            value = encode_document(version, document)
        else:
            value = encode_document(version, self._accepted(key), refusal, self._desired.mark)
        self._stage(_Staged(key, version, value, refusal))

    def _refusal(self, key: str, document: bytes) -> "tuple[str, str] | None":
        limit = self._identity.document_bytes_max
        if len(document) > limit:
            return ("DocumentTooLarge", "%d bytes, this node takes at most %d" % (len(document), limit))
        refusal = self._admit(key, document)
        if refusal is None:
            return None
        return (refusal[0], refusal[1][:MESSAGE_CHARS_MAX])

    def _accepted(self, key: str) -> bytes:
        """The bytes of `key` that run now or, once what is staged is durable, will."""
        value = self._fetch(DOCUMENT + key)
        for staged in self._staged:
            if staged.key == key:
                value = staged.value
        return b"" if value is None else body_of(value)

    def _del(self, stream: int, body: bytes, now: float) -> None:
        if not self._may_change("DEL"):
            return
        fields = json.loads(body)
        key = fields["k"]
        if not valid_key(key):
            raise _Protocol("DEL with the key %r" % (key,))
        self._revision = max(self._revision, int(fields["r"]))
        self._stage(_Staged(key, "", None, None))

    def _stage(self, staged: _Staged) -> None:
        if len(self._staged) >= STAGED_MAX:
            raise _Protocol("more than %d unacknowledged documents" % STAGED_MAX)
        self._staged.append(staged)
        self._writes.append((DOCUMENT + staged.key, staged.value))

    def _synced(self, stream: int, body: bytes, now: float) -> None:
        if not self._may_change("SYNCED"):
            return
        fields = json.loads(body)
        self._staged_synced = str(fields["digest"])
        self._revision = max(self._revision, int(fields["r"]))

    def _stored(self, stream: int, body: bytes, now: float) -> None:
        if not self._may_change("STORED"):
            return
        fields = json.loads(body)
        refused = dict([(int(n), str(reason)) for n, reason in fields.get("refused") or []])
        # What the hub has stored of ours it must still know when it speaks to us again (I9).
        self._revision = max(self._revision, int(fields.get("r") or 0))
        done, writes = self._upstream.stored([int(n) for n in fields["n"]] + list(refused))
        self._writes.extend(writes)
        for kind, key, entry in done:
            reason = refused.get(json.loads(entry)["n"], "") if refused else ""
            self._out.append(Delivered(kind, key, entry, reason))

    def _ping(self, stream: int, body: bytes, now: float) -> None:
        self._out.append(Send(wire.frame(wire.PONG)))

    def _pong(self, stream: int, body: bytes, now: float) -> None:
        pass  # `receive` has noted the sign of life

    def _redirect(self, stream: int, body: bytes, now: float) -> None:
        to = str(json.loads(body)["to"])
        self.state = "closed"
        self._out.append(Close("redirect", "the hub sends this node to %s" % to, 0.0, to))

    def _goaway(self, stream: int, body: bytes, now: float) -> None:
        fields = json.loads(body)
        retry = fields.get("retry_s")
        self.state = "closed"
        expired = fields.get("reason") == "CertificateExpired"
        self._out.append(
            Close(
                "expired" if expired else str(fields["code"]),
                str(fields.get("message") or ""),
                None if retry is None else float(retry),
            )
        )

    def _renewed(self, stream: int, body: bytes, now: float) -> None:
        fields = json.loads(body)
        self._out.append(Renewed(str(fields["cert"]), list(fields.get("bundle") or [])))

    def _bundle(self, stream: int, body: bytes, now: float) -> None:
        fields = json.loads(body)
        self._out.append(Bundle([str(root) for root in fields["roots"]], fields.get("renew") is True))

    def _open(self, stream: int, body: bytes, now: float) -> None:
        if stream % 2 != 1:
            raise _Protocol("OPEN on stream %d; the hub opens odd ones" % stream)
        self._out.append(Stream(wire.OPEN, stream, json.loads(body)))

    def _data(self, stream: int, body: bytes, now: float) -> None:
        self._out.append(Stream(wire.DATA, stream, body))

    def _credit(self, stream: int, body: bytes, now: float) -> None:
        self._out.append(Stream(wire.CREDIT, stream, int(json.loads(body)["c"])))

    def _close(self, stream: int, body: bytes, now: float) -> None:
        self._out.append(Stream(wire.CLOSE, stream, json.loads(body)))

    # Common

    def _may_change(self, what: str) -> bool:
        """False while we hold: the hub may not know that we refused its claim, so its frame is dropped, unanswered."""
        if self.state == "live":
            return True
        self._out.append(Note("warning", "%s ignored: %s" % (what, self.hold_reason)))
        return False

    def _commit_document(self, staged: _Staged, acks: "list[list[str]]") -> None:
        key = staged.key
        if staged.value is None:
            self._desired.versions.pop(key, None)
            self._desired.refusals.pop(key, None)
            acks.append([key, ""])
            self._out.append(Apply(key, None))
            return
        known = self._desired.versions.get(key) == staged.version and key not in self._desired.refusals
        self._desired.versions[key] = staged.version
        if staged.refusal is None:
            self._desired.refusals.pop(key, None)
            acks.append([key, staged.version])
            if not known:
                self._out.append(Apply(key, body_of(staged.value)))
            return
        self._desired.refusals[key] = staged.refusal
        reason, message = staged.refusal
        if self.state == "live":
            self._send(wire.NACK, {"k": key, "v": staged.version, "reason": reason, "message": message})

    def _compare(self, digest: str) -> None:
        """After SYNCED: everything is applied, so both ends must agree."""
        if self.state != "live" or self._desired.digest() == digest:
            self._in_step = self.synced = self.state == "live"
            return
        self._in_step = False
        if self._pairs_sent >= PAIRS_MAX:
            self._fail("resync", "the digests differ after %d repairs" % PAIRS_MAX, 60.0)
            return
        self._out.append(Note("warning", "the digests differ; sending the versions held here again"))
        self._send_pairs()

    def _send_pairs(self) -> None:
        self._pairs_sent += 1
        self._send(wire.PAIRS, {"pairs": self._desired.pairs()})

    def _report(self) -> None:
        while self.state == "live":
            entries = self._upstream.batch(self.window)
            if not entries:
                return
            body = b'{"e":[' + b",".join(entries) + b"]}"
            self._out.append(Send(wire.message(wire.REPORT, body)))

    def _dead_at(self) -> float:
        if self.state == "hello":
            return self._heard + HELLO_TIMEOUT_S
        return self._heard + SILENT_HEARTBEATS * self.heartbeat_s

    def _fail(self, code: str, message: str, retry_s: float, goaway: bool = True) -> None:
        if goaway:
            self._send(wire.GOAWAY, {"code": code, "message": message[:MESSAGE_CHARS_MAX], "retry_s": None})
        self.state = "closed"
        self._out.append(Close(code, message, retry_s))

    def _send(self, kind: int, body: "dict[str, Any]") -> None:
        self._out.append(Send(wire.message(kind, compact(body))))

    def _take(self) -> "list[Any]":
        out = self._out
        self._out = []
        return out


_HANDLERS: "dict[int, Callable[[Session, int, bytes, float], None]]" = {
    wire.WELCOME: Session._welcome,
    wire.GOAWAY: Session._goaway,
    wire.PING: Session._ping,
    wire.PONG: Session._pong,
    wire.SET: Session._set,
    wire.DEL: Session._del,
    wire.SYNCED: Session._synced,
    wire.STORED: Session._stored,
    wire.OPEN: Session._open,
    wire.DATA: Session._data,
    wire.CREDIT: Session._credit,
    wire.CLOSE: Session._close,
    wire.RENEWED: Session._renewed,
    wire.BUNDLE: Session._bundle,
    wire.REDIRECT: Session._redirect,
}

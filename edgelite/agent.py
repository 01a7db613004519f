"""The resident agent: wires journal, session, link, workloads and renewal on one poll loop.

What it guarantees: an acknowledged document is durable and runs, also after a restart with the hub away; a full disk
or a lost hub stops nothing that runs; SIGTERM ends the agent within seconds and leaves the workloads alone.

A task that crashes ends the agent with a traceback in the log: started again, it adopts what runs.
"""

import json
import os
import sys

from edgelite import __version__, statusfile
from edgelite.actions import Apply, Bundle, Delivered, Note, Renewed, Welcomed
from edgelite.channel import ChannelError
from edgelite.config import Config, Membership
from edgelite.desired import DOCUMENT, PIECE, Desired, compact, hexhash
from edgelite.exits import RESTART
from edgelite.journal import Journal, JournalError, JournalFull
from edgelite.link import Link, Owner
from edgelite.loop import Loop, Wait
from edgelite.nodereport import NodeReport
from edgelite.port import Files
from edgelite.runtimes.base import RuntimeFailure, State
from edgelite.sealeddocs import SealedDocuments
from edgelite.session import Identity, Session
from edgelite.twinkeeper import ENTRY as TWIN_ENTRY
from edgelite.twinkeeper import PREFIX as TWIN
from edgelite.twinkeeper import RECORDS
from edgelite.upstream import COUNTER, PREFIX, Upstream

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Generator
    from typing import Any

    from edgelite.console import Log
    from edgelite.loop import Task
    from edgelite.parts import Parts
    from edgelite.port import Host

CONFIG_DOCUMENT = "agent/config"
UPDATE_DOCUMENT = "agent/update"
DOCUMENTS = ("pod", "configmap", "secret", "service", "endpointslice", "token", "device")
SYNC_RETRY_S = 5.0
HOUSEKEEPING_S = 10.0
RENEW_CHECK_S = 60.0
FOREIGN = "the authority of its own trust domain has to renew it and replace identity.pem"
IDENTITY_LOOK_S = 5.0  # for a certificate that another authority puts in place
RENEW_RETRY_S = 3600.0  # where not even the certificate can be read
CLONE_SHOWN_S = 3600.0
STOP_S = 2.0
SKEW_SHOWN_S = 60.0
VOLATILE = ("node", "token", "twin", "piece")  # worked out anew at every start


class JournalState(State):
    """A durable map for runtimes and workloads, under a prefix of the journal."""

    def __init__(self, journal: Journal, prefix: str) -> None:
        self._journal = journal
        self._prefix = prefix

    def put(self, key: str, value: bytes) -> None:
        """Durable on return. Raises RuntimeFailure, so that what depended on it counts as failed and is tried again."""
        try:
            self._journal.write([(self._prefix + key, value)])
            self._journal.sync()
        except JournalError as error:
            raise RuntimeFailure("JournalWriteFailed", str(error)) from error

    def delete(self, key: str) -> None:
        """Durable on return, or, while the disk fails, as soon as it works again: the key is gone in any case."""
        if self._journal.get(self._prefix + key) is None:
            return
        self._journal.write([(self._prefix + key, None)])
        try:
            self._journal.sync()
        except JournalError:
            return  # `journal.failed` is set; the agent's keeper shows it and retries

    def items(self) -> "list[tuple[str, bytes]]":
        cut = len(self._prefix)
        return [(key[cut:], value) for key, value in self._journal.items(self._prefix)]


class Agent(Owner):
    """One agent on one data directory (whose lock the caller holds). `parts` makes what is wired in: see
    `edgelite.parts.Parts`."""

    def __init__(
        self,
        data_dir: str,
        config: Config,
        membership: Membership,
        host: "Host",
        log: "Log",
        parts: "Parts",
    ) -> None:
        self.data_dir = data_dir
        self.config = config
        self.membership = membership
        self.host = host
        self.log = log
        self.parts = parts
        self.log_dir = ""  # where `log` is kept besides, when not in the data directory; for `edgelite logs`
        self.exit_code = 0
        self.loop = Loop(self._crashed, self._interrupted)
        self.journal = Journal(Files(), os.path.join(data_dir, "journal"))
        self.desired = Desired(config.mark(__version__))
        self.upstream = Upstream()
        self._disk_failed = ""
        self._uncommitted: "Session | None" = None
        self._dirty = False
        self._node_hash = ""
        self._next_renewal = 0.0
        self._renewal_jitter = host.chance()
        self._draining = False
        self._drain_wanted = False
        self._again_wanted = False
        self._keeper: "Task | None" = None
        self._context: "ssl.SSLContext | None" = None
        self._context_mark: "Any" = None
        self._returns = False
        self._skew_s: "float | None" = None
        self._updates: "Any" = None
        self._synced = statusfile.last_synced(data_dir)
        self._drop_tampered(_reviewed(self.journal))
        self._begin_incarnation()
        parts.keep_vault_in(JournalState(self.journal, "run/workloads/"))
        self.documents = SealedDocuments(self.journal, parts.vault)
        self.upstream.load(self.journal.items(PREFIX) + self.journal.items(COUNTER))
        runtime_name = parts.runtime_name()
        self.report_builder = NodeReport(
            host, membership.node, data_dir, config.pods_max, config.labels, runtime_name
        )
        stored = self.journal.get("meta/conditions")
        self.report_builder.load_conditions(json.loads(stored or b"{}"), host.wall())
        conditions = compact(self.report_builder.conditions)
        if conditions != stored:
            self._write([("meta/conditions", conditions)])
        self.report_builder.address = (self.journal.get("meta/address") or b"").decode()
        self.runtime = parts.runtime(runtime_name, self.loop, JournalState(self.journal, "run/runtime/"))
        self.report_builder.runtime_version = self.runtime.facts()["version"]
        self.twins = parts.twins(self.loop, self.report, self._save_twin, self.journal.items(RECORDS))
        self.workloads = parts.workloads(
            self.loop,
            self.runtime,
            self.report_builder,
            self.report,
            JournalState(self.journal, "run/workloads/"),
        )
        run = self.desired.load(self._stored_documents() + self.journal.items("meta/"))
        self.static = parts.static_pods(
            JournalState(self.journal, "run/static/"), self.workloads, self.report, log
        )
        self.link = Link(self.loop, log, self, membership.edge, membership.hub)
        self.link.on_state = self.write_status
        if os.path.exists(os.path.join(data_dir, "update")):
            try:
                self.updates()
            except OSError as error:
                log.error("what became of the last update cannot be read: %s" % error)
        for key, body in run:
            self._set_again(key, body)
        self._look_at_static_pods()  # before anything is recovered, so that what runs is adopted

    def _stored_documents(self) -> "list[tuple[str, bytes]]":
        found = self.documents.load()
        if self.documents.trouble:
            self.log.error(
                "Secrets of an earlier version stay in clear in the journal: %s" % self.documents.trouble
            )
        if self.documents.lost or self.documents.unread:
            self.log.warning(
                "Secrets in the journal are sealed for another identity of this node: the hub sends them again",
                forgotten=self.documents.lost,
                kept=self.documents.unread,
            )
        return found

    # Life

    def run(self) -> int:
        """Runs until stopped; the exit code."""
        self._note_start()
        self.workloads.start()
        self.twins.start()
        self._keeper = self.loop.spawn(self._keep(), "keeper")
        self.loop.spawn(self._housekeeping(), "housekeeping")
        self.link.start()
        try:
            self.loop.run()
        finally:
            self._finish()
        return self.exit_code

    def run_drain(self) -> int:
        """Without a connection: takes over what runs and stops it gracefully (`stop --workloads` with no agent)."""
        self._note_start()
        # Before anything is recovered: what does not run is not started only to be stopped.
        self._draining = True
        self.loop.spawn(self._drain(), "drain")
        self.workloads.start()
        self._keeper = self.loop.spawn(self._keep(), "keeper")
        try:
            self.loop.run()
        finally:
            self._finish()
        return self.exit_code

    def stop(self) -> None:
        """Ends `run`; callable from a signal handler."""
        self.loop.stop()

    def updates(self) -> "Any":
        """What replaces this agent by another release: loaded where there ever was a document that wants one."""
        if self._updates is None:
            from edgelite.updatekeeper import UpdateKeeper

            self._updates = UpdateKeeper(self)
        return self._updates

    def restart(self) -> None:
        """Ends `run` with RESTART: another release is wanted."""
        self.exit_code = RESTART
        self.loop.stop()

    def drain(self) -> None:
        """Stops all workloads gracefully, then the agent; callable from a signal handler."""
        self._drain_wanted = True
        self.loop.interrupt()

    def _interrupted(self) -> None:
        if self._drain_wanted and not self._draining:
            self._draining = True
            self.loop.spawn(self._drain(), "drain")
        if self._again_wanted:
            self._again_wanted = False
            self.link.again()

    def again(self) -> None:
        """Connects now instead of at the end of a back-off; callable from a signal handler."""
        self._again_wanted = True
        self.loop.interrupt()

    def _drain(self) -> "Generator[Wait, bool, None]":
        self.log.info("stopping all workloads")
        yield from self.workloads.drain()
        self.settle()
        self.log.info("all workloads have stopped")
        self.loop.stop()

    def _finish(self) -> None:
        session = self.link.session
        if session is not None and self.exit_code in (0, RESTART):
            self.settle()
            self.link.perform(session.goodbye("shutdown", "the agent stops"))
            self._linger()
        self.loop.close()
        try:
            self.journal.close()
        except JournalError as error:
            self.log.error("the journal could not be closed: %s" % error)
        self.link.stopped()  # which writes the last status

    def _linger(self) -> None:
        """A few more turns, so that the hub hears that we leave."""
        until = self.loop.now() + STOP_S
        while self.link.session is not None and self.loop.now() < until:
            self.loop.turn(0.1)

    def _crashed(self, task: "Task", error: BaseException) -> None:
        import traceback

        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self.log.error(
            "task %s crashed: %r; the agent ends, workloads go on" % (task.name, error), trace=text
        )
        self.exit_code = 1
        self.loop.stop()

    def _note_start(self) -> None:
        self.log.info(
            "edgelite %s starts" % __version__,
            node=self.membership.node,
            hub=self.membership.edge,
            documents=len(self.desired.versions),
            runtime=self.runtime.name,
        )
        if self.journal.salvaged:
            self.log.error("the journal was damaged: %s" % self.journal.salvaged)
            self.report("event", "node", self._event("Warning", "JournalDamaged", self.journal.salvaged))
        if self.journal.cut_bytes:
            self.log.warning("%d unsynced bytes at the journal's end were cut" % self.journal.cut_bytes)

    def _drop_tampered(self, found: "list[tuple[str, str]]") -> None:
        """What no agent wrote is gone as if it had been damaged, before anybody reads it."""
        if found:
            from edgelite.journalreview import summary

            self._write([(name, None) for name, _ in found])
            self.journal.salvaged = self.journal.salvaged or summary(found)

    # Identity of this start

    def _begin_incarnation(self, anew: bool = False) -> None:
        """A new incarnation after a copy, a salvage or other loss (anew), else the next boot count of the old one."""
        fingerprint = hexhash(self.host.fingerprint(self.data_dir).encode())
        stored = json.loads(self.journal.get("meta/incarnation") or b"{}")
        if stored.get("fingerprint") != fingerprint or self.journal.salvaged or anew:
            stored = {"inc": self.host.entropy(16).hex(), "fingerprint": fingerprint, "boot": 0}
        stored["boot"] += 1
        self._inc, self._boot = str(stored["inc"]), int(stored["boot"])
        self._conn = 0
        self._begun_anew = anew
        try:
            self.journal.put("meta/incarnation", compact(stored))
            self.journal.sync()
        except JournalError:
            # This boot count may be used again: connection counts that grow with the clock keep us newest.
            self._conn = int(self.host.wall())

    # Owner: what the link needs

    def outdated(self) -> bool:
        """The journal has lost its end, boot counts among it: a disk forgot what it had synced, or an old image was restored. Once
        in a process: if there are two of this node, that is for the hub to find."""
        if self._begun_anew:
            return False
        self.log.error("the hub knows later starts of this node: its journal has lost what was written last")
        self._begin_incarnation(anew=True)
        self.workloads.resync()
        self.twins.anew()
        return True

    def context(self) -> "ssl.SSLContext":
        paths = [os.path.join(self.data_dir, name) for name in ("identity.pem", "bundle.pem")]
        try:
            mark = [os.stat(path).st_mtime_ns for path in paths]
        except OSError as error:
            text = "cannot read %s: %s; restore it or join anew" % (error.filename, error.strerror)
            raise ChannelError("certificate", text) from error
        credentials = self.parts.credentials()
        if self._context_mark is not None and mark[0] != self._context_mark[0]:
            self.link.expired = False  # that was said of another certificate
        try:
            returns = (
                self.link.expired or credentials.certificate(self.data_dir).not_after <= self.host.wall()
            )
            if returns and credentials.is_foreign(self.data_dir):
                raise ChannelError("certificate", "this node's certificate has ended: " + FOREIGN)
            if self._context is None or mark != self._context_mark or returns != self._returns:
                make = credentials.anonymous_context if returns else credentials.client_context
                self._context = make(self.data_dir)
                self._context_mark, self._returns = mark, returns
        except credentials.EnrollError as error:
            raise ChannelError("certificate", str(error)) from error
        return self._context

    def new_session(self, local_address: str) -> "Any":
        if self._returns:
            self.log.warning("this node's certificate has ended: asking the hub to take the node back")
            own = self.parts.credentials()
            try:
                return own.returning(self.data_dir, self.host.entropy)
            except own.EnrollError as error:
                raise ChannelError("failed", str(error)) from error
        self._conn += 1
        if local_address and local_address != self.report_builder.address:
            self.report_builder.address = local_address
            self._write([("meta/address", local_address.encode())])
            self.parts.addresses_changed(self.report_builder)
        credentials = self.parts.credentials()
        try:
            trust = credentials.trust_id(self.data_dir)
        except (
            credentials.EnrollError
        ) as error:  # the context that was just made from it loads, so it is being replaced
            self.log.warning("%s" % error)
            trust = ""
        identity = Identity(self._inc, self._boot, self._conn, trust=trust)
        return Session(self.desired, self.upstream, identity, self._admit, self.documents.get)

    def chance(self) -> float:
        return self.host.chance()

    def logs(self, uid: str, container: str, options: "dict[str, Any]", out: "Any") -> "Any":
        return self.workloads.logs(uid, container, options, out)

    def usage(self, out: "Any") -> "Any":
        return self.workloads.usage(out)

    def inside(self, request: "dict[str, Any]") -> "Any":
        return self.workloads.inside(request)

    def journal_session(self) -> None:
        session = self.link.session
        writes = [] if session is None else session.writes()
        if session is None or not writes:
            return
        try:
            self.journal.write(self.documents.sealed(writes))
        except (JournalFull, RuntimeFailure) as error:
            # What the session holds in memory is not in the journal now: it must never be committed.
            self._disk_state(str(error))
            self._uncommitted = session
            self.link.perform(session.goodbye("failed", str(error)))

    def settle(self) -> None:
        """Makes everything journalled durable, then acknowledges, applies and reports it. A full disk changes only
        that: it is shown as a condition, and tried again."""
        self.journal_session()
        self._dirty = False
        try:
            self.journal.sync()
        except JournalError as error:
            self._disk_state(str(error))
            return
        session = self.link.session
        if session is not None and session is self._uncommitted:
            return
        self._uncommitted = None
        self._disk_state("")
        self.upstream.committed()
        if session is not None:
            self.link.perform(session.commit(self.loop.now()))
            self._note_sync(session)

    def perform(self, action: "Any") -> None:
        if isinstance(action, Apply):
            if action.body is None:
                self._delete(action.key)
            else:
                self._set(action.key, action.body)
        elif isinstance(action, Delivered):
            self._delivered(action)
        elif isinstance(action, Welcomed):
            self._welcomed(action)
        elif isinstance(action, (Renewed, Bundle)):
            self._install(action)
        elif isinstance(action, Note):
            getattr(self.log, action.level)(action.message)

    # Documents

    def _admit(self, key: str, body: bytes) -> "tuple[str, str] | None":
        room = self.journal.live_bytes_max * 7 // 8 - self.journal.live_bytes
        growth = len(body) - len(self.journal.get(DOCUMENT + key) or b"")
        if growth > max(0, room):
            # The rest is for status and runtime state, which must always find room.
            return ("JournalFull", "%d bytes are left in this node's journal" % max(0, room))
        if key == CONFIG_DOCUMENT:
            try:
                heartbeat = json.loads(body).get("heartbeat", 30)
            except (ValueError, AttributeError):
                return ("InvalidDocument", "agent/config is not a JSON object")
            if not isinstance(heartbeat, (int, float)) or heartbeat <= 0:
                return (
                    "InvalidDocument",
                    "agent/config: heartbeat %r is no number of seconds" % (heartbeat,),
                )
            return None
        if key == UPDATE_DOCUMENT:
            try:
                found: "tuple[str, str] | None" = self.updates().admit(body)
            except OSError as error:
                found = ("UpdateFailed", "this node has no place for an update: %s" % error)
            return found
        if key.split("/")[0] not in DOCUMENTS:
            return ("UnsupportedKind", "this agent knows no documents of kind %r" % key.split("/")[0])
        keeper = self.twins if key.startswith(TWIN) else self.workloads
        refusal: "tuple[str, str] | None" = keeper.admit(key, body)
        return refusal

    def _set(self, key: str, body: bytes) -> None:
        if key == CONFIG_DOCUMENT:
            # WELCOME carries the interval too, so it matters only for a connection that is open now.
            if self.link.session is not None:
                self.link.session.set_heartbeat(float(json.loads(body).get("heartbeat", 30)))
        elif key == UPDATE_DOCUMENT:
            self.updates().set(body)
        elif key.startswith(PIECE):
            if self._updates is not None:
                self._updates.piece(key, body)
        elif key.startswith(TWIN):
            self.twins.set(key, body)
        else:
            self.workloads.set(key, body)

    def _set_again(self, key: str, body: bytes) -> None:
        """A document of the journal. One that could not have been admitted is forgotten: the hub sends it again."""
        refusal = self._admit(key, body)
        if refusal is None or refusal[0] == "JournalFull":
            self._set(key, body)
            return
        self.desired.versions.pop(key, None)
        self.desired.refusals.pop(key, None)
        self._drop_tampered([(DOCUMENT + key, refusal[1])])

    def _delete(self, key: str) -> None:
        if key.startswith(TWIN):
            self.twins.delete(key)
        elif key == UPDATE_DOCUMENT:
            self.updates().delete()
        elif key != CONFIG_DOCUMENT:
            self.workloads.delete(key)

    # Reports

    def report(self, kind: str, key: str, body: "dict[str, Any]") -> None:
        """Queues an upstream entry: journalled now, sent once durable."""
        if key in self.static:
            if kind == "pod":
                self.static.status(key, body)  # the hub has no pod under this key, but a mirror
            elif kind == "event":
                self.log.info("static pod %s: %s: %s" % (key.split("/")[2], body["reason"], body["message"]))
            return
        writes = self.upstream.add(kind, key, body, kind in VOLATILE)
        self._write(writes)
        session = self.link.session
        if kind == TWIN_ENTRY and not writes and session is not None and self.link.live:
            # A sensor must not wear the disk out: while the hub answers it has what was reported at once.
            self.link.perform(session.tick(self.loop.now()))
            return
        self._dirty = True
        self.loop.wake(self._keeper)

    def _save_twin(self, key: str, record: "bytes | None") -> None:
        """Synced with the next report while the hub is away, else by the housekeeping."""
        self._write([(RECORDS + key, record)])

    def _write(self, writes: "list[tuple[str, bytes | None]]") -> None:
        if not writes:
            return
        try:
            self.journal.write(writes)
        except JournalFull as error:
            # Documents leave an eighth of the journal free, so this is a flood of reports: kept in memory only.
            self.log.error(str(error))
            self._disk_state(str(error))

    def report_node(self, force: bool = False) -> None:
        """Reports the node's facts if they differ from what the hub has stored."""
        body = self.report_builder.body()
        digest = hexhash(compact(body))
        if force or (digest != self._node_hash and digest.encode() != self.journal.get("meta/node")):
            self._node_hash = digest
            self.report("node", "node", body)

    def _delivered(self, action: Delivered) -> None:
        if action.reason:
            self.log.warning(
                "the hub refused a report", type=action.kind, key=action.key, reason=action.reason
            )
        if action.kind == "twin":
            self.twins.delivered(action.key, action.entry, action.reason)
        if action.kind == "token" and action.reason:
            self.workloads.token_refused(action.key, action.reason)
        if action.kind == "piece" and action.reason and self._updates is not None:
            self._updates.refused(action.reason)
        if action.kind == "node" and not action.reason:
            body = json.loads(action.entry)["b"]
            self._write([("meta/node", hexhash(compact(body)).encode())])

    def _welcomed(self, action: Welcomed) -> None:
        if action.time:
            self._skew_s = action.time - self.host.wall()
            if abs(self._skew_s) > SKEW_SHOWN_S:
                self.log.warning("this machine's clock is %.0f s off the hub's" % -self._skew_s)
        if action.hold:
            self.log.warning("connected, but held: %s" % action.hold)
        else:
            self.log.info("connected", documents=len(self.desired.versions), upstream=len(self.upstream))
        if action.resync:
            self.workloads.resync()
            self.twins.anew()
        self.report_node(force=action.resync)
        self._renew_if_due()

    def _event(self, kind: str, reason: str, message: str) -> "dict[str, Any]":
        now = self.host.wall()
        return {
            "reason": reason,
            "message": message[:1024],
            "type": kind,
            "count": 1,
            "first": now,
            "last": now,
            "field": "",
        }

    def set_condition(self, kind: str, status: str, reason: str, message: str) -> None:
        if self.report_builder.set_condition(kind, status, reason, message, self.host.wall()):
            self._write([("meta/conditions", compact(self.report_builder.conditions))])
            self.report_node()
            self.write_status()

    def _disk_state(self, problem: str) -> None:
        if bool(problem) == bool(self._disk_failed):
            return
        self._disk_failed = problem
        if problem:
            self.log.error("%s; nothing is acknowledged until it works again" % problem)
            self.set_condition("DiskPressure", "True", "JournalWriteFailed", problem)
        else:
            self.log.info("the journal can be written again")
            self.set_condition(
                "DiskPressure", "False", "EdgeliteHasNoDiskPressure", "edgelite can write its journal"
            )

    # Tasks

    def _keep(self) -> "Generator[Wait, bool, None]":
        """Syncs what others have journalled; retries while the disk fails."""
        while True:
            if self._dirty or self.journal.failed is not None:
                self.settle()
            yield Wait(-1, 0, self.loop.now() + SYNC_RETRY_S if self.journal.failed is not None else None)

    def _housekeeping(self) -> "Generator[Wait, bool, None]":
        while True:
            clone = self.link.clone_at
            if clone is not None and self.loop.now() - clone < CLONE_SHOWN_S:
                self.set_condition(
                    "IdentityCloned",
                    "True",
                    "CloneDetected",
                    "another agent connects with this node's identity; give one of them an identity of its own",
                )
            elif "IdentityCloned" in self.report_builder.conditions:
                self.set_condition("IdentityCloned", "False", "NoCloneSeen", "no clone was seen for an hour")
            self.report_node()
            if self.twins.unsynced:
                self.twins.unsynced = False
                self._dirty = True
                self.loop.wake(self._keeper)
            self._look_at_static_pods()
            self._renew_if_due()
            until = self.loop.now() + HOUSEKEEPING_S
            if self.link.live:
                until = min(until, max(self._next_renewal, self.loop.now() + 1.0))
            yield Wait(-1, 0, until)

    def _look_at_static_pods(self) -> None:
        try:
            self.static.look()
        except RuntimeFailure as error:  # a full disk: at the next look
            self.log.error("static pods: %s" % error.message)

    # Certificates

    def _renew_if_due(self) -> None:
        now = self.loop.now()
        session = self.link.session
        if session is None or not self.link.live or now < self._next_renewal:
            return
        credentials = self.parts.credentials()
        try:
            if credentials.is_foreign(self.data_dir):
                self._next_renewal = now + IDENTITY_LOOK_S
                self._follow_identity()
                return
            left = credentials.renewal_time(self.data_dir, self._renewal_jitter) - self.host.wall()
            if left > 0:
                # Not all of it at once: the clock may be set meanwhile.
                self._next_renewal = now + min(left, RENEW_CHECK_S)
                return
        except (credentials.EnrollError, OSError, RuntimeFailure) as error:
            self._next_renewal = now + RENEW_RETRY_S
            self.log.error(
                "the certificate cannot be read, trying again in %.0f s: %s" % (RENEW_RETRY_S, error)
            )
            return
        self._renew()

    def _follow_identity(self) -> None:
        """Connects anew once another authority has replaced the certificate and its key: the hub does not renew it."""
        mark = os.stat(os.path.join(self.data_dir, "identity.pem")).st_mtime_ns
        if self._context_mark is not None and mark != self._context_mark[0]:
            self.parts.rewrap()
            self.log.info("identity.pem was replaced: connecting with the new certificate")
            self.link.perform(self.link.session.goodbye("resync", "this node has another certificate"))

    def _renew(self) -> None:
        """Asks for a new certificate."""
        credentials = self.parts.credentials()
        retry_s = RENEW_RETRY_S
        try:
            retry_s = credentials.renewal_retry_s(self.data_dir, self.host.wall())
            self.log.info("asking for a new certificate")
            if self.link.session is not None:
                csr = credentials.begin_renewal(self.data_dir, self.host.entropy)
                self.link.perform(self.link.session.renew(csr))
        except (credentials.EnrollError, OSError) as error:
            self.log.error(
                "the certificate could not be renewed, trying again in %.0f s: %s" % (retry_s, error)
            )
        self._next_renewal = self.loop.now() + retry_s

    def _install(self, action: "Renewed | Bundle") -> None:
        credentials = self.parts.credentials()
        try:
            if isinstance(action, Renewed):
                # Two keys open the vault while it is not known which of them a power cut leaves.
                self.parts.rewrap()
                credentials.install_renewed(self.data_dir, action.cert, action.bundle)
                self.parts.rewrap()
                self._next_renewal = 0.0
                self.log.info("the new certificate is installed")
            elif credentials.bundle_id("\n".join(action.roots)) != credentials.trust_id(self.data_dir):
                credentials.install_bundle(self.data_dir, action.roots)
                self.log.info("the hub's new roots are installed")
            session = self.link.session
            if session is not None:
                trust, mark = credentials.trust_id(self.data_dir), credentials.certificate_mark(self.data_dir)
                self.link.perform(session.installed(trust, mark))
                if isinstance(action, Bundle) and action.renew:
                    self.log.info("the hub asks for a renewal")
                    self._renew()
        except (credentials.EnrollError, OSError, RuntimeFailure) as error:
            self.log.error("what the hub sent could not be installed: %s" % error)

    # For `edgelite status`

    def _note_sync(self, session: "Any") -> None:
        if getattr(session, "synced", False):  # a `Returning` has nothing to synchronise
            session.synced = False
            self._synced = self.host.wall()
            self.write_status()
            if self._updates is not None:
                self._updates.synced()

    def write_status(self) -> None:
        """status.json, for people; a failure to write it is nobody's problem."""
        status = {
            "pid": os.getpid(),
            "node": self.membership.node,
            "hub": self.membership.edge,
            "runtime": self.runtime.name,
            "state": self.link.state,
            "detail": self.link.detail,
            "since": self.host.wall() - (self.loop.now() - self.link.since),
            "synced": self._synced,
            "skew_s": self._skew_s,
            "documents": len(self.desired.versions),
            "refused": sorted(self.desired.refusals),
            "unacknowledged_reports": len(self.upstream),
            "journal_bytes": self.journal.file_bytes,
            "disk": self._disk_failed,
            "log_dir": self.log_dir,
            "version": __version__,
        }
        if self._updates is not None:
            status["update"] = self._updates.facts()
        try:
            statusfile.write(self.data_dir, status)
        except OSError as error:
            self.log.debug("cannot write %s: %s" % (statusfile.NAME, error))


def _reviewed(journal: Journal) -> "list[tuple[str, str]]":
    """What no agent wrote. The module that tells is let go again: it is used once, and what is imported stays in memory."""
    import edgelite
    from edgelite import journalreview

    found = journalreview.faults(journal.items())
    del sys.modules[journalreview.__name__], edgelite.journalreview
    return found

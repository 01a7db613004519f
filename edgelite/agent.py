"""The resident agent: wires journal, session, link, workloads and renewal on one poll loop.

What it guarantees: an acknowledged document is durable and runs, also after a restart with the hub away; a full disk
or a lost hub stops nothing that runs; SIGTERM ends the agent within seconds and leaves the workloads alone.

A task that crashes ends the agent with a traceback in the log: started again, it adopts what runs.
"""

import json
import os

from edgelite import __version__
from edgelite.actions import Apply, Bundle, Delivered, Note, Renewed, Welcomed
from edgelite.channel import ChannelError
from edgelite.config import Config, Membership
from edgelite.desired import DOCUMENT, Desired, compact, hexhash
from edgelite.journal import Journal, JournalError, JournalFull
from edgelite.link import Link, Owner
from edgelite.loop import Loop, Wait
from edgelite.nodereport import NodeReport
from edgelite.port import Files
from edgelite.runtimes.base import RuntimeFailure, State
from edgelite.session import Identity, Session
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
SYNC_RETRY_S = 5.0
HOUSEKEEPING_S = 10.0
RENEW_CHECK_S = 60.0
RENEW_RETRY_S = 3600.0  # where not even the certificate can be read
CLONE_SHOWN_S = 3600.0
STOP_S = 2.0
SKEW_SHOWN_S = 60.0


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
        self._skew_s = 0.0
        self._begin_incarnation()
        run = self.desired.load(self.journal.items(DOCUMENT) + self.journal.items("meta/"))
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
        self.workloads = parts.workloads(
            self.loop,
            self.runtime,
            self.report_builder,
            self.report,
            JournalState(self.journal, "run/workloads/"),
        )
        self.link = Link(self.loop, log, self, membership.edge, membership.hub)
        self.link.on_state = self.write_status
        for key, body in run:
            self._set(key, body)

    # Life

    def run(self) -> int:
        """Runs until stopped; the exit code."""
        self._note_start()
        self.workloads.start()
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
        if session is not None and self.exit_code == 0:
            self.settle()
            self.link.perform(session.goodbye("shutdown", "the agent stops"))
            self._linger()
        self.loop.close()
        try:
            self.journal.close()
        except JournalError as error:
            self.log.error("the journal could not be closed: %s" % error)
        self._remove_status()

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

    # Identity of this start

    def _begin_incarnation(self) -> None:
        """A new incarnation after a copy or a salvage, else the next boot count of the old one."""
        fingerprint = hexhash(self.host.fingerprint(self.data_dir).encode())
        stored = json.loads(self.journal.get("meta/incarnation") or b"{}")
        if stored.get("fingerprint") != fingerprint or self.journal.salvaged:
            stored = {"inc": self.host.entropy(16).hex(), "fingerprint": fingerprint, "boot": 0}
        stored["boot"] += 1
        self._inc, self._boot = str(stored["inc"]), int(stored["boot"])
        self._conn = 0
        try:
            self.journal.put("meta/incarnation", compact(stored))
            self.journal.sync()
        except JournalError:
            # This boot count may be used again: connection counts that grow with the clock keep us newest.
            self._conn = int(self.host.wall())

    # Owner: what the link needs

    def context(self) -> "ssl.SSLContext":
        paths = [os.path.join(self.data_dir, name) for name in ("identity.pem", "bundle.pem")]
        try:
            mark = [os.stat(path).st_mtime_ns for path in paths]
        except OSError as error:
            text = "cannot read %s: %s; restore it or join anew" % (error.filename, error.strerror)
            raise ChannelError("certificate", text) from error
        if self._context is None or mark != self._context_mark:
            credentials = self.parts.credentials()
            try:
                self._context = credentials.client_context(self.data_dir)
            except credentials.EnrollError as error:
                raise ChannelError("certificate", str(error)) from error
            self._context_mark = mark
        return self._context

    def new_session(self, local_address: str) -> Session:
        self._conn += 1
        if local_address and local_address != self.report_builder.address:
            self.report_builder.address = local_address
            self._write([("meta/address", local_address.encode())])
            self.parts.addresses_changed(self.report_builder)
        identity = Identity(self._inc, self._boot, self._conn)
        return Session(self.desired, self.upstream, identity, self._admit, self.journal.get)

    def chance(self) -> float:
        return self.host.chance()

    def logs(self, uid: str, container: str, options: "dict[str, Any]", out: "Any") -> "Any":
        return self.workloads.logs(uid, container, options, out)

    def journal_session(self) -> None:
        session = self.link.session
        writes = [] if session is None else session.writes()
        if session is None or not writes:
            return
        try:
            self.journal.write(writes)
        except JournalFull as error:
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
        if key.split("/")[0] not in ("pod", "configmap", "secret"):
            return ("UnsupportedKind", "this agent knows no documents of kind %r" % key.split("/")[0])
        refusal: "tuple[str, str] | None" = self.workloads.admit(key, body)
        return refusal

    def _set(self, key: str, body: bytes) -> None:
        if key == CONFIG_DOCUMENT:
            # WELCOME carries the interval too, so it matters only for a connection that is open now.
            if self.link.session is not None:
                self.link.session.set_heartbeat(float(json.loads(body).get("heartbeat", 30)))
        else:
            self.workloads.set(key, body)

    def _delete(self, key: str) -> None:
        if key != CONFIG_DOCUMENT:
            self.workloads.delete(key)

    # Reports

    def report(self, kind: str, key: str, body: "dict[str, Any]") -> None:
        """Queues an upstream entry: journalled now, sent once durable."""
        self._write(self.upstream.add(kind, key, body, kind == "node"))
        self._dirty = True
        self.loop.wake(self._keeper)

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
            self._renew_if_due()
            until = self.loop.now() + HOUSEKEEPING_S
            if self.link.live:
                until = min(until, max(self._next_renewal, self.loop.now() + 1.0))
            yield Wait(-1, 0, until)

    # Certificates

    def _renew_if_due(self) -> None:
        now = self.loop.now()
        session = self.link.session
        if session is None or not self.link.live or now < self._next_renewal:
            return
        credentials = self.parts.credentials()
        wall = self.host.wall()
        retry_s = RENEW_RETRY_S
        try:
            left = credentials.renewal_time(self.data_dir, self._renewal_jitter) - wall
            if left > 0:
                # Not all of it at once: the clock may be set meanwhile.
                self._next_renewal = now + min(left, RENEW_CHECK_S)
                return
            retry_s = credentials.renewal_retry_s(self.data_dir, wall)
            self._next_renewal = now + retry_s
            self.log.info("asking for a new certificate")
            self.link.perform(session.renew(credentials.begin_renewal(self.data_dir, self.host.entropy)))
        except (credentials.EnrollError, OSError) as error:
            self._next_renewal = now + retry_s
            self.log.error(
                "the certificate could not be renewed, trying again in %.0f s: %s" % (retry_s, error)
            )

    def _install(self, action: "Renewed | Bundle") -> None:
        credentials = self.parts.credentials()
        try:
            if isinstance(action, Renewed):
                credentials.install_renewed(self.data_dir, action.cert, action.bundle)
                self._next_renewal = 0.0
                self.log.info("the new certificate is installed")
            else:
                credentials.install_bundle(self.data_dir, action.roots)
                self.log.info("the hub's new roots are installed")
        except (credentials.EnrollError, OSError) as error:
            self.log.error("what the hub sent could not be installed: %s" % error)

    # For `edgelite status`

    def write_status(self) -> None:
        """status.json, for people; a failure to write it is nobody's problem."""
        status = {
            "pid": os.getpid(),
            "node": self.membership.node,
            "hub": self.membership.edge,
            "state": self.link.state,
            "detail": self.link.detail,
            "since": self.host.wall(),
            "documents": len(self.desired.versions),
            "refused": sorted(self.desired.refusals),
            "unacknowledged_reports": len(self.upstream),
            "journal_bytes": self.journal.file_bytes,
            "disk": self._disk_failed,
        }
        path = os.path.join(self.data_dir, "status.json")
        try:
            with open(path + ".tmp", "w") as file:
                json.dump(status, file)
            os.replace(path + ".tmp", path)
        except OSError as error:
            self.log.debug("cannot write %s: %s" % (path, error))

    def _remove_status(self) -> None:
        try:
            os.unlink(os.path.join(self.data_dir, "status.json"))
        except OSError as error:
            self.log.debug("cannot remove status.json: %s" % error)

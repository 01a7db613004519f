"""`edgelite diagnose`: what stands between this machine and a node that works, line by line, each ok or with what to do.

Changes nothing, here or at the hub, and sends nothing secret: of a join token the form is checked, and whether the hub has
the root that it names. The node's session is left alone, for no HELLO is sent. Every step has a deadline, so that it ends
without a network too; what cannot be tried because something before it failed is skipped, and says so.

Exit codes: 0 nothing failed; 1 something did; 4 the directory has not joined, and no --hub was given.
"""

import json
import os
import socket
import stat
import sys
import threading
import time

from edgelite import credentials, enroll, jointoken, wire
from edgelite.config import Config, ConfigError, Membership
from edgelite.exits import DONE, FAILED, NOT_JOINED, fail
from edgelite.hubs import split_list
from edgelite.snapshot import Snapshot
from edgelite.statusview import SKEW_S, moment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OK, BAD, SKIPPED = "ok", "failed", "skipped"
STEP_S = 5.0
ADDRESSES_MAX = 4
FREE_BYTES_MIN = 128 << 20
"""The journal's 64 MiB, and as much again while it is written anew."""


class Report:
    """The lines: (check, result, detail)."""

    def __init__(self) -> None:
        self.lines: "list[tuple[str, str, str]]" = []

    def add(self, check: str, result: str, detail: str) -> bool:
        self.lines.append((check, result, detail))
        return result == OK

    @property
    def failed(self) -> bool:
        return any(result == BAD for _, result, _ in self.lines)

    def as_text(self) -> str:
        marks = {OK: "ok    ", BAD: "FAILED", SKIPPED: "-     "}
        return "".join(
            ["%s  %-12s %s\n" % (marks[result], check, text) for check, result, text in self.lines]
        )

    def as_json(self) -> str:
        lines = [{"check": a, "result": b, "detail": c} for a, b, c in self.lines]
        return json.dumps(lines, indent=2) + "\n"


def diagnose(values: "dict[str, Any]") -> int:
    """Prints the report on `data-dir`; before it has joined, on reaching `hub` with `token` ("-": read from standard input).
    The exit code."""
    data_dir, hub, token = values["data-dir"], values["hub"], values["token"]
    if token == "-":  # noqa: S105
        token = sys.stdin.readline(4096).strip()
    report = Report()
    snapshot = _directory(report, data_dir)
    member = snapshot.membership if snapshot is not None else None
    if member is None and not hub and not report.failed:
        return fail(
            "%s has not joined a hub; with --hub HOST:PORT, and --token, this says whether it could"
            % data_dir,
            NOT_JOINED,
        )
    ends = _certificate(report, snapshot) if snapshot is not None and member is not None else 0.0
    _clock(report, snapshot, ends)
    ticket = _token(report, token, member)
    for address in split_list(hub or (member.edge if member is not None else ""))[:ADDRESSES_MAX]:
        _hub(report, data_dir, address, member, ticket, ends)
    _runtime(report, data_dir, snapshot.config if snapshot is not None else Config())
    if snapshot is not None:
        _journal(report, snapshot)
        _agent(report, snapshot)
    sys.stdout.write(report.as_json() if values["output"] == "json" else report.as_text())
    return FAILED if report.failed else DONE


# This machine


def _directory(report: Report, data_dir: str) -> "Snapshot | None":
    try:
        snapshot = Snapshot(data_dir)
        free = _free_bytes(data_dir)
    except FileNotFoundError:
        report.add("directory", SKIPPED, "%s is not there yet: `edgelite join` makes it" % data_dir)
        return None
    except (ConfigError, OSError) as error:
        remedy = "" if isinstance(error, ConfigError) else "; ask as the user that the agent runs as"
        report.add("directory", BAD, "%s%s" % (error, remedy))
        return None
    mode = os.stat(data_dir).st_mode
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        text = "%s is open to other users (mode %o): chmod 700 it" % (data_dir, stat.S_IMODE(mode))
        report.add("directory", BAD, text)
    elif free is not None and free < FREE_BYTES_MIN:
        text = "%d MiB are free at %s, the journal wants %d: make room" % (
            free >> 20,
            data_dir,
            FREE_BYTES_MIN >> 20,
        )
        report.add("directory", BAD, text)
    else:
        report.add(
            "directory", OK, data_dir + ("" if free is None else ", %.1f GiB free" % (free / 1073741824.0))
        )
    return snapshot


def _free_bytes(path: str) -> "int | None":
    """For who is not root; None where the system cannot be asked so."""
    if not hasattr(os, "statvfs"):
        return None
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _certificate(report: Report, snapshot: Snapshot) -> float:
    """When it ends, unix seconds; 0.0 where it cannot be used."""
    try:
        credentials.client_context(snapshot.data_dir)
        leaf = snapshot.certificate()
    except credentials.EnrollError as error:
        report.add("certificate", BAD, str(error))
        return 0.0
    now = time.time()
    if leaf.not_after <= now:
        text = "ended %s: connect it, the hub takes it back for 30 days; else `edgelite join --again`"
        report.add("certificate", BAD, text % moment(leaf.not_after, now))
    else:
        report.add("certificate", OK, "ends %s, %s" % (moment(leaf.not_after, now), "".join(leaf.uris)))
    return float(leaf.not_after)


def _clock(report: Report, snapshot: "Snapshot | None", ends: float) -> None:
    """As far as it can be told without a hub; a handshake may add a line."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    skew = snapshot.status.get("skew_s") if snapshot is not None else None
    begins = snapshot.certificate().not_before if snapshot is not None and ends else 0
    if now < begins:
        text = "%s is before this node's certificate was made (%s): set the clock, or start its time service"
        report.add("clock", BAD, text % (stamp, moment(begins, now)))
    elif isinstance(skew, (int, float)) and abs(skew) > SKEW_S:
        text = "%s was %.0f s %s the hub's when it last connected: set the clock, or start its time service"
        report.add("clock", BAD, text % (stamp, abs(skew), "behind" if skew > 0 else "ahead of"))
    else:
        report.add("clock", OK, stamp)


def _token(report: Report, token: "str | None", member: "Membership | None") -> "jointoken.JoinToken | None":
    if not token:
        text = "none is needed: this is node %s" % member.node if member is not None else "none was given"
        report.add("token", OK if member is not None else SKIPPED, text)
        return None
    try:
        ticket = jointoken.parse(token)
    except jointoken.TokenError as error:
        report.add("token", BAD, "%s; copy it whole" % error)
        return None
    # Whether it has been used or has ended the hub tells at the join alone: it is not sent.
    report.add("token", OK, "well-formed, for %s" % ticket.trust_domain)
    return ticket


def _runtime(report: Report, data_dir: str, config: Config) -> None:
    from edgelite.parts import Parts
    from edgelite.port import this_host

    parts = Parts(data_dir, config, this_host(config.boot_id_file), "")
    engine = parts.engine_socket() if config.runtime != "process" else ""
    if engine:
        report.add("runtime", OK, "container: an engine answers at %s" % engine)
    elif config.runtime == "container":
        where = config.engine_socket or "the usual places"
        text = "no container engine answers at %s: start Podman's or Docker's socket, or see who may use it"
        report.add("runtime", BAD, text % where)
    else:
        report.add("runtime", *_processes(config))


def _processes(config: Config) -> "tuple[str, str]":
    """(result, detail) of the process runtime."""
    import tempfile

    from edgelite.port import this_host

    try:
        this_host(config.boot_id_file).boot_id()
    except OSError as error:
        return (
            BAD,
            "process: the machine's boot id cannot be read (%s): name a file with --boot-id-file" % error,
        )
    if sys.platform == "win32":
        from edgelite.runtimes.windows import probe_limits

        return OK, "process, in job objects with limits of %s" % ", ".join(sorted(probe_limits()))
    if sys.platform == "darwin":
        return OK, "process, in sessions, without limits: macOS has none for a group of processes"
    from edgelite.runtimes.process_config import Host as Programs
    from edgelite.runtimes.process_spawn import probe_namespaces

    programs = Programs()
    for path in (programs.shell, programs.python):
        if not os.access(path, os.X_OK):
            return BAD, "process: %s cannot be executed, and containers are started with it" % (
                path or "python"
            )
    with tempfile.TemporaryDirectory() as scratch:
        namespaces = probe_namespaces(scratch)
    if namespaces == "none":
        return OK, (
            "process, without mount namespaces: pods may not mount at absolute paths; "
            "allow user namespaces (sysctl user.max_user_namespaces) where they have to"
        )
    return OK, "process, with %s namespaces" % namespaces


def _journal(report: Report, snapshot: Snapshot) -> None:
    facts = snapshot.journal_facts()
    if facts.get("trouble"):
        report.add("journal", BAD, facts["trouble"])
    elif snapshot.journal is None:
        report.add("journal", SKIPPED, "there is none before the agent's first start")
    else:
        text = "%.1f MiB, %d documents, %d reports to be sent"
        report.add("journal", OK, text % (facts["bytes"] / 1048576.0, facts["documents"], facts["unsent"]))


def _agent(report: Report, snapshot: Snapshot) -> None:
    if snapshot.membership is None:
        return
    if snapshot.pid is None:
        report.add("agent", BAD, "does not run: `edgelite run`, or the service of `edgelite service status`")
        return
    state = snapshot.status.get("state", "starting")
    detail = snapshot.status.get("detail") or ""
    text = "process %d, %s%s" % (snapshot.pid, state, ": " + detail if detail else "")
    report.add("agent", OK if state in ("connected", "connecting", "handshaking", "starting") else BAD, text)


# The way to the hub


def _hub(
    report: Report,
    data_dir: str,
    text: str,
    member: "Membership | None",
    ticket: "jointoken.JoinToken | None",
    ends: float,
) -> None:
    """One of the hub's addresses: its name, the way there, TLS, and its word."""
    try:
        address = enroll.parse_address(text)
    except enroll.EnrollError as error:
        report.add("name", BAD, str(error))
        return
    if not (_name(report, address) and _route(report, address)):
        report.add("tls", SKIPPED, "%s:%d was not reached" % address)
        return
    deadline = time.monotonic() + STEP_S
    try:
        if member is None and ticket is not None:
            enroll.fetch_root(address, ticket, deadline)
            report.add("tls", OK, "%s:%d has the root that the token names" % address)
        elif member is not None and ends:
            _verified(report, data_dir, address, member, ends, deadline)
        else:
            report.add("tls", SKIPPED, "nothing to check %s:%d by: give a --token" % address)
    except enroll.EnrollError as error:
        report.add("clock" if error.code == "Clock" else "tls", BAD, str(error))


def _verified(
    report: Report,
    data_dir: str,
    address: "tuple[str, int]",
    member: Membership,
    ends: float,
    deadline: float,
) -> None:
    """Both sides' certificates, in the one exchange that needs no session. Raises EnrollError."""
    make = credentials.client_context if ends > time.time() else credentials.anonymous_context
    channel = enroll.connect(address, make(data_dir), member.hub, deadline)
    try:
        enroll.ask(channel, address, wire.BUNDLE, {}, wire.BUNDLE, deadline)
        version = channel.version()
    finally:
        channel.close()
    report.add("tls", OK, "%s:%d is %s, by %s, and answers this node" % (address + (member.hub, version)))


def _name(report: Report, address: "tuple[str, int]") -> bool:
    host = address[0]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
            return report.add("name", OK, "%s is an address" % host)
        except OSError:
            continue
    answer: "list[Any]" = []

    def look_up() -> None:
        try:
            answer.append(
                sorted({a[4][0] for a in socket.getaddrinfo(host, address[1], type=socket.SOCK_STREAM)})
            )
        except (OSError, UnicodeError) as error:
            answer.append(error)

    # A thread that is left behind: getaddrinfo takes as long as the name servers do, and knows no deadline.
    worker = threading.Thread(target=look_up, daemon=True)
    worker.start()
    worker.join(STEP_S)
    if not answer:
        text = "no name server has answered for %s within %g s: check the network, and the name servers in %s"
        return report.add("name", BAD, text % (host, STEP_S, "/etc/resolv.conf"))
    if isinstance(answer[0], Exception):
        text = "cannot resolve %s: %s; check the name, the network, and the name servers in /etc/resolv.conf"
        return report.add("name", BAD, text % (host, answer[0]))
    return report.add("name", OK, "%s is %s" % (host, ", ".join(answer[0][:ADDRESSES_MAX])))


def _route(report: Report, address: "tuple[str, int]") -> bool:
    where = "%s:%d" % address
    try:
        with socket.create_connection(address, timeout=STEP_S) as channel:
            return report.add("route", OK, "%s answers, from %s" % (where, channel.getsockname()[0]))
    except ConnectionRefusedError:
        text = "%s is reached, but nobody listens there: is the hub up, and is that its edge port?" % where
    except socket.timeout:
        text = "%s has not answered within %g s: a firewall in between, or the wrong address" % (
            where,
            STEP_S,
        )
    except OSError as error:
        text = "no way to %s: %s; check cable or radio, address and default route" % (where, error)
    return report.add("route", BAD, text)

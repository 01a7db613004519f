"""`edgelite status`: how this node is, for the person who stands beside it. Needs no network, and no running agent.

Exit codes: 0 connected; 5 the agent runs without a connection; 6 no agent runs; 4 it has not joined; 1 it cannot be read.
"""

import json
import sys
import time

from edgelite import __version__
from edgelite.config import ConfigError
from edgelite.credentials import EnrollError
from edgelite.exits import AWAY, DONE, FAILED, NOT_JOINED, STOPPED, USAGE, fail
from edgelite.snapshot import Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SKEW_S = 60.0
"""A clock that is this far off is worth a word."""
EXPIRES_SOON_S = 2 * 86400.0


def status(values: "dict[str, Any]") -> int:
    """Prints the status of `data-dir` as text, or with `output` json as one JSON object; the exit code."""
    data_dir = values["data-dir"]
    try:
        snapshot = Snapshot(data_dir)
    except FileNotFoundError:
        return fail("%s has not joined a hub: there is no such directory" % data_dir, NOT_JOINED)
    except ConfigError as error:
        return fail(str(error), USAGE)
    except OSError as error:
        return fail(
            "cannot read %s: %s; ask as the user that the agent runs as" % (data_dir, error.strerror), FAILED
        )
    if snapshot.membership is None:
        return fail("%s has not joined a hub" % data_dir, NOT_JOINED)
    shown = described(snapshot, time.time())
    text = json.dumps(shown, indent=2) + "\n" if values["output"] == "json" else as_text(shown, time.time())
    sys.stdout.write(text)
    if snapshot.pid is None:
        return STOPPED
    return DONE if shown["state"] == "connected" else AWAY


def described(snapshot: Snapshot, now: float) -> "dict[str, Any]":
    """What is shown, as JSON has it. Times are unix seconds, 0 or null where they are not known."""
    membership, said = snapshot.membership, snapshot.status
    assert membership is not None
    running = snapshot.pid is not None
    journal = snapshot.journal_facts()
    shown: "dict[str, Any]" = {
        "edgelite": __version__,
        "agent": str(said.get("version", "")),
        "update": said.get("update"),
        "node": membership.node,
        "hub": membership.edge,
        "state": str(said.get("state", "starting")) if running else "not running",
        "detail": str(said.get("detail", "")) if running else "",
        "since": said.get("since", 0),
        "pid": snapshot.pid,
        "runtime": said.get("runtime", snapshot.config.runtime),
        "synced": said.get("synced", 0),
        "documents": journal.get("documents", 0),
        "refused": said.get("refused", []),
        "unacknowledged_reports": journal.get("unsent", 0),
        "journal": journal,
        "disk": said.get("disk", "") if running else "",
        "conditions": snapshot.conditions(),
        "pods": snapshot.pods(),
        "clock": {"now": now, "skew_s": said.get("skew_s")},
    }
    try:
        leaf = snapshot.certificate()
        shown["certificate"] = {"from": leaf.not_before, "until": leaf.not_after, "id": "".join(leaf.uris)}
    except EnrollError as error:
        shown["certificate"] = {"trouble": str(error)}
    if snapshot.status_trouble:
        shown["detail"] = "its status file cannot be read: " + snapshot.status_trouble
    return shown


def as_text(shown: "dict[str, Any]", now: float) -> str:
    """The same for people."""
    lines = [
        (
            "node",
            "%s, edgelite %s, runtime %s"
            % (shown["node"], shown["agent"] or shown["edgelite"], shown["runtime"]),
        ),
        ("link", _link(shown, now)),
        ("last sync", moment(shown["synced"], now) if shown["synced"] else "not known"),
        ("workloads", _workloads(shown["pods"])),
        ("journal", _journal(shown)),
        ("certificate", _certificate(shown["certificate"], now)),
        ("clock", _clock(shown, now)),
    ]
    if shown["update"]:
        lines.append(("release", _release(shown)))
    if shown["refused"]:
        lines.append(("refused", ", ".join(shown["refused"])))
    for condition in shown["conditions"]:
        lines.append(
            ("condition", "%s: %s: %s" % (condition["type"], condition["reason"], condition["message"]))
        )
    out = ["%-12s %s" % line for line in lines]
    return "\n".join(out + _pods(shown["pods"])) + "\n"


def moment(at: float, now: float) -> str:
    """ "2026-11-21 14:31:09 UTC (5 min ago)" """
    stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
    return "%s (%s)" % (stamp, "in " + span(at - now) if at > now else span(now - at) + " ago")


def span(seconds: float) -> str:
    """A duration in one or two words."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return "%d %s" % (seconds / size, unit)
    return "%d s" % seconds


def _link(shown: "dict[str, Any]", now: float) -> str:
    if shown["pid"] is None:
        return "no agent runs; `edgelite run` starts it. Workloads that it left go on"
    since = " for " + span(max(0.0, now - shown["since"])) if shown["since"] else ""
    return "%s%s, hub %s%s" % (
        shown["state"],
        since,
        shown["hub"],
        "; " + shown["detail"] if shown["detail"] else "",
    )


def _release(shown: "dict[str, Any]") -> str:
    """Which of the releases on this node runs, and what became of the last update."""
    update, last = shown["update"], shown["update"].get("last")
    where = "as installed" if update["slot"] == "base" else "from slot %s" % update["slot"]
    text = "%s %s%s" % (shown["agent"], where, ", on trial" if update["trial"] else "")
    if not last:
        return text
    return "%s; update to %s: %s: %s" % (text, last["version"], last["reason"], last["message"])


def _workloads(pods: "list[dict[str, Any]]") -> str:
    counts: "dict[str, int]" = {}
    for pod in pods:
        counts[pod["phase"]] = counts.get(pod["phase"], 0) + 1
    return ", ".join(["%d %s" % (counts[phase], phase) for phase in sorted(counts)]) or "none"


def _journal(shown: "dict[str, Any]") -> str:
    journal = shown["journal"]
    if "bytes" not in journal:
        return "cannot be read: %s" % journal["trouble"]
    text = "%.1f of %d MiB, %d documents, %d reports to be sent" % (
        journal["bytes"] / 1048576.0,
        journal.get("bytes_max", 0) >> 20,
        shown["documents"],
        shown["unacknowledged_reports"],
    )
    trouble = shown["disk"] or journal.get("trouble", "")
    return text + "; " + trouble if trouble else text


def _certificate(found: "dict[str, Any]", now: float) -> str:
    if "trouble" in found:
        return str(found["trouble"])
    if found["until"] <= now:
        return "ended %s; the agent asks the hub to take the node back" % moment(found["until"], now)
    text = "ends %s" % moment(found["until"], now)
    return (
        text + ", and is renewed when there is a connection"
        if found["until"] - now < EXPIRES_SOON_S
        else text
    )


def _clock(shown: "dict[str, Any]", now: float) -> str:
    skew, stamp = shown["clock"]["skew_s"], time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < shown["certificate"].get("from", 0):
        return "%s, which is before this node's certificate was made: set it" % stamp
    if skew is None:
        return "%s; not compared with a hub since the agent was started" % stamp
    text = "%s, %.1f s %s the hub's" % (stamp, abs(skew), "behind" if skew > 0 else "ahead of")
    return text + ": set it" if abs(skew) > SKEW_S else text


def _pods(pods: "list[dict[str, Any]]") -> "list[str]":
    lines = [""] if pods else []
    for pod in pods:
        why = ": ".join([part for part in (pod["reason"], pod["message"]) if part])
        lines.append(
            "  %s/%s  %s%s" % (pod["namespace"], pod["name"], pod["phase"], "  " + why if why else "")
        )
        for one in pod["containers"]:
            lines.append(
                "    %s  %s%s%s%s"
                % (
                    one["name"],
                    one["state"],
                    ", ready" if one["ready"] else "",
                    ", %d restarts" % one["restarts"] if one["restarts"] else "",
                    ", " + one["reason"] if one["reason"] else "",
                )
            )
    return lines

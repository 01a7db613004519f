"""What a simulation came to: one JSON document, and the same as a table."""

import os
import platform
from collections.abc import Mapping
from typing import Any, Final

from edgelite import __version__
from hub.simulate.crew import Outcome
from hub.simulate.figures import Tally
from hub.simulate.node import STATES, SYNCED
from hub.simulate.settings import Settings

VERSION: Final = 1
"""Of the document's form."""
KNOWN_TIMES: Final = {
    "welcomed": "TCP, TLS and HELLO to WELCOME",
    "synced": "until synchronised",
    "heartbeat": "heartbeat to its answer",
    "lag": "simulator: moment late by",
}


def machine() -> dict[str, Any]:
    """Where the simulator ran."""
    model = "unknown"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    model = line.partition(":")[2].strip()
                    break
    except OSError:
        pass  # not Linux; the figures stand without it
    return {
        "cpus": os.cpu_count(),
        "cpu": model,
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


def document(
    settings: Settings, outcome: Outcome, load: Tally, notes: list[str], ended: str, phases: Mapping[str, Any]
) -> dict[str, Any]:
    """The report. Times are seconds; `ended`: why the run was over; `phases`: what each took."""
    brief = outcome.brief
    times = {**outcome.tally.times, **{f"api: {name}": h for name, h in load.times.items()}}
    return {
        "simulation": VERSION,
        "cloudhub": __version__,
        "ended": ended,
        "machine": machine(),
        "settings": settings.as_json(),
        "phases": dict(phases),
        "nodes": {
            "wanted": settings.nodes,
            "synced": brief.synced,
            **{state: brief.states[state] for state in STATES if brief.states[state] and state != SYNCED},
        },
        "counts": dict(sorted({**outcome.tally.counts, **load.counts}.items())),
        "seconds": {name: histogram.summary() for name, histogram in sorted(times.items())},
        "simulator": {
            "processes": settings.processes,
            "cpu_seconds": outcome.cpu_s,
            "rss_mib": outcome.rss_kb / 1024,
        },
        "notes": [*outcome.notes, *notes],
    }


def table(report: Mapping[str, Any]) -> str:
    """For people."""
    nodes, settings, simulator = report["nodes"], report["settings"], report["simulator"]
    others = ", ".join(f"{n} {state}" for state, n in nodes.items() if state not in ("wanted", "synced"))
    lines = [
        f"{nodes['synced']} of {nodes['wanted']} nodes synchronised{f' ({others})' if others else ''}; ended: {report['ended']}",
    ]
    lines += [f"{name}: {_phase(phase)}" for name, phase in report["phases"].items()]
    rows: list[tuple[str, ...]] = [("SECONDS", "COUNT", "MEAN", "P50", "P90", "P99", "MAX")]
    for name, s in report["seconds"].items():
        figures = (_seconds(s[key]) for key in ("mean", "p50", "p90", "p99", "max"))
        rows.append((KNOWN_TIMES.get(name, name), str(s["count"]), *figures))
    lines += ["", *_aligned(rows)]
    rows = [("COUNT", "")]
    rows += [(name, str(count)) for name, count in report["counts"].items()]
    lines += ["", *_aligned(rows)]
    lines += [
        "",
        f"simulator: {simulator['processes']} processes, {simulator['cpu_seconds']:.1f} s of CPU, "
        f"{simulator['rss_mib']:.0f} MiB; {settings['hub']}; load {report['machine']['load']} on "
        f"{report['machine']['cpus']} x {report['machine']['cpu']}",
    ]
    if report["notes"]:
        lines += ["", "notes:", *(f"  {note}" for note in report["notes"])]
    return "\n".join(lines)


def _phase(phase: Mapping[str, Any]) -> str:
    took = f"{phase['done']} in {phase['seconds']:.2f} s"
    return f"{took}, {phase['done'] / phase['seconds']:.0f}/s" if phase["seconds"] else took


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 10 else f"{value:.4f}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "   ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]

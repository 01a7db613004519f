"""How benches print: one JSON object a line, {"bench", "metric", "value", "unit"} and, where there are such, "target" and what
"kubeedge" needs for the same, on the same kind of machine."""

import json
import os
import platform

import psutil


def emit(
    bench: str, metric: str, value: float | str, unit: str, target: float | None = None, kubeedge: str = ""
) -> None:
    line: dict[str, float | str] = {
        "bench": bench,
        "metric": metric,
        "value": round(value, 2) if isinstance(value, float) else value,
        "unit": unit,
    }
    if target is not None:
        line["target"] = target
    if kubeedge:
        line["kubeedge"] = kubeedge
    print(json.dumps(line), flush=True)


def machine() -> None:
    """What the figures were measured on."""
    model = "unknown"
    with open("/proc/cpuinfo") as f:
        for row in f:
            if row.startswith("model name"):
                model = row.split(":", 1)[1].strip()
                break
    emit("machine", "cpu", f"{os.cpu_count()} x {model}", "")
    emit("machine", "memory", psutil.virtual_memory().total / 2**30, "GiB")
    emit("machine", "system", f"Linux {platform.release()}, Python {platform.python_version()}", "")


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0..1) of the sorted `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

"""Times and how long ago they were, as kubectl writes them. [pure]"""

from __future__ import annotations

from datetime import UTC, datetime


def human_duration(seconds: float) -> str:
    """`35s`, `5m10s`, `3h`, `2d4h`, `1y30d`: two units where they tell something, as kubectl does."""
    s = int(seconds)
    if s < -1:
        return "<invalid>"
    if s < 0:
        return "0s"
    minutes, hours = s // 60, s // 3600
    days = hours // 24
    if s < 120:
        return f"{s}s"
    if minutes < 10:
        return _two(minutes, "m", s % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    years = days // 365
    return _two(years, "y", days % 365, "d") if years < 8 else f"{years}y"


def _two(big: int, big_unit: str, small: int, small_unit: str) -> str:
    return f"{big}{big_unit}{small}{small_unit}" if small else f"{big}{big_unit}"


def unix(timestamp: str) -> float | None:
    """RFC 3339 as unix seconds, None if it is empty or not a time."""
    try:
        return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def rfc3339_micro(seconds: float) -> str:
    """Unix seconds as Kubernetes' MicroTime."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

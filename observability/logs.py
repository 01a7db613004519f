"""Logs: one JSON object a line on stderr, or readable text on a terminal. No secret is ever passed to a logger.

What a line is about goes beside its text, by the names of `about`, so that it can be searched for.
"""

import json
import logging
import sys
import time
from typing import Any, TextIO

from observability.tracing import CURRENT

_LEVELS = {"WARNING": "warn"}


def about(*, node: str | None = None, slot: int | None = None) -> dict[str, Any]:
    """For `extra=` of a line: the node and the slot that it is about."""
    fields: dict[str, Any] = {}
    if node is not None:
        fields["node"] = node
    if slot is not None:
        fields["slot"] = slot
    return {"fields": fields}


class JsonFormatter(logging.Formatter):
    """{"ts","level","logger","msg"}, the replica where there is one, the trace of the request that is being served, and
    whatever was passed as extra={"fields": {...}}."""

    def __init__(self, replica: str = "") -> None:
        super().__init__()
        self._replica = replica

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": _LEVELS.get(record.levelname, record.levelname.lower()),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if self._replica:
            line["replica"] = self._replica
        if (span := CURRENT.get()) is not None:
            line["trace_id"], line["span_id"] = span.context
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str, style: str, stream: TextIO = sys.stderr, replica: str = "") -> None:
    """`level`: debug, info, warning or error. `style`: json, text, or auto (text on a terminal). `replica`: who writes."""
    handler = logging.StreamHandler(stream)
    if style == "json" or (style == "auto" and not stream.isatty()):
        handler.setFormatter(JsonFormatter(replica))
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
        )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))

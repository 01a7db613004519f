"""Logs: one JSON object a line on stderr, or readable text on a terminal. No secret is ever passed to a logger."""

import json
import logging
import sys
import time
from typing import Any, TextIO

_LEVELS = {"WARNING": "warn"}


class JsonFormatter(logging.Formatter):
    """{"ts","level","logger","msg"} and whatever was passed as extra={"fields": {...}}."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": _LEVELS.get(record.levelname, record.levelname.lower()),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str, style: str, stream: TextIO = sys.stderr) -> None:
    """`level`: debug, info, warning or error. `style`: json, text, or auto (text on a terminal)."""
    handler = logging.StreamHandler(stream)
    if style == "json" or (style == "auto" and not stream.isatty()):
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
        )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))

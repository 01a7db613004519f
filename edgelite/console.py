"""The agent's own log: one line per entry to stderr, JSON unless a terminal reads it.

A line that repeats within REPEAT_S is counted instead of written. A log that cannot be written to is no reason to stop:
such lines are lost, and counted in `lost`.
"""

import json
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
REPEAT_S = 10.0


class Log:
    """level: the least that is written; stream: a text stream, stderr by default."""

    def __init__(self, level: str = "info", stream: "Any" = None) -> None:
        self._least = LEVELS[level]
        self._stream = sys.stderr if stream is None else stream
        self._json = not self._stream.isatty()
        self._copy: "Any" = None
        self._last = ""
        self._last_at = 0.0
        self._repeats = 0
        self.lost = 0

    def copy_to(self, stream: "Any") -> None:
        """Another text stream that gets every line as JSON from now on."""
        self._copy = stream

    def debug(self, message: str, **fields: "Any") -> None:
        self._line("debug", message, fields)

    def info(self, message: str, **fields: "Any") -> None:
        self._line("info", message, fields)

    def warning(self, message: str, **fields: "Any") -> None:
        self._line("warning", message, fields)

    def error(self, message: str, **fields: "Any") -> None:
        self._line("error", message, fields)

    def _line(self, level: str, message: str, fields: "dict[str, Any]") -> None:
        if LEVELS[level] < self._least:
            return
        now = time.time()
        if message == self._last and now - self._last_at < REPEAT_S:
            self._repeats += 1
            return
        if self._repeats:
            fields = dict(fields, previous_line_repeated=self._repeats)
        self._last, self._last_at, self._repeats = message, now, 0
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + ".%03dZ" % (now * 1000 % 1000)
        entry = {"time": stamp, "level": level, "message": message}
        entry.update(fields)
        whole = json.dumps(entry) + "\n"
        text = whole
        if not self._json:
            more = "".join([" %s=%s" % (k, v) for k, v in fields.items()])
            text = "%s %-7s %s%s\n" % (stamp, level, message, more)
        self._put(self._stream, text)
        if self._copy is not None:
            self._put(self._copy, whole)

    def _put(self, stream: "Any", text: str) -> None:
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):
            self.lost += 1

"""A line that says how far a simulation is: rewritten in place on a terminal, else a new one now and then."""

import sys
import time
from typing import Final, TextIO

from hub.simulate.crew import Brief
from hub.simulate.node import OPENING, SYNCING, WAITING

EVERY_S: Final = 10.0
"""Where it is no terminal: a log."""


class Progress:
    """Writes to standard error unless told otherwise. `quiet`: nothing."""

    def __init__(self, quiet: bool = False, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._quiet = quiet
        self._is_terminal = self._out.isatty()
        self._began = time.monotonic()
        self._said_at = -EVERY_S
        self._wide = False

    def say(self, text: str, last: bool = False) -> None:
        """The state of things; `last` of its kind: it is shown in any case, and stays."""
        now = time.monotonic()
        if self._quiet or not (self._is_terminal or last or now >= self._said_at + EVERY_S):
            return
        self._said_at = now
        line = f"{now - self._began:6.0f} s  {text}"
        if self._is_terminal:
            self._out.write(f"\r\x1b[K{line[:160]}" + ("\n" if last else ""))
            self._wide = not last
        else:
            self._out.write(line + "\n")
        self._out.flush()

    def fleet(self, phase: str, wanted: int, brief: Brief, last: bool = False) -> None:
        """How the nodes are."""
        states, counts = brief.states, brief.counts
        opening = sum(states[state] for state in OPENING)
        text = f"{phase}: {brief.synced:,} of {wanted:,} synced"
        for count, word in (
            (opening, "connecting"),
            (states[WAITING], "waiting"),
            (states[SYNCING], "syncing"),
        ):
            if count:
                text += f", {count:,} {word}"
        for state in ("held", "refused"):
            if states[state]:
                text += f", {states[state]:,} {state}"
        text += f"; {counts['documents']:,} documents, {counts['reports stored']:,} reports stored"
        self.say(text, last)

    def end(self) -> None:
        """Leaves the line as it is; whatever is written next begins a new one."""
        if self._wide:
            self._out.write("\n")
            self._out.flush()
            self._wide = False

"""What a long run has done, kept over an interruption: each step with its figures, in one file of its directory.

A step is written down when it is whole; one that was cut off is done again, or goes on by itself where it can.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Steps:
    """Of the run in `directory`, which is made (0700)."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self._path = directory / "steps.json"
        self.done: dict[str, dict[str, Any]] = (
            json.loads(self._path.read_text()) if self._path.exists() else {}
        )
        self.earlier = frozenset(self.done)
        """Steps that an earlier run did."""

    def finish(self, name: str, figures: dict[str, Any]) -> None:
        """The step is whole."""
        self.done[name] = figures
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.done, indent=1) + "\n")
        os.replace(part, self._path)

    def forget(self, name: str) -> None:
        """It has to be done again."""
        self.done.pop(name, None)

    @contextmanager
    def step(self, name: str, **figures: Any) -> Iterator[dict[str, Any] | None]:
        """Gives a place for figures, None where the step was done before; takes its time, and writes it down when it ends
        well."""
        if name in self.done:
            say(f"{name}: done before")
            yield None
            return
        say(f"{name} ...")
        began, found = time.monotonic(), dict(figures)
        yield found
        found["seconds"] = round(time.monotonic() - began, 3)
        self.finish(name, found)
        say(f"{name}: {found}")


def counting(what: str, whole: int, every: int) -> Callable[[int], None]:
    """Takes how many of `whole` are done, and says so when `every` more are."""
    said = 0

    def progress(count: int) -> None:
        nonlocal said
        if count >= said + every:
            said = count
            say(f"{what}: {count:,} of {whole:,}")

    return progress


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

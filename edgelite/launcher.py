"""Decides at every start which release of the agent runs: the installed one (the base), or one that was fetched into a slot.

Runs before anything else of the agent, as the installed release, which no update touches: so whatever a fetched one does, this comes
first at the next start. A release that was found to work takes this process' place. One on trial runs as a child, at most until its
deadline, and this process waits for it: when it crashes, hangs or does not reach the hub, what ran before is started again, with the
reason in the record. Where this process is killed meanwhile, an alarm of the kernel's ends a trial that hangs.

The release is `SLOT run --data-dir ..`, by the same interpreter. Two variables of the environment go with it, and no further
(`edgelite.resident` takes them out): EDGELITE_BASE, the path of the base, and EDGELITE_SLOT, `trial` or `good`. On Windows, where no
process takes another one's place, every release of a slot is a child (`edgelite.winlauncher`), and needs no EDGELITE_BASE. The one-file
executable is the interpreter of its slots' archives too (`edgelite/release/executable_entry.py`), and its own base.
"""

import os
import signal
import sys
import time

from edgelite import __version__
from edgelite.config import PidFile
from edgelite.exits import DONE, FAILED, RESTART
from edgelite.updatestore import FOLDER, UpdateFiles, UpdateStore, choose, ended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SLOT = "EDGELITE_SLOT"
TRIAL = "trial"
GOOD = "good"
ALARM_EXTRA_S = 30
FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")


def launch(
    data_dir: str,
    arguments: "list[str]",
    files: "Callable[[], UpdateFiles]" = UpdateFiles,
    child: "Callable[[list[str], str, int], tuple[int, bool]] | None" = None,
) -> "int | None":
    """Starts the release that should run on this directory, with these arguments of `edgelite`. Does not return where it has become that
    release; None: this very release should run, now; else the exit code of a trial that was stopped.

    child: runs a release where this process cannot become it: (command, TRIAL or GOOD, deadline in seconds, 0 for none) to (exit code, was
    it ended because its time was over?). Of one that is kept its exit code is returned then, RESTART too."""
    folder = os.path.join(data_dir, FOLDER)
    if not os.path.isdir(folder):
        return None
    if PidFile(data_dir).holder() is not None:
        return None  # which then says so
    try:
        store = UpdateStore(files(), folder)
    except OSError as error:
        _say("cannot read which release should run (%s): the installed one does" % error)
        return None
    while True:
        choice, on_trial = choose(store, __version__, _say)
        if choice is None:
            return None
        command = [sys.executable, "-I", "-S", store.path(choice["slot"])] + arguments
        if not on_trial and child is not None:
            return child(command, GOOD, 0)[0]
        if not on_trial:
            os.environ[SLOT] = GOOD
            os.execv(sys.executable, command)  # noqa: S606
        _say("release %s is on trial, for %d s at most" % (choice["version"], choice["deadline"]))
        code, late = (child or _run)(command, TRIAL, choice["deadline"])
        if code not in (DONE, RESTART) and not late:
            _say("release %s ended with %d" % (choice["version"], code))
        try:
            if ended(store, code, late):
                return code
        except (
            OSError
        ) as error:  # a full disk: what worked runs, and the start that was counted is remembered
            _say("cannot note how the trial has ended: %s" % error)


def _run(command: "list[str]", slot: str, deadline_s: int) -> "tuple[int, bool]":
    """(exit code, was it killed because its time was over?)"""
    import subprocess

    environment = dict(os.environ)
    environment[SLOT] = slot
    stopped: "list[int]" = []
    children: "list[Any]" = []

    def forward(number: int, frame: "Any") -> None:
        stopped.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    # Before there is a child: a signal that comes in between must neither end us nor be lost.
    before = [(name, signal.signal(getattr(signal, name), forward)) for name in FORWARDED]
    try:
        until = time.monotonic() + deadline_s
        # An alarm outlives the exec, and ends whoever does not switch it off.
        child = subprocess.Popen(
            command, env=environment, preexec_fn=lambda: signal.alarm(deadline_s + ALARM_EXTRA_S)
        )
        children.append(child)
        for number in stopped:
            child.send_signal(number)
        try:
            code = child.wait(until - time.monotonic())
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait(), True
        # Ended by a signal that somebody sent to us: that is no crash.
        return (0 if stopped and code < 0 and -code in stopped else code), code == -signal.SIGALRM
    finally:
        for name, handler in before:
            signal.signal(getattr(signal, name), handler)


def again(base: str, arguments: "list[str]") -> int:
    """Becomes the launcher again, of the base at this path; FAILED where that cannot be."""
    program = [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-I", "-S", base]
    try:
        os.execv(sys.executable, program + arguments)  # noqa: S606
    except OSError as error:
        _say("cannot start %s again: %s" % (base, error))
    return FAILED


def _say(text: str) -> None:
    sys.stderr.write("edgelite: %s\n" % text)
    sys.stderr.flush()

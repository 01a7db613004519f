"""`edgelite service`: the agent as a service of this system, which starts it at boot and again after a crash.

systemd, launchd and Windows each have a file of their own: what they are told there is text or a table, and is the same on
every machine that asks; this one carries it out. Only for who may install services: root, or an administrator.

Exit codes: 0 done, or of `service status` that it runs; 1 failed; 4 the directory has not joined; 6 of `service status` that it
does not run, or is not installed.
"""

import os
import subprocess
import sys

from edgelite.config import ConfigError, load_membership
from edgelite.exits import DONE, FAILED, NOT_JOINED, STOPPED, USAGE, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "edgelite"
TOOL_S = 60.0


class ServiceError(Exception):
    """The service cannot be installed, removed or asked; the message says why and what to do."""


def install(values: "dict[str, Any]") -> int:
    """Installs the service for `data-dir` under `user`, starts it, and has it started at every boot; again after a change is
    fine. The exit code."""
    data_dir = values["data-dir"]
    try:
        if load_membership(data_dir) is None:
            return fail(
                "%s has not joined a hub: `edgelite join --no-run --data-dir %s ...` first"
                % (data_dir, data_dir),
                NOT_JOINED,
            )
        said = _system().install(program(), data_dir, values["user"])
    except ConfigError as error:
        return fail(str(error), USAGE)
    except (ServiceError, OSError) as error:
        return fail("cannot install the service: %s" % error, FAILED)
    sys.stdout.write(said + "\n")
    return DONE


def remove(values: "dict[str, Any]") -> int:
    """Stops the agent and removes the service; the data directory stays, and workloads go on. The exit code."""
    try:
        said = _system().remove()
    except (ServiceError, OSError) as error:
        return fail("cannot remove the service: %s" % error, FAILED)
    sys.stdout.write(said + "\n")
    return DONE


def status(values: "dict[str, Any]") -> int:
    """Prints whether the service is installed and runs. The exit code."""
    try:
        runs, said = _system().status()
    except (ServiceError, OSError) as error:
        return fail("cannot ask for the service: %s" % error, FAILED)
    sys.stdout.write(said + "\n")
    return DONE if runs else STOPPED


def program() -> "list[str]":
    """What starts this very edgelite: the argument vector before `run`. Absolute, so that it holds for a service."""
    executable = os.path.abspath(sys.executable)
    if getattr(sys, "frozen", False):
        return [executable]
    archive = getattr(globals()["__loader__"], "archive", "")
    if archive:
        return [executable, archive]
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.basename(home) in ("site-packages", "dist-packages"):
        return [executable, "-m", "edgelite"]
    return [executable, os.path.join(home, "edgelite", "__main__.py")]


def tool(*command: str) -> str:
    """Runs a tool of this system; what it printed. Raises ServiceError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TOOL_S, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise ServiceError("%s is not there: this is no machine with that kind of services" % command[0])
    except subprocess.TimeoutExpired:
        raise ServiceError("`%s` has not ended within %g s" % (" ".join(command), TOOL_S))
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ServiceError("`%s` failed (%d): %s" % (" ".join(command), done.returncode, said))
    return done.stdout


def need_root() -> None:
    """Raises ServiceError."""
    if os.geteuid() != 0:
        raise ServiceError("only root may do this: run it with sudo")


def plain(text: str) -> str:
    """`text`, where it needs no quoting in any file of settings. Raises ServiceError."""
    if not text or not all(c.isalnum() or c in "/._+@:=-\\ " for c in text) or text != text.strip():
        raise ServiceError("%r has characters that a service's settings cannot hold: use another path" % text)
    return text


def _system() -> "Any":
    """The module for this system's services. Raises ServiceError."""
    if sys.platform == "win32":
        from edgelite import winservice

        return winservice
    if sys.platform == "darwin":
        from edgelite import launchd

        return launchd
    if not os.path.isdir("/run/systemd/system"):
        raise ServiceError(
            "systemd does not run here: have your init system start `%s run`, and start it again when it ends"
            % " ".join(program())
        )
    from edgelite import systemd

    return systemd

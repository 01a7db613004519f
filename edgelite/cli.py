"""The `edgelite` command: join, run, stop, status.

`join` and `run` end in the resident agent, which replaces this process (same process id) by a slim interpreter: no site
packages, nothing of what joining needed.

Exit codes: 0 done; 1 failed; 2 wrong usage or settings; 3 the data directory is in use; 4 it has not joined.
Signals of the agent: SIGTERM and SIGINT stop it, workloads go on; SIGUSR1 stops the workloads gracefully and then the
agent; SIGHUP connects now instead of at the end of a back-off.
"""

import os
import sys

from edgelite import __version__
from edgelite.options import Command, Option, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FAILED = 1
USAGE = 2
IN_USE = 3
NOT_JOINED = 4
STOP_TIMEOUT_S = 15.0
DRAIN_TIMEOUT_S = 600.0

_DATA_DIR = Option(
    "data-dir",
    "DIR",
    "where the agent keeps its identity and journal; created with mode 0700",
    default="/var/lib/edgelite as root, else $XDG_STATE_HOME/edgelite",
)
COMMANDS = [
    Command(
        "join",
        "enrols this machine with a hub, then runs the agent",
        [
            Option("hub", "HOST:PORT", "the hub's edge address", required=True),
            Option("token", "TOKEN", "a join token from `cloudhub token create`", required=True),
            _DATA_DIR,
            Option("name", "NAME", "the node's name; only with a pool token", default="chosen by the token"),
            Option("runtime", "auto|process|container", "what runs the workloads", default="auto"),
            Option("label", "KEY=VALUE", "a label of the Node; may be repeated", kind="list"),
            Option(
                "allow-privileged",
                "",
                "admit pods that want root, hostPath or the host's network",
                kind="flag",
            ),
            Option("allow-secret-files", "", "keep Secrets in files where there is no tmpfs", kind="flag"),
            Option("engine-socket", "PATH", "the container engine's unix socket", default="the usual places"),
            Option("pods-max", "N", "pods that this node offers, 1 to 256", default="110"),
            Option("boot-id-file", "PATH", "where the machine's boot id is read", default="the kernel's"),
            Option("log-level", "LEVEL", "debug, info, warning or error", default="info"),
        ],
    ),
    Command(
        "run",
        "runs the agent of a directory that has joined",
        [_DATA_DIR, Option("log-level", "LEVEL", "debug, info, warning or error", default="as joined")],
    ),
    Command(
        "stop",
        "stops the agent; its workloads go on unless --workloads is given",
        [
            _DATA_DIR,
            Option("workloads", "", "stop the workloads too, each within its grace period", kind="flag"),
            Option("timeout", "SECONDS", "how long to wait", default="15, with --workloads 600"),
        ],
    ),
    Command(
        "status",
        "shows what the agent of this directory does",
        [_DATA_DIR],
    ),
]


def main(arguments: "list[str] | None" = None) -> int:
    """Runs one command; the exit code. `join` and `run` do not return where the process can be replaced."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0 if words else USAGE
    if words[0] in ("--version", "version"):
        sys.stdout.write("edgelite %s\n" % __version__)
        return 0
    command = None
    for candidate in COMMANDS:
        if candidate.name == words[0]:
            command = candidate
    if command is None:
        return _fail("there is no command %r; `edgelite --help` names them all" % words[0], USAGE)
    if "-h" in words[1:] or "--help" in words[1:]:
        sys.stdout.write(command.usage("edgelite"))
        return 0
    try:
        values = _clean(command, command.parse(words[1:]))
    except UsageError as error:
        return _fail("%s\nTry: edgelite %s --help" % (error, command.name), USAGE)
    from edgelite import commands

    run = {
        "join": commands.join,
        "run": commands.run,
        "stop": commands.stop,
        "status": commands.status,
    }
    return run[command.name](values)


def resident(data_dir: str, mode: str, log_level: str) -> int:
    """The agent itself, in this process. mode: run, or drain (stop all workloads without a connection)."""
    import gc

    from edgelite.commands import run_agent

    gc.set_threshold(200, 5, 5)  # garbage of a session is collected before it costs resident memory
    return run_agent(data_dir, mode, log_level)


def default_data_dir() -> str:
    if os.geteuid() == 0:
        return "/var/lib/edgelite"
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local/state")
    return os.path.join(state, "edgelite")


def _clean(command: Command, values: "dict[str, Any]") -> "dict[str, Any]":
    """Replaces defaults that are prose by None, and the data directory by an absolute path."""
    for option in command.options:
        if option.kind == "text" and values[option.name] == option.default:
            values[option.name] = None
    values["data-dir"] = os.path.abspath(values["data-dir"] or default_data_dir())
    return values


def _overview() -> str:
    lines = ["edgelite %s: the agent of a CloudHub edge node" % __version__, ""]
    for command in COMMANDS:
        lines.append("  edgelite %-8s %s" % (command.name, command.help))
    lines.append("")
    lines.append(
        "`edgelite COMMAND --help` explains the options of one, `edgelite --version` names the release."
    )
    return "\n".join(lines) + "\n"


def _fail(message: str, code: int) -> int:
    sys.stderr.write("edgelite: %s\n" % message)
    return code

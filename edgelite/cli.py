"""The `edgelite` command: join, run, stop, and for the person at the device status, logs, diagnose.

`join` and `run` end in the resident agent, which replaces this process (same process id) by a slim interpreter: no site
packages, nothing of what joining needed.

Exit codes: 0 done; 1 failed; 2 wrong usage or settings; 3 the data directory is in use; 4 it has not joined; 5 and 6 of
`status`: the agent is not connected, no agent runs.
Signals of the agent: SIGTERM and SIGINT stop it, workloads go on; SIGUSR1 stops the workloads gracefully and then the
agent; SIGHUP connects now instead of at the end of a back-off.
"""

import os
import sys

from edgelite import __version__
from edgelite.exits import USAGE, fail
from edgelite.options import Command, Option, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


_DATA_DIR = Option(
    "data-dir",
    "DIR",
    "where the agent keeps its identity and journal; created with mode 0700",
    default="/var/lib/edgelite as root, else $XDG_STATE_HOME/edgelite",
)
_OUTPUT = Option("output", "text|json", "for people, or for programs", default="text", short="o")
COMMANDS = [
    Command(
        "join",
        "enrols this machine with a hub, then runs the agent",
        [
            Option("hub", "HOST:PORT", "the hub's edge address", required=True),
            Option(
                "token",
                "TOKEN",
                "a join token from `cloudhub token create`; `-` reads it from standard input, so that no process list shows it",
                required=True,
            ),
            _DATA_DIR,
            Option("name", "NAME", "the node's name; only with a pool token", default="chosen by the token"),
            Option(
                "again",
                "",
                "join anew as the same node: its certificate has ended, or was revoked",
                kind="flag",
            ),
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
            Option(
                "update-key",
                "HEX",
                "whose releases may replace this agent: a public key of `cloudhub release keygen`; may be repeated",
                kind="list",
            ),
            Option("boot-id-file", "PATH", "where the machine's boot id is read", default="the kernel's"),
            Option("log-level", "LEVEL", "debug, info, warning or error", default="info"),
            Option(
                "no-run", "", "only join; `edgelite run` or `edgelite service install` runs it", kind="flag"
            ),
        ],
    ),
    Command(
        "run",
        "runs the agent of a directory that has joined",
        [
            _DATA_DIR,
            Option("log-level", "LEVEL", "debug, info, warning or error", default="as joined"),
            Option("log-dir", "DIR", "where the agent keeps its own log", default="the data directory"),
        ],
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
        "shows how this node is: link, last sync, workloads, journal, certificate, clock",
        [_DATA_DIR, _OUTPUT],
    ),
    Command(
        "logs",
        "shows what the agent, or with --pod a container, has written",
        [
            _DATA_DIR,
            Option("pod", "[NAMESPACE/]NAME", "a pod of this node", default="the agent itself"),
            Option("container", "NAME", "one of the pod's containers", default="the only one", short="c"),
            Option("previous", "", "of the attempt before the last restart", kind="flag"),
            Option("tail", "LINES", "how many lines from the end", default="100"),
            Option("follow", "", "go on until Ctrl-C", kind="flag", short="f"),
            _OUTPUT,
        ],
    ),
    Command(
        "diagnose",
        "checks name resolution, route, clock, TLS, token, runtime: each line ok, or what to do",
        [
            _DATA_DIR,
            Option("hub", "HOST:PORT", "the hub's edge address, before joining", default="as joined"),
            Option(
                "token", "TOKEN", "the join token, `-` for standard input; it is not sent", default="none"
            ),
            _OUTPUT,
        ],
    ),
]

_SERVICE = [
    Command(
        "service install",
        "has this system start the agent at boot, and again after a crash",
        [
            _DATA_DIR,
            Option("user", "NAME", "as whom it runs", default="edgelite; root on macOS; LocalSystem"),
        ],
    ),
    Command("service remove", "stops the agent and removes the service; data and workloads stay", []),
    Command("service status", "shows whether the service is installed and runs", []),
]
COMMANDS += _SERVICE
_MODULES = {
    "join": "commands",
    "run": "commands",
    "stop": "commands",
    "status": "statusview",
    "logs": "logview",
    "diagnose": "diagnosis",
    "service": "service",
}


def main(arguments: "list[str] | None" = None) -> int:
    """Runs one command; the exit code. `join` and `run` do not return where the process can be replaced."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0 if words else USAGE
    if words[0] in ("--version", "version"):
        sys.stdout.write("edgelite %s\n" % __version__)
        return 0
    if words[0] == "--service" and len(words) == 2:
        from edgelite.winservice import serve

        return serve(words[1])
    command = None
    for candidate in COMMANDS:
        name = candidate.name.split()
        if words[: len(name)] == name:
            command, words = candidate, [candidate.name] + words[len(name) :]
    if command is None:
        return fail(
            "there is no command %r; `edgelite --help` names them all"
            % " ".join(words[: 1 + (words[0] == "service")]),
            USAGE,
        )
    if "-h" in words[1:] or "--help" in words[1:]:
        sys.stdout.write(command.usage("edgelite"))
        return 0
    try:
        values = _clean(command, command.parse(words[1:]))
    except UsageError as error:
        return fail("%s\nTry: edgelite %s --help" % (error, command.name), USAGE)
    group, _, verb = command.name.partition(" ")
    module = __import__("edgelite." + _MODULES[group], fromlist=["*"])
    code: int = getattr(module, verb or group)(values)
    return code


def default_data_dir() -> str:
    if os.name == "nt":
        return os.path.join(os.environ.get("PROGRAMDATA") or "C:\\ProgramData", "edgelite")
    if os.geteuid() == 0:
        return "/var/lib/edgelite"
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local/state")
    return os.path.join(state, "edgelite")


def _clean(command: Command, values: "dict[str, Any]") -> "dict[str, Any]":
    """Replaces defaults that are prose by None, and the data directory by an absolute path."""
    for option in command.options:
        if option.kind == "text" and values[option.name] == option.default:
            values[option.name] = None
    if values.get("output", "text") not in (None, "text", "json"):
        raise UsageError("--output is %r; it has to be text or json" % values["output"])
    if "data-dir" in values:
        values["data-dir"] = os.path.abspath(values["data-dir"] or default_data_dir())
    return values


def _overview() -> str:
    lines = ["edgelite %s: the agent of a CloudHub edge node" % __version__, ""]
    for command in COMMANDS:
        lines.append("  edgelite %-15s %s" % (command.name, command.help))
    lines.append("")
    lines.append(
        "`edgelite COMMAND --help` explains the options of one, `edgelite --version` names the release."
    )
    return "\n".join(lines) + "\n"

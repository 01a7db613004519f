"""The agent as a daemon of macOS's launchd. What it logs lies where Console.app looks, bounded by the agent itself."""

import os

from edgelite.files import write_atomically
from edgelite.service import ServiceError, need_root, plain, tool

LABEL = "dev.cloudhub.edgelite"
DAEMONS = "/Library/LaunchDaemons"
LOGS = "/Library/Logs/edgelite"
THROTTLE_S = 10


def plist(program: "list[str]", data_dir: str, user: str) -> bytes:
    """The property list (man launchd.plist). Raises ServiceError for what no path is."""
    import plistlib

    for word in program + [data_dir, user]:
        plain(word)
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": program + ["run", "--data-dir", data_dir, "--log-dir", LOGS],
            "UserName": user,
            "RunAtLoad": True,
            # Again whenever it did not end by itself without an error, but not more often than this.
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": THROTTLE_S,
            # Workloads outlive the agent.
            "AbandonProcessGroup": True,
            "ExitTimeOut": 30,
            "ProcessType": "Background",
            "Umask": 0o077,
            "SoftResourceLimits": {"Core": 0},
            "EnvironmentVariables": {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"},
            # What a crash says before the agent has its own log.
            "StandardErrorPath": LOGS + "/stderr.log",
        },
        sort_keys=True,
    )


def install(program: "list[str]", data_dir: str, user: "str | None") -> str:
    """See `service.install`; user: None for root. Raises ServiceError, OSError."""
    need_root()
    text = plist(program, data_dir, user or "root")
    os.makedirs(LOGS, mode=0o750, exist_ok=True)
    if user:
        import shutil

        shutil.chown(LOGS, user)
    path = _path()
    if os.path.exists(path):
        _bootout()
    write_atomically(path, text, 0o644)
    tool("launchctl", "bootstrap", "system", path)
    return "%s runs, and starts at every boot; its log: %s, also in Console" % (path, LOGS)


def remove() -> str:
    need_root()
    path = _path()
    if not os.path.exists(path):
        return "there is no %s" % path
    _bootout()
    os.unlink(path)
    return "%s is removed; data directory, logs and running workloads stay" % path


def status() -> "tuple[bool, str]":
    """(whether it runs, what to show)."""
    if not os.path.exists(_path()):
        return False, "not installed: there is no %s" % _path()
    shown = tool("launchctl", "print", "system/" + LABEL)
    wanted = ("state", "pid", "runs", "last exit code")
    facts = [line.strip() for line in shown.splitlines() if line.strip().split(" = ")[0] in wanted]
    return "state = running" in facts, ", ".join(facts)


def _path() -> str:
    return os.path.join(DAEMONS, LABEL + ".plist")


def _bootout() -> None:
    try:
        tool("launchctl", "bootout", "system/" + LABEL)
    except ServiceError as error:
        if "No such process" not in str(error) and "not find" not in str(error):
            raise

"""The agent as a service of systemd 247 or newer: a hardened unit, as a user of its own without any right.

Pods are children of the service and keep running while it is restarted or updated (KillMode=process). What the unit forbids
is forbidden to them too; a drop-in (`systemctl edit edgelite`) lifts what a workload needs. It logs to systemd's journal.
"""

import os

from edgelite.files import write_atomically
from edgelite.service import NAME, ServiceError, need_root, plain, tool

UNITS = "/etc/systemd/system"
STATE_DIR = "/var/lib/edgelite"
NOT_JOINED = 4
HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108  (named in order to refuse them)
"""Where the unit's user finds no program: ProtectHome, or anybody's to replace."""

UNIT = """\
[Unit]
Description=CloudHub's agent on an edge node
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
User=%(user)s
Group=%(user)s
ExecStart=%(program)s run --data-dir %(data_dir)s
KillMode=process
Delegate=yes
TimeoutStopSec=30
Restart=always
RestartSec=2
# 4: it has not joined a hub. Starting it again does not help.
RestartPreventExitStatus=%(not_joined)d
LimitCORE=0

%(directory)s
UMask=0077

%(sandbox)s
[Install]
WantedBy=multi-user.target
"""

SANDBOX = """\
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
# Not PrivateTmp: pods outlive a restart, and their /tmp would not.
ReadWritePaths=/tmp /var/tmp
PrivateDevices=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
RemoveIPC=no
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
# Each pod has mounts of its own, which an ordinary user makes in a user namespace.
RestrictNamespaces=user mnt
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
DevicePolicy=closed
SystemCallArchitectures=native
SystemCallFilter=@system-service @mount
SystemCallErrorNumber=EPERM
"""

ROOT_SANDBOX = """\
# Root, so that pods run as users of their own, in cgroups, and with --allow-privileged as whoever they want.
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
RemoveIPC=no
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
"""


def unit(program: "list[str]", data_dir: str, user: str) -> str:
    """The unit's text. Raises ServiceError for what would need quoting."""
    words = [plain(word) for word in program + [data_dir, user]]
    if any(" " in word for word in words):
        raise ServiceError("a unit's paths and user have no blanks: %r" % words)
    own = "StateDirectory=edgelite\nStateDirectoryMode=0700"
    return UNIT % {
        "program": " ".join(program),
        "data_dir": data_dir,
        "user": user,
        "not_joined": NOT_JOINED,
        "directory": own if data_dir == STATE_DIR else "ReadWritePaths=%s" % data_dir,
        "sandbox": ROOT_SANDBOX if user == "root" else SANDBOX,
    }


def install(program: "list[str]", data_dir: str, user: "str | None") -> str:
    """See `service.install`; user: None for `edgelite`, which is made where there is none. Raises ServiceError, OSError."""
    need_root()
    user = user or NAME
    hidden = [word for word in program if word.startswith(HIDDEN)]
    if hidden and user != "root":
        raise ServiceError(
            "user %s cannot read %s: put the program under /opt or /usr/local, or use --user root"
            % (user, hidden[0])
        )
    text = unit(program, data_dir, user)
    _own(data_dir, user)
    path = os.path.join(UNITS, NAME + ".service")
    write_atomically(path, text.encode(), 0o644)
    tool("systemctl", "daemon-reload")
    tool("systemctl", "enable", NAME)
    tool("systemctl", "restart", NAME)
    return "%s runs as user %s, and starts at every boot; its log: journalctl -u %s" % (path, user, NAME)


def remove() -> str:
    need_root()
    path = os.path.join(UNITS, NAME + ".service")
    if not os.path.exists(path):
        return "there is no %s" % path
    tool("systemctl", "disable", "--now", NAME)
    os.unlink(path)
    tool("systemctl", "daemon-reload")
    return "%s is removed; data directory, user and running workloads stay" % path


def status() -> "tuple[bool, str]":
    """(whether it runs, what to show)."""
    path = os.path.join(UNITS, NAME + ".service")
    if not os.path.exists(path):
        return False, "not installed: there is no %s" % path
    shown = tool(
        "systemctl", "show", NAME, "--property=ActiveState,SubState,UnitFileState,NRestarts,ExecMainStatus"
    )
    facts = dict([line.partition("=")[::2] for line in shown.splitlines()])
    return facts.get("ActiveState") == "active", "%s (%s), at boot: %s, restarts: %s, last exit code: %s" % (
        facts.get("ActiveState"),
        facts.get("SubState"),
        facts.get("UnitFileState"),
        facts.get("NRestarts"),
        facts.get("ExecMainStatus"),
    )


def _own(data_dir: str, user: str) -> None:
    """Makes the user where there is none, and the directory theirs. Raises ServiceError, OSError."""
    import pwd

    try:
        found = pwd.getpwnam(user)
    except KeyError:
        tool(
            "useradd",
            "--system",
            "--user-group",
            "--home-dir",
            data_dir,
            "--shell",
            "/usr/sbin/nologin",
            user,
        )
        found = pwd.getpwnam(user)
    if os.stat(data_dir).st_uid == found.pw_uid:
        return
    pods = os.path.join(data_dir, "pods")
    if os.path.isdir(pods) and os.listdir(pods):
        raise ServiceError(
            "%s holds pods of another user: `edgelite stop --workloads --data-dir %s` first"
            % (data_dir, data_dir)
        )
    for base, folders, files in os.walk(data_dir):
        for path in [base] + [os.path.join(base, name) for name in folders + files]:
            os.chown(path, found.pw_uid, found.pw_gid, follow_symlinks=False)

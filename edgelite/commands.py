"""What the commands of `edgelite.cli` do."""

import os
import signal
import sys
import time

from edgelite.config import (
    LEVELS,
    Config,
    ConfigError,
    Locked,
    PidFile,
    load_config,
    load_membership,
    save_config,
)
from edgelite.exits import FAILED, IN_USE, NOT_JOINED, USAGE, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

POLL_S = 0.05
STOP_TIMEOUT_S = 15.0
DRAIN_TIMEOUT_S = 600.0
JOIN_TRIES = 30
TOKEN_CHARS_MAX = 4096
BUSY = ("Unavailable", "TooManyJoins", "RateLimited")
"""A hub's reasons to come back by oneself, besides that an operator has to approve; all others are for a person to read."""


def join(values: "dict[str, Any]") -> int:
    """Enrols, writes config.json, then becomes the agent, unless `no-run` is given."""
    data_dir = values["data-dir"]
    if values["token"] == "-":  # noqa: S105
        values["token"] = sys.stdin.readline(TOKEN_CHARS_MAX).strip()
    try:
        config = _wanted_config(values)
        os.makedirs(data_dir, mode=0o700, exist_ok=True)
        lock = PidFile(data_dir)
        lock.acquire()
    except ConfigError as error:
        return fail(str(error), USAGE)
    except Locked as error:
        return fail(str(error), IN_USE)
    except OSError as error:
        return fail("cannot use the data directory: %s" % error, FAILED)
    try:
        code = _enrol(values, data_dir, config)
    finally:
        lock.release()
    if code or values["no-run"] is True:
        return code
    return become_agent(data_dir, "run", config.log_level)


def _enrol(values: "dict[str, Any]", data_dir: str, config: Config) -> int:
    """0 when the directory has joined with this token, now or before."""
    try:
        membership = load_membership(data_dir)
        if membership is not None and load_config(data_dir).token == config.token:
            save_config(data_dir, config)
            return 0
        if membership is not None:
            if not values["again"]:
                return fail(
                    "%s has joined already; `edgelite run --data-dir %s` runs it, another node needs another "
                    "directory; --again joins anew as the same node" % (data_dir, data_dir),
                    FAILED,
                )
        from edgelite import enroll

        try:
            facts = _join_patiently(values, data_dir, config)
        except enroll.EnrollError as error:
            return fail("cannot join %s: %s" % (values["hub"], error), FAILED)
        save_config(data_dir, config)
        sys.stderr.write("edgelite: joined %s as node %s\n" % (values["hub"], facts["node"]))
        return 0
    except ConfigError as error:
        return fail(str(error), USAGE)
    except OSError as error:
        return fail("cannot write to %s: %s" % (data_dir, error), FAILED)


def _join_patiently(values: "dict[str, Any]", data_dir: str, config: Config) -> "dict[str, Any]":
    """Joins; comes back to a hub that says it is busy, for about a minute: a whole fleet may join at once. Where an
    operator has to approve, it asks as often as the hub says until that is decided. The key on disk makes a repeat safe,
    also after a restart. Raises EnrollError."""
    from edgelite import enroll

    tries, said = 0, ""
    while True:
        try:
            return enroll.join(
                values["hub"],
                values["token"],
                data_dir=data_dir,
                name=values["name"],
                labels=config.labels,
                again=values["again"] is True,
            )
        except enroll.EnrollError as error:
            wait_s = 1.0 + os.urandom(1)[0] / 128.0 if error.retry_s is None else max(error.retry_s, 0.1)
            if error.code == enroll.PENDING and error.retryable:
                tries = 0
                if error.message != said:
                    said = error.message
                    sys.stderr.write("edgelite: %s\n" % said)
            else:
                tries += 1
                if not error.retryable or error.code not in BUSY or tries >= JOIN_TRIES:
                    raise
                sys.stderr.write("edgelite: %s; trying again in %.0f s\n" % (error, wait_s))
        time.sleep(wait_s)


def _wanted_config(values: "dict[str, Any]") -> Config:
    import hashlib

    fields: "dict[str, Any]" = {"labels": {}}
    for text in values["label"]:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError("--label %s: write it as KEY=VALUE" % text)
        fields["labels"][key] = value
    for option, field in (
        ("runtime", "runtime"),
        ("engine-socket", "engine_socket"),
        ("boot-id-file", "boot_id_file"),
        ("log-level", "log_level"),
    ):
        if values[option] is not None:
            fields[field] = values[option]
    if values["pods-max"] is not None:
        if not values["pods-max"].isdigit():
            raise ConfigError("--pods-max %s is no number" % values["pods-max"])
        fields["pods_max"] = int(values["pods-max"])
    fields["update_keys"] = list(values["update-key"])
    if fields["update_keys"]:
        from edgelite.updateplan import key_fault

        fault = key_fault(fields["update_keys"])
        if fault:
            raise ConfigError("--update-key: " + fault)
    fields["allow_privileged"] = values["allow-privileged"] is True
    fields["allow_secret_files"] = values["allow-secret-files"] is True
    fields["token"] = hashlib.sha256(values["token"].encode()).hexdigest()[:32]
    return Config(**fields)


def run(values: "dict[str, Any]") -> int:
    """Becomes the agent, after the checks whose errors a person wants to see at once."""
    data_dir = values["data-dir"]
    try:
        if load_membership(data_dir) is None:
            return fail(
                "%s has not joined a hub; `edgelite join --help` says how" % data_dir,
                NOT_JOINED,
            )
        config = load_config(data_dir)
        level = values["log-level"] or config.log_level
        if level not in LEVELS:
            raise ConfigError("--log-level is %r; it has to be one of %s" % (level, ", ".join(LEVELS)))
    except ConfigError as error:
        return fail(str(error), USAGE)
    return become_agent(
        data_dir, "run", level, os.path.abspath(values["log-dir"]) if values["log-dir"] else ""
    )


def become_agent(data_dir: str, mode: str, level: str, log_dir: str = "") -> int:
    """Replaces this process by a slim interpreter with the resident agent. An archive is unpacked for that; where that
    cannot be, or there is no file to start (a one-file executable's own release), or a process cannot be replaced (Windows),
    the agent runs here."""
    sys.stdout.flush()
    sys.stderr.flush()
    if mode == "run" and os.name == "nt" and not os.environ.get("EDGELITE_SLOT"):
        from edgelite.winlauncher import Launcher

        return Launcher(data_dir, level, log_dir).run()
    if mode == "run":
        code = _other_release(data_dir, level, log_dir)
        if code is not None:
            return code
    if os.name == "posix" and sys.executable:
        entry = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
        if not os.path.exists(entry):
            entry = _unpacked(data_dir)
        if entry:
            # The interpreter that runs us, with arguments of our own.
            os.execv(  # noqa: S606
                sys.executable,
                [sys.executable, "-I", "-S", entry, "--resident", data_dir, mode, level, log_dir],
            )
    from edgelite.resident import resident

    return resident(data_dir, mode, level, log_dir)


def _other_release(data_dir: str, level: str, log_dir: str) -> "int | None":
    """Becomes the release that an update has put in a slot, if one has; else None, or how a trial of it ended."""
    if os.environ.get("EDGELITE_SLOT"):
        return None  # this is the release that was chosen
    archive = getattr(globals()["__loader__"], "archive", "")
    os.environ["EDGELITE_BASE"] = archive or os.path.join(
        os.path.dirname(os.path.abspath(__file__)), "__main__.py"
    )
    if not os.path.exists(os.path.join(data_dir, "update")):
        return None
    from edgelite.launcher import launch

    return launch(data_dir, run_arguments(data_dir, level, log_dir))


def run_arguments(data_dir: str, level: str, log_dir: str) -> "list[str]":
    """`run` with these settings, as words."""
    words = ["run", "--data-dir", data_dir, "--log-level", level]
    return words + ["--log-dir", log_dir] if log_dir else words


def _unpacked(data_dir: str) -> str:
    """The entry of the archive that this is, on the disk; "" where it cannot be put there."""
    from edgelite import unpacked

    files = getattr(globals()["__loader__"], "files", None)
    if not files:
        return ""
    try:
        return unpacked.unpack(files, data_dir)
    except OSError as error:
        sys.stderr.write(
            "edgelite: cannot unpack into %s (%s): running from the archive\n" % (data_dir, error)
        )
        return ""


def stop(values: "dict[str, Any]") -> int:
    """Signals the agent and waits until it has ended. No agent: done, or with --workloads this process stops them."""
    data_dir = values["data-dir"]
    workloads = values["workloads"] is True
    text = values["timeout"]
    try:
        timeout = float(text) if text is not None else (DRAIN_TIMEOUT_S if workloads else STOP_TIMEOUT_S)
    except ValueError:
        return fail("--timeout %s is no number of seconds" % text, USAGE)
    try:
        lock = PidFile(data_dir)
        pid = lock.holder()
        if pid is None:
            if workloads and load_membership(data_dir) is not None:
                return become_agent(data_dir, "drain", load_config(data_dir).log_level)
            sys.stderr.write("edgelite: no agent runs on %s\n" % data_dir)
            return 0
        if os.name == "nt":
            from edgelite import winhost

            winhost.tell(data_dir, winhost.DRAIN if workloads else winhost.STOP)
        else:
            os.kill(pid, signal.SIGUSR1 if workloads else signal.SIGTERM)
    except ConfigError as error:
        return fail(str(error), USAGE)
    except OSError as error:
        return fail("cannot stop the agent on %s: %s" % (data_dir, error), FAILED)
    until = time.monotonic() + timeout
    while lock.holder() == pid:
        if time.monotonic() > until:
            return fail("the agent (process id %d) has not ended after %g s" % (pid, timeout), FAILED)
        time.sleep(POLL_S)
    return 0

"""What the commands of `edgelite.cli` do."""

import json
import os
import signal
import sys
import time

from edgelite import __version__
from edgelite.cli import DRAIN_TIMEOUT_S, FAILED, IN_USE, NOT_JOINED, STOP_TIMEOUT_S, USAGE
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

POLL_S = 0.05
JOIN_TRIES = 30
BUSY = ("Unavailable", "TooManyJoins")
"""A hub's reasons to come back by oneself; all others are for a person to read."""


def join(values: "dict[str, Any]") -> int:
    """Enrols, writes config.json, then becomes the agent."""
    data_dir = values["data-dir"]
    try:
        config = _wanted_config(values)
        os.makedirs(data_dir, mode=0o700, exist_ok=True)
        lock = PidFile(data_dir)
        lock.acquire()
    except ConfigError as error:
        return _fail(str(error), USAGE)
    except Locked as error:
        return _fail(str(error), IN_USE)
    except OSError as error:
        return _fail("cannot use the data directory: %s" % error, FAILED)
    try:
        code = _enrol(values, data_dir, config)
    finally:
        lock.release()
    return code or become_agent(data_dir, "run", config.log_level)


def _enrol(values: "dict[str, Any]", data_dir: str, config: Config) -> int:
    """0 when the directory has joined with this token, now or before."""
    try:
        if load_membership(data_dir) is not None:
            if load_config(data_dir).token != config.token:
                return _fail(
                    "%s has joined already; `edgelite run --data-dir %s` runs it, another node needs another "
                    "directory" % (data_dir, data_dir),
                    FAILED,
                )
            save_config(data_dir, config)
            return 0
        from edgelite import enroll

        try:
            facts = _join_patiently(values, data_dir, config)
        except enroll.EnrollError as error:
            return _fail("cannot join %s: %s" % (values["hub"], error), FAILED)
        save_config(data_dir, config)
        sys.stderr.write("edgelite: joined %s as node %s\n" % (values["hub"], facts["node"]))
        return 0
    except ConfigError as error:
        return _fail(str(error), USAGE)
    except OSError as error:
        return _fail("cannot write to %s: %s" % (data_dir, error), FAILED)


def _join_patiently(values: "dict[str, Any]", data_dir: str, config: Config) -> "dict[str, Any]":
    """Joins; comes back to a hub that says it is busy, for about a minute: a whole fleet may join at once. The key on
    disk makes a repeat safe. Raises EnrollError."""
    from edgelite import enroll

    tries = 0
    while True:
        try:
            return enroll.join(
                values["hub"], values["token"], data_dir=data_dir, name=values["name"], labels=config.labels
            )
        except enroll.EnrollError as error:
            tries += 1
            if not error.retryable or error.code not in BUSY or tries >= JOIN_TRIES:
                raise
            sys.stderr.write("edgelite: %s; trying again\n" % error)
        time.sleep(1.0 + os.urandom(1)[0] / 128.0)


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
    fields["allow_privileged"] = values["allow-privileged"] is True
    fields["allow_secret_files"] = values["allow-secret-files"] is True
    fields["token"] = hashlib.sha256(values["token"].encode()).hexdigest()[:32]
    return Config(**fields)


def run(values: "dict[str, Any]") -> int:
    """Becomes the agent, after the checks whose errors a person wants to see at once."""
    data_dir = values["data-dir"]
    try:
        if load_membership(data_dir) is None:
            return _fail(
                "%s has not joined a hub; `edgelite join --help` says how" % data_dir,
                NOT_JOINED,
            )
        config = load_config(data_dir)
        level = values["log-level"] or config.log_level
        if level not in LEVELS:
            raise ConfigError("--log-level is %r; it has to be one of %s" % (level, ", ".join(LEVELS)))
    except ConfigError as error:
        return _fail(str(error), USAGE)
    return become_agent(data_dir, "run", level)


def become_agent(data_dir: str, mode: str, level: str) -> int:
    """Replaces this process by a slim interpreter with the resident agent; where there is no file to start it from
    (an archive), the agent runs here."""
    entry = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.executable and os.path.exists(entry) and not getattr(sys, "frozen", False):
        # The interpreter that runs us, with arguments of our own.
        os.execv(  # noqa: S606
            sys.executable, [sys.executable, "-I", "-S", entry, "--resident", data_dir, mode, level]
        )
    from edgelite.cli import resident

    return resident(data_dir, mode, level)


def run_agent(data_dir: str, mode: str, level: str) -> int:
    """The resident agent from lock to end; the exit code."""
    from edgelite.agent import Agent
    from edgelite.console import Log
    from edgelite.journal import JournalError
    from edgelite.parts import Parts
    from edgelite.port import Host

    log = Log(level)
    try:
        membership = load_membership(data_dir)
        if membership is None:
            return _fail("%s has not joined a hub" % data_dir, NOT_JOINED)
        config = load_config(data_dir)
        lock = PidFile(data_dir)
        lock.acquire()
    except ConfigError as error:
        return _fail(str(error), USAGE)
    except Locked as error:
        return _fail(str(error), IN_USE)
    except OSError as error:
        return _fail("cannot use the data directory: %s" % error, FAILED)
    os.umask(0o077)
    host = Host(config.boot_id_file)
    try:
        agent = Agent(data_dir, config, membership, host, log, Parts(data_dir, config, host, membership.node))
        for number, action in (
            (signal.SIGTERM, agent.stop),
            (signal.SIGINT, agent.stop),
            (signal.SIGUSR1, agent.drain),
            (signal.SIGHUP, agent.again),
        ):
            signal.signal(number, _handler(action))
        return agent.run() if mode == "run" else agent.run_drain()
    except (ConfigError, JournalError, OSError) as error:
        return _fail(str(error), FAILED)
    finally:
        lock.release()


def _handler(action: "Callable[[], None]") -> "Callable[[int, Any], None]":
    def handle(number: int, frame: "Any") -> None:
        action()

    return handle


def stop(values: "dict[str, Any]") -> int:
    """Signals the agent and waits until it has ended. No agent: done, or with --workloads this process stops them."""
    data_dir = values["data-dir"]
    workloads = values["workloads"] is True
    text = values["timeout"]
    try:
        timeout = float(text) if text is not None else (DRAIN_TIMEOUT_S if workloads else STOP_TIMEOUT_S)
    except ValueError:
        return _fail("--timeout %s is no number of seconds" % text, USAGE)
    try:
        lock = PidFile(data_dir)
        pid = lock.holder()
        if pid is None:
            if workloads and load_membership(data_dir) is not None:
                return become_agent(data_dir, "drain", load_config(data_dir).log_level)
            sys.stderr.write("edgelite: no agent runs on %s\n" % data_dir)
            return 0
        os.kill(pid, signal.SIGUSR1 if workloads else signal.SIGTERM)
    except ConfigError as error:
        return _fail(str(error), USAGE)
    except OSError as error:
        return _fail("cannot stop the agent on %s: %s" % (data_dir, error), FAILED)
    until = time.monotonic() + timeout
    while lock.holder() == pid:
        if time.monotonic() > until:
            return _fail("the agent (process id %d) has not ended after %g s" % (pid, timeout), FAILED)
        time.sleep(POLL_S)
    return 0


def status(values: "dict[str, Any]") -> int:
    """Prints what the running agent last wrote about itself, as JSON."""
    data_dir = values["data-dir"]
    try:
        membership = load_membership(data_dir)
        if membership is None:
            return _fail("%s has not joined a hub" % data_dir, NOT_JOINED)
        shown: "dict[str, Any]" = {
            "edgelite": __version__,
            "node": membership.node,
            "hub": membership.edge,
            "state": "not running",
        }
        pid = PidFile(data_dir).holder()
        if pid is not None:
            with open(os.path.join(data_dir, "status.json")) as file:
                shown.update(json.load(file))
    except ConfigError as error:
        return _fail(str(error), USAGE)
    except (OSError, ValueError) as error:
        return _fail("cannot read the agent's status: %s" % error, FAILED)
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")
    return 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write("edgelite: %s\n" % message)
    return code

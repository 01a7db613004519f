"""The resident agent's process, from lock to end. Imports nothing of the commands, for what it imports stays in memory."""

import os
import signal

from edgelite.config import ConfigError, Locked, PidFile, load_config, load_membership
from edgelite.exits import FAILED, IN_USE, NOT_JOINED, RESTART, USAGE, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def resident(data_dir: str, mode: str, log_level: str, log_dir: str = "") -> int:
    """The agent itself, in this process. mode: run, or drain (stop all workloads without a connection); log_dir: where its own
    log lies, "" for the data directory."""
    import gc

    gc.set_threshold(200, 5, 5)  # garbage of a session is collected before it costs resident memory
    base, slot = os.environ.pop("EDGELITE_BASE", ""), os.environ.pop("EDGELITE_SLOT", "")
    code = run_agent(data_dir, mode, log_level, log_dir)
    if code == RESTART and base and slot != "trial":  # whoever tries a release waits for it
        from edgelite.commands import run_arguments
        from edgelite.launcher import again

        return again(base, run_arguments(data_dir, log_level, log_dir))
    return code


def run_agent(
    data_dir: str,
    mode: str,
    level: str,
    log_dir: str = "",
    stream: "Any" = None,
    control: "Callable[[Any], None] | None" = None,
) -> int:
    """The resident agent from lock to end; the exit code.

    log_dir: where it keeps its own log, "" for the data directory; stream: what its log goes to besides, stderr by default;
    control: is given the agent, in place of the signals, where there are none."""
    from edgelite.agent import Agent
    from edgelite.agentlog import AgentLog
    from edgelite.console import Log
    from edgelite.journal import JournalError
    from edgelite.parts import Parts
    from edgelite.port import this_host

    log = Log(level, stream)
    try:
        membership = load_membership(data_dir)
        if membership is None:
            return fail("%s has not joined a hub" % data_dir, NOT_JOINED)
        config = load_config(data_dir)
        lock = PidFile(data_dir)
        lock.acquire()
    except ConfigError as error:
        return fail(str(error), USAGE)
    except Locked as error:
        return fail(str(error), IN_USE)
    except OSError as error:
        return fail("cannot use the data directory: %s" % error, FAILED)
    os.umask(0o077)
    _sweep(data_dir, log)
    kept = AgentLog(log_dir or data_dir)
    log.copy_to(kept)
    host = this_host(config.boot_id_file)
    deaf = None
    try:
        agent = Agent(data_dir, config, membership, host, log, Parts(data_dir, config, host, membership.node))
        agent.log_dir = log_dir
        if os.name == "nt":
            from edgelite.winhost import listen

            deaf = listen(data_dir, agent)
        if control is not None:
            control(agent)
        else:
            _hear_signals(agent)
        return agent.run() if mode == "run" else agent.run_drain()
    except (ConfigError, JournalError, OSError) as error:
        return fail(str(error), FAILED)
    finally:
        if deaf is not None:
            deaf()
        kept.close()
        lock.release()


def _sweep(data_dir: str, log: "Any") -> None:
    if not os.path.isdir(os.path.join(data_dir, "code")):
        return
    from edgelite.unpacked import sweep

    try:
        sweep(data_dir, __file__)
    except OSError as error:
        log.warning("cannot remove the code of other versions: %s" % error)


def _hear_signals(agent: "Any") -> None:
    actions = {"SIGTERM": agent.stop, "SIGINT": agent.stop, "SIGUSR1": agent.drain, "SIGHUP": agent.again}
    for name, action in actions.items():
        number = getattr(signal, name, None)  # Windows has the first two
        if number is not None:
            signal.signal(number, _handler(action))
    waker = agent.loop.signals()
    if waker >= 0:
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)


def _handler(action: "Callable[[], None]") -> "Callable[[int, Any], None]":
    def handle(number: int, frame: "Any") -> None:
        action()

    return handle

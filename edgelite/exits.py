"""The exit codes of `edgelite`, and how a command fails."""

import sys

DONE = 0
FAILED = 1
USAGE = 2  # wrong usage or settings
IN_USE = 3  # another agent runs on the data directory
NOT_JOINED = 4
AWAY = 5  # `status`: the agent runs without a connection
STOPPED = 6  # `status`: no agent runs
RESTART = 75  # the agent wants to be started again, as another release of itself


def fail(message: str, code: int) -> int:
    """Says on stderr what is wrong; the code."""
    sys.stderr.write("edgelite: %s\n" % message)
    return code

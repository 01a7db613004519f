"""status.json: what the running agent last said about itself, for people. It is no record: whoever writes it may be gone.

It stays behind when the agent ends, so that the moment of the last synchronisation is known afterwards too; whether an agent
runs is told by the lock of `agent.pid` alone.
"""

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "status.json"
BYTES_MAX = 1 << 20


def write(data_dir: str, status: "dict[str, Any]") -> None:
    """Replaces the file. Raises OSError."""
    path = os.path.join(data_dir, NAME)
    fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "w") as file:
        json.dump(status, file)
    os.replace(path + ".tmp", path)


def read(data_dir: str) -> "dict[str, Any]":
    """{} where there is none yet. Raises OSError, and ValueError for what no agent writes."""
    try:
        with open(os.path.join(data_dir, NAME)) as file:
            found = json.loads(file.read(BYTES_MAX))
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict):
        raise ValueError("%s is no JSON object" % NAME)
    return found


def last_synced(data_dir: str) -> float:
    """When a former agent was last in step with the hub, unix seconds; 0.0 when that is not known."""
    try:
        found = read(data_dir).get("synced")
    except (OSError, ValueError):
        return 0.0  # the file is torn or not ours: what it would have told is only shown
    return float(found) if isinstance(found, (int, float)) else 0.0

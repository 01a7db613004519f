"""The updater of the resident agent, on its loop. Loaded with the first document of an update, for what is imported stays in memory."""

import os

from edgelite import __version__
from edgelite.loop import Wait
from edgelite.updateplan import key_fault
from edgelite.updater import CONDITION, Site, Updater
from edgelite.updatestore import FOLDER, UpdateFiles, UpdateStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.loop import Task


class UpdateKeeper(Site):
    """`agent`: the `edgelite.agent.Agent` that it is part of. Raises OSError where there can be no folder `update`."""

    version = __version__

    def __init__(self, agent: "Any") -> None:
        folder = os.path.join(agent.data_dir, FOLDER)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.keys = agent.config.update_keys
        self.minimum = agent.config.update_minimum
        files = UpdateFiles()
        if os.name == "nt":
            from edgelite.winlauncher import SlotFiles

            files = SlotFiles()
        fault = key_fault(self.keys)
        if fault:
            self.unable = "update_keys in config.json: " + fault
        self._agent = agent
        self._task: "Task | None" = None
        self._updater = Updater(self, UpdateStore(files, folder))
        self.facts, self.admit = self._updater.facts, self._updater.admit
        self._wake()

    def set(self, body: bytes) -> None:
        self._updater.set(body)
        self._wake()

    def delete(self) -> None:
        self._updater.delete()
        self._wake()

    def synced(self) -> None:
        self._updater.synced()
        self._wake()

    def piece(self, key: str, body: bytes) -> None:
        self._updater.piece(key, body)
        self._wake()

    def refused(self, reason: str) -> None:
        self._updater.refused(reason)

    # Site

    def now(self) -> float:
        return float(self._agent.loop.now())

    def live(self) -> bool:
        return bool(self._agent.link.live)

    def report(self, kind: str, key: str, body: "dict[str, Any]") -> None:
        self._agent.report(kind, key, body)

    def condition(self, status: str, reason: str, message: str) -> None:
        self._agent.set_condition(CONDITION, status, reason, message)

    def say(self, text: str) -> None:
        self._agent.log.info(text)

    def restart(self) -> None:
        self._agent.restart()

    def _wake(self) -> None:
        if self._task is None:
            self._task = self._agent.loop.spawn(self._run(), "update")
        else:
            self._agent.loop.wake(self._task)

    def _run(self) -> "Generator[Wait, bool, None]":
        while True:
            self._updater.turn()
            yield Wait(-1, 0, self._updater.due)

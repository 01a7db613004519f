"""`Bench` over the container runtime: the same node, with a real engine."""

from typing import Any

from edgelite.runtimes.base import Launch
from edgelite.runtimes.container import Config, ContainerRuntime
from tests.edgelite.runtimes.harness import Bench
from tests.podman import IMAGE


class ContainerBench(Bench):
    """socket: the engine's. The data directory's id tells its containers from those of other benches."""

    runtime: ContainerRuntime  # type: ignore[assignment]

    def __init__(self, root: str, socket: str, **config: Any) -> None:
        self.container_config = Config(socket, **config)
        super().__init__(root)

    def _runtime(self) -> ContainerRuntime:  # type: ignore[override]
        return ContainerRuntime(self.loop, self.state, self.data_dir, self.boot, self.container_config)

    def launch(self, command: list[str], *args: Any, **options: Any) -> Launch:
        options.setdefault("image", IMAGE)
        options.setdefault("imagePullPolicy", "Never")
        launch = super().launch(command, *args, **options)
        launch.container["image"] = options["image"]
        return launch

    def sh_that_is_killed(self) -> None:
        # The first process of a pid namespace cannot be killed from inside.
        handle = self.sh("while :; do sleep 0.05; done").handle
        path = f"/containers/{handle.partition('://')[2]}/kill"
        self.run(self.runtime._engine.call("POST", path, [("signal", "SIGKILL")]))

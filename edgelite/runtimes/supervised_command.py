"""Commands inside a container where nothing tells a poll loop of pipes and ends: they are looked at every POLL_S."""

from edgelite.loop import Wait
from edgelite.loop import now as clock
from edgelite.runtimes.base import Ends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from edgelite.runtimes.base import Send, Steps

STDOUT, STDERR = 1, 2
POLL_S = 0.03
DRAIN_S = 1.0  # for output that something else of the container may still hold open after the command's end
READS_PER_TURN = 16
CHUNK_BYTES = 32 << 10
OUTPUT_BYTES = 10240  # what `collect` keeps; the rest is read and dropped


class Command(Ends):
    """A command that runs. A system's own class has `channels`, the outputs it was asked for, and the five methods below."""

    def __init__(self, channels: "list[int]") -> None:
        self._channels = channels
        self._code: "int | None" = None
        self._drain_by = 0.0

    def read(self, channel: int) -> "bytes | None":
        """What there is: b"" for nothing yet, None at the end. At most CHUNK_BYTES."""
        raise NotImplementedError

    def take(self, data: bytes) -> "int | None":
        """How many bytes of input the command took; None when it takes none any more."""
        raise NotImplementedError

    def close_input(self) -> None:
        raise NotImplementedError

    def poll(self) -> "int | None":
        """The exit code once it has ended."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends what still runs of it, and closes everything. Idempotent."""
        raise NotImplementedError

    def _ended(self) -> bool:
        if self._code is None:
            self._code = self.poll()
            self._drain_by = clock() + DRAIN_S
        return self._code is not None

    def outputs(self, send: "Send") -> "list[tuple[int, Steps]]":
        return [(channel, self._copy(channel, send)) for channel in self._channels]

    def _copy(self, channel: int, send: "Send") -> "Steps":
        while True:
            over = self._ended()
            data = self.read(channel)
            if data is None or (not data and over and clock() >= self._drain_by):
                return
            if data:
                yield from send(channel, data)
            else:
                yield Wait(-1, 0, clock() + POLL_S)

    def write(self, data: bytes) -> "Steps":
        while data:
            taken = self.take(data[:CHUNK_BYTES])
            if taken is None:
                return
            data = data[taken:]
            if not taken:
                yield Wait(-1, 0, clock() + POLL_S)

    def end_input(self) -> "Steps":
        self.close_input()
        return
        yield

    def result(self, quiet: "Callable[[], bool]") -> "Generator[Wait, bool, int]":
        while not self._ended():
            yield Wait(-1, 0, clock() + POLL_S)
        assert self._code is not None
        return self._code

    def collect(self, deadline: float) -> "Generator[Wait, bool, tuple[int, bytes] | None]":
        """Generator. (exit code, the first OUTPUT_BYTES of output); None when it has not ended in time."""
        output = bytearray()
        while True:
            over = self._ended()
            for channel in self._channels:
                for _ in range(READS_PER_TURN):
                    data = self.read(channel)
                    if not data:
                        break
                    output += data[: OUTPUT_BYTES - len(output)]
            if over:
                assert self._code is not None
                return self._code, bytes(output)
            if clock() >= deadline:
                return None
            yield Wait(-1, 0, min(deadline, clock() + POLL_S))

    def abandon(self) -> "Steps | None":
        self.close()
        return None

"""The standard streams of a container whose output is a log file: what `attach` shows of it."""

from edgelite.runtimes.base import Ends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from edgelite.runtimes.base import LogSink, Send, Steps

STDOUT = 1


class _Channel:
    """A LogSink that sends on one channel."""

    def __init__(self, send: "Send") -> None:
        self._send = send

    def write(self, data: bytes) -> "Steps":
        yield from self._send(STDOUT, data)


class Output(Ends):
    """The output of a container from now on, both streams in one, as its log has them. follow(sink): a generator that ends
    with the container."""

    def __init__(self, follow: "Callable[[LogSink], Steps]") -> None:
        self._follow = follow

    def outputs(self, send: "Send") -> "list[tuple[int, Steps]]":
        return [(STDOUT, self._follow(_Channel(send)))]

    def write(self, data: bytes) -> "Steps":
        return
        yield

    def end_input(self) -> "Steps":
        return
        yield

    def abandon(self) -> "Steps | None":
        return None

"""Keeps the node connected: connects, drives one session after the other, backs off in between.

Decides nothing about documents: `Session` does. What is not I/O is handed to the agent. Errors end the connection,
never the link; only `retry_s: null` of the hub ends the attempts until `again` is called.
"""

from edgelite import wire
from edgelite.actions import Close, Send, Stream, Welcomed
from edgelite.backoff import Backoff
from edgelite.channel import Channel, ChannelError, split_address
from edgelite.hubs import REDIRECTS_MAX, Hubs
from edgelite.loop import Wait
from edgelite.streams import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator
    from typing import Any

    from edgelite.console import Log
    from edgelite.loop import Loop, Task

CONNECT_S = 20.0
CONNECT_MIN_S = 5.0
CLOSE_S = 2.0
CLONE_RETRY_S = 300.0
CLONE_RETRY_MIN_S = 1.0
STREAM_ROOM_BYTES = 512 << 10


class Owner:
    """What a link needs from the agent."""

    def context(self) -> "ssl.SSLContext":
        """The TLS context of the next connection. Raises OSError or ssl.SSLError."""
        raise NotImplementedError

    def new_session(self, local_address: str) -> "Any":
        """A `Session`, or whatever speaks in its place on the context that was asked for last. Raises ChannelError."""
        raise NotImplementedError

    def perform(self, action: "Any") -> None:
        """Any action but Send, Close and Stream."""
        raise NotImplementedError

    def journal_session(self) -> None:
        """Journals what the session wants persisted, without waiting for the disk."""
        raise NotImplementedError

    def settle(self) -> None:
        """Syncs the journal and commits the session."""
        raise NotImplementedError

    def logs(self, uid: str, container: str, options: "dict[str, Any]", out: "Any") -> "Any":
        raise NotImplementedError

    def usage(self, out: "Any") -> "Any":
        """See `Workloads.usage`."""
        raise NotImplementedError

    def inside(self, request: "dict[str, Any]") -> "Any":
        """See `Workloads.inside`."""
        raise NotImplementedError

    def outdated(self) -> bool:
        """The hub has seen later connections of this agent than the one it was told of. True: another attempt is worth while."""
        return False

    def chance(self) -> float:
        raise NotImplementedError


class Link:
    """`home` is the hub's address, or several with commas between. `state` is waiting, connecting, handshaking,
    connected, held, refused or stopped; `detail` says more, `since` is the loop's time of the last change."""

    def __init__(self, loop: "Loop", log: "Log", owner: Owner, home: str, server_name: str) -> None:
        self._loop = loop
        self._log = log
        self._owner = owner
        self._hubs = Hubs(home, owner.chance())
        self._server_name = server_name
        self._backoff = Backoff()
        self._channel: "Channel | None" = None
        self._streams: "Streams | None" = None
        self._closing: "Close | None" = None
        self._broken: "ChannelError | None" = None
        self._again = False
        self._answered = False
        self._served_s = 0.0
        self._welcomed = False
        self._ticket: "ssl.SSLSession | None" = None
        self._ticket_context: "ssl.SSLContext | None" = None
        self.session: "Any" = None
        self.task: "Task | None" = None
        self.state = "waiting"
        self.detail = ""
        self.since = loop.now()
        self.clone_at: "float | None" = None
        self.expired = False
        """The hub says that this node's certificate has ended, whatever the clock here shows."""
        self.on_state: "Callable[[], None]" = lambda: None

    def start(self) -> None:
        self.task = self._loop.spawn(self._run(), "link")

    def stopped(self) -> None:
        """The loop has been closed: nothing of this goes on."""
        self._enter("stopped")

    def again(self) -> None:
        """Ends a back-off, also one without end."""
        self._again = True
        self._loop.wake(self.task)

    @property
    def live(self) -> bool:
        return self.session is not None and self.session.state in ("live", "hold") and self._closing is None

    def perform(self, actions: "list[Any]") -> None:
        """Does what the session wants; safe from any task."""
        for action in actions:
            if isinstance(action, Send):
                self._queue(action.data)
            elif isinstance(action, Close):
                if self._closing is None:
                    self._closing = action
            elif isinstance(action, Stream):
                streams, error = self._streams, None
                if streams is not None:
                    error = streams.message(action.kind, action.stream, action.body)
                if error and self.session is not None:
                    self.perform(self.session.goodbye("protocol", error))
            else:
                if isinstance(action, Welcomed):
                    self._enter("held" if action.hold else "connected", action.hold)
                self._owner.perform(action)
        if actions and self._loop.current is not self.task:
            self._loop.wake(self.task)

    def _queue(self, data: bytes) -> None:
        if self._channel is None or self._broken is not None:
            return
        try:
            self._channel.send(data)
        except ChannelError as error:
            self._broken = error

    def _enter(self, state: str, detail: str = "") -> None:
        if (state, detail) != (self.state, self.detail):
            self.state, self.detail, self.since = state, detail, self._loop.now()
            self.on_state()

    def _run(self) -> "Generator[Wait, bool, None]":
        hubs = self._hubs
        while True:
            closed = yield from self._connection(hubs.next())
            if closed.code in ("expired", "returned"):
                self.expired = closed.code == "expired"
            if closed.code == "superseded" and not self._welcomed and self._owner.outdated():
                self._again = True
            if closed.to:
                if hubs.redirected(closed.to, self._served_s):
                    continue
                closed = Close("redirect", "redirected more than %d times" % REDIRECTS_MAX)
            elif hubs.ended(self._answered):
                self._log.warning("not connected: %s" % closed.message, code=closed.code)
                continue
            hubs.rested()
            yield from self._rest(closed)

    def _rest(self, closed: Close) -> "Generator[Wait, bool, None]":
        """Waits before the next attempt."""
        retry_s = closed.retry_s
        if closed.code == "clone":
            self.clone_at = self._loop.now()
            retry_s = CLONE_RETRY_S if retry_s is None else max(retry_s, CLONE_RETRY_MIN_S)
        until: "float | None" = None
        if retry_s is None:
            self._log.error(
                "the hub refuses this node (%s): %s; it stays offline and goes on running what it has"
                % (closed.code, closed.message)
            )
            self._enter("refused", "%s: %s" % (closed.code, closed.message))
        else:
            chance = self._owner.chance()
            delay = retry_s * (1 + chance / 5)
            if closed.code != "clone":
                # How long a clone has to be silent the hub reckons in the interval that it named: no longer one here.
                delay = max(self._backoff.next(chance), delay)
            self._log.warning("not connected: %s" % closed.message, code=closed.code, retry_s=round(delay, 1))
            self._enter("waiting", "%s: %s" % (closed.code, closed.message))
            until = self._loop.now() + delay
        while not self._again and (until is None or self._loop.now() < until):
            yield Wait(-1, 0, until)
        self._again = False

    def _connection(self, address: str) -> "Generator[Wait, bool, Close]":
        """One connection from start to end; why it ended."""
        self._enter("connecting", address)
        self._closing = self._broken = None
        self._answered, self._served_s = False, 0.0
        started = self._loop.now()
        patience_s = max(CONNECT_S / len(self._hubs), CONNECT_MIN_S)
        try:
            channel = self._channel = self._open(address)
            yield from channel.connect(*split_address(address), started + patience_s)
            return (yield from self._drive(channel))
        except ChannelError as error:
            return self._closing or Close(error.code, str(error))
        finally:
            self._end()

    def _open(self, address: str) -> Channel:
        try:
            split_address(address)
            context = self._owner.context()
            if context is not self._ticket_context:
                self._ticket, self._ticket_context = None, context  # a ticket belongs to its context
            return Channel(self._loop, context, self._server_name, self._ticket)
        except (OSError, ValueError) as error:  # the certificate's files, or a bad address
            raise ChannelError("failed", "cannot connect to %s: %s" % (address, error)) from error

    def _end(self) -> None:
        session = self.session
        if session is not None and session.welcomed_at is not None:
            self._served_s = self._loop.now() - session.welcomed_at
            if self._served_s >= session.heartbeat_s:
                self._backoff.reset()
        self.session = None
        if self._streams is not None:
            self._streams.close_all()
            self._streams = None
        if self._channel is not None:
            # A connection that got no WELCOME is no reason to trust its ticket.
            self._welcomed = session is not None and session.welcomed_at is not None
            self._ticket = self._channel.ticket() if self._welcomed else None
            self._channel.close()
            self._channel = None

    def _drive(self, channel: Channel) -> "Generator[Wait, bool, Close]":
        self._enter("handshaking")
        session = self.session = self._owner.new_session(channel.local_address)
        session.redirects, session.unreached = self._hubs.redirects, self._hubs.unreached
        streams = self._streams = Streams(
            self._loop, self._owner.logs, self._owner.inside, self._emit, self._has_room, self._owner.usage
        )
        decoder = wire.Decoder()
        self.perform(session.start(self._loop.now()))
        close_by: "float | None" = None
        while True:
            drained = channel.flush()
            if self._broken is not None:
                raise self._broken
            if self._closing is not None:
                close_by = close_by or self._loop.now() + CLOSE_S
                if drained or self._loop.now() >= close_by:
                    return self._closing
            elif self._has_room():
                streams.wake()
            yield from channel.wait(close_by or session.deadline())
            data = channel.receive()
            if self._closing is None:
                self._take(session, decoder, data)

    def _take(self, session: "Any", decoder: wire.Decoder, data: bytes) -> None:
        try:
            messages = decoder.feed(data) if data else []
        except wire.WireError as error:
            self.perform(session.goodbye("frame", str(error)))
            return
        for kind, stream, body in messages:
            self._answered = True
            self.perform(session.receive(kind, stream, body, self._loop.now()))
            self._owner.journal_session()
        if messages:
            self._owner.settle()
        self.perform(session.tick(self._loop.now()))

    def _emit(self, kind: int, stream: int, body: bytes) -> None:
        if self.session is not None:
            self.perform(self.session.stream(kind, stream, body))

    def _has_room(self) -> bool:
        return self._channel is not None and self._channel.out_bytes < STREAM_ROOM_BYTES

"""The bus over NATS: one client connection at a time, made anew for ever, that keeps nothing across a disconnect.

Job: `shards.bus.Bus` over nats-py. The library's own reconnecting is not used: it keeps what was published meanwhile and
sends it later, it gives up after some errors, and it notices a frozen server late. Here a connection is one client
object; when it has ended, or answers no PING for SILENT_S, it is thrown away with all that waited in it.

Who may publish: the servers decide, by the SPIFFE ID in the client's certificate (`verify_and_map`), as ARCHITECTURE.md
shows. Guarantees no delivery: `lost` says that messages may be missing.
"""

import asyncio
import contextlib
import logging
import random
import ssl
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Final

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import SlowConsumerError

from shards.bus import BusError, BusListener, Callback, Listeners, check_payload, logged

log = logging.getLogger(__name__)

CONNECT_S: Final = 3.0
CHECK_S: Final = 0.5
SILENT_S: Final = 1.0
"""How long one PING may take. Two in a row have to fail: the first may be our own loop that stood still."""
RETRY_S: Final = (0.1, 1.0)
CLOSE_S: Final = 1.0
SUBSCRIPTION_BYTES_MAX: Final = 64 << 20
SUBSCRIPTION_MESSAGES_MAX: Final = 100_000
OUT_BYTES_MAX: Final = 32 << 20
"""What waits to be sent; more is refused, and whoever sent it ends what it was for."""
SOCKET_BYTES_MAX: Final = 1 << 20
FAILURES: Final = (nats.errors.Error, OSError, TimeoutError, RuntimeError)
"""What the library raises for a connection that has ended; a closed transport of uvloop says RuntimeError."""


@dataclass(frozen=True, slots=True)
class NatsConfig:
    """Where the servers are and who we are to them.

    urls: nats:// or tls://, with user and password, or a token, where the servers want one.
    ca_file, cert_file, key_file: PEM; a CA alone verifies the servers, all three are mutual TLS.
    name: what the servers' monitoring shows for this replica.
    """

    urls: tuple[str, ...]
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("nats: no server is given; name at least one, such as nats://127.0.0.1:4222")
        for url in self.urls:
            if not url.startswith(("nats://", "tls://")):
                raise ValueError(
                    f"nats: {url!r} is no server's URL; write nats://host:4222 or tls://host:4222"
                )
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("nats: a client certificate needs its key, and a key its certificate")

    def tls(self) -> ssl.SSLContext | None:
        """A context for TLS, None for none. Raises BusError for files that cannot be used."""
        if not (self.ca_file or self.cert_file or any(u.startswith("tls://") for u in self.urls)):
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ssl.SSLError) as failure:
            raise BusError(f"nats: the certificate files cannot be used: {failure}") from failure
        return context


class _Client(Client):
    """The library's client, which drops what is unsent when it ends. Writing it to a transport that is closed already
    may raise, after which the library would neither end its subscriptions nor tell that the connection is lost."""

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self._pending = []
        self._pending_data_size = 0
        await super()._close(status, do_cbs)


class NatsBus:
    """See the module. `run` does the work; before it and after it the bus is not connected."""

    def __init__(self, config: NatsConfig) -> None:
        self._config = config
        self._tls = config.tls()
        self._listeners = Listeners()
        self._callbacks: dict[str, Callback] = {}
        self._active: dict[str, Any] = {}
        """The client's subscriptions, by subject."""
        self._client: Client | None = None
        self._out: deque[tuple[str, bytes]] = deque()
        self._out_bytes = 0
        self._wake = asyncio.Event()
        self._lost = asyncio.Event()
        self._turn = random.randrange(len(config.urls))  # noqa: S311 - spreads replicas over servers
        self._complained = ""
        self.connections = 0
        """Made so far."""
        self.slow = 0
        """Messages that were dropped since this process was too slow to take them."""
        self.refused = 0
        """Messages that `publish` has refused."""

    @property
    def connected(self) -> bool:
        return self._client is not None

    def publish(self, subject: str, data: bytes) -> bool:
        check_payload(data)
        if self._client is None or self._out_bytes + len(data) > OUT_BYTES_MAX:
            self.refused += 1
            return False
        self._out.append((subject, data))
        self._out_bytes += len(data)
        if len(self._out) == 1:
            self._wake.set()
        return True

    async def subscribe(self, subject: str, callback: Callback) -> None:
        if subject in self._callbacks:
            raise ValueError(f"{subject} is subscribed already")
        self._callbacks[subject] = callback
        client = self._client
        if client is None:
            return  # `returned` tells when it is in force
        try:
            await self._activate(client, subject)
            await client.flush(timeout=CONNECT_S)  # type: ignore[arg-type]  # any number will do
        except FAILURES as failure:
            log.info("NATS: subscribing %s failed, and is repeated on a new connection: %s", subject, failure)
            if self._client is client:
                self._lost.set()

    async def unsubscribe(self, subject: str) -> None:
        self._callbacks.pop(subject, None)
        subscription = self._active.pop(subject, None)
        if subscription is not None:
            with contextlib.suppress(*FAILURES):  # it ends with its connection at the latest
                await subscription.unsubscribe()

    def listen(self, listener: BusListener) -> None:
        self._listeners.add(listener)

    async def run(self) -> None:
        """Connects, and again whenever the connection is lost, until cancelled. Raises nothing else."""
        failures = 0
        while True:
            client = _Client()
            try:
                served = await self._serve(client)
            finally:
                self._drop(client)
                await _bounded_close(client)
            failures = 0 if served else failures + 1
            low, high = RETRY_S
            pause = min(high, low * 2 ** min(failures, 8))
            await asyncio.sleep(pause * (0.5 + 0.5 * random.random()))  # noqa: S311 - jitter

    async def _serve(self, client: Client) -> bool:
        """One connection from its beginning to its end. False: there was none."""
        self._lost = lost = asyncio.Event()
        url = self._config.urls[self._turn % len(self._config.urls)]
        self._turn += 1
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._connect(client, url, lost)
                for subject in list(self._callbacks):
                    await self._activate(client, subject)
                await client.flush(timeout=CONNECT_S)  # type: ignore[arg-type]  # any number will do
        except (*FAILURES, ValueError) as failure:
            self._complain(f"no NATS server at {_public(url)}: {failure or type(failure).__name__}")
            return False
        self._complained = ""
        self._client = client
        self.connections += 1
        try:
            for subject in set(self._callbacks) - set(self._active):
                await self._activate(client, subject)  # subscribed while the others were
        except FAILURES as failure:
            log.info("NATS: the connection to %s is lost again: %s", _public(url), failure)
            return True
        log.info("NATS: connected to %s", _public(url))
        self._listeners.returned()
        writer = asyncio.create_task(self._write(client), name="nats writer")
        try:
            await self._watch(client, lost, writer)
        finally:
            self._drop(
                client
            )  # first: the library may swallow the cancellation, and the writer must end all the same
            writer.cancel()
            await asyncio.wait([writer], timeout=CLOSE_S)
        log.warning("NATS: the connection to %s is lost", _public(url))
        return True

    async def _connect(self, client: Client, url: str, lost: asyncio.Event) -> None:
        async def ended() -> None:
            lost.set()

        async def failed(failure: Exception) -> None:
            if isinstance(failure, SlowConsumerError):
                self.slow += 1
                log.warning(
                    "NATS: messages on %s came faster than they were taken, one was dropped", failure.subject
                )
            elif "permissions violation" in str(failure).lower():
                log.error("NATS: %s; allow it to hub identities in the servers' configuration", failure)
            else:
                log.debug("NATS: %s", failure)

        options: dict[str, Any] = {"tls": self._tls} if self._tls is not None else {}
        await client.connect(
            servers=[url],
            name=self._config.name or None,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=3,  # CONNECT_S bounds it all
            error_cb=failed,
            disconnected_cb=ended,
            closed_cb=ended,
            pending_size=SOCKET_BYTES_MAX,
            **options,
        )

    async def _activate(self, client: Client, subject: str) -> None:
        if subject in self._active:
            return

        async def arrived(message: Msg) -> None:
            callback = self._callbacks.get(subject)
            # After `lost` was told nothing of the old connection may arrive.
            if callback is not None and self._client is client:
                with logged(f"the callback of {subject}"):
                    callback(message.subject, message.data)

        self._active[subject] = None
        subscription = await client.subscribe(
            subject,
            cb=arrived,
            pending_msgs_limit=SUBSCRIPTION_MESSAGES_MAX,
            pending_bytes_limit=SUBSCRIPTION_BYTES_MAX,
        )
        if subject in self._active:
            self._active[subject] = subscription

    async def _write(self, client: Client) -> None:
        while self._client is client:
            while self._out:
                subject, data = self._out.popleft()
                self._out_bytes -= len(data)
                await client.publish(subject, data)
            self._wake.clear()
            await self._wake.wait()

    async def _watch(self, client: Client, lost: asyncio.Event, writer: "asyncio.Task[None]") -> None:
        """Returns when the connection is of no use any more."""
        ended = asyncio.create_task(lost.wait(), name="nats lost")
        try:
            misses = 0
            while misses < 2:
                done, _ = await asyncio.wait(
                    [ended, writer], timeout=CHECK_S, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    if writer in done and not writer.cancelled() and writer.exception() is not None:
                        log.info("NATS: publishing failed: %s", writer.exception())
                    return
                misses = 0 if await _answers(client) else misses + 1
        finally:
            ended.cancel()

    def _drop(self, client: Client) -> None:
        self._active.clear()
        self._out.clear()
        self._out_bytes = 0
        if self._client is client:
            self._client = None
            self._listeners.lost()

    def _complain(self, text: str) -> None:
        """Once per kind of failure: a dead server is tried many times a minute."""
        log.log(logging.DEBUG if text == self._complained else logging.WARNING, "%s; trying again", text)
        self._complained = text


async def _answers(client: Client) -> bool:
    """Does the server answer a PING in time? Not `flush`: it cancels what it waits for, and a PONG that comes for that
    ends the library's reading task in silence, after which `flush` returns at once for ever."""
    reading = client._reading_task
    if reading is None or reading.done():
        return False
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    try:
        async with asyncio.timeout(SILENT_S):
            await client._send_ping(answer)
    except FAILURES:
        return False
    await asyncio.wait([answer], timeout=SILENT_S)
    return answer.done()


async def _bounded_close(client: Client) -> None:
    """A frozen server takes nothing and ends nothing: its socket is closed all the same."""
    closing: Awaitable[None] = client.close()
    try:
        async with asyncio.timeout(CLOSE_S):
            await closing
    except (*FAILURES, AssertionError, AttributeError) as failure:
        log.debug("NATS: the connection did not close in order: %r", failure)
    transport = client._transport
    if transport is not None:
        try:
            transport.close()  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError, AttributeError) as failure:
            log.debug("NATS: the socket was closed already: %r", failure)


def _public(url: str) -> str:
    """Without user, password or token."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"

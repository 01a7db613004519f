"""Identities from a SPIFFE Workload API: SPIRE's agent, or whoever else serves it.

The package `spiffe` reads the stream in a thread of its own; what comes is handed to the event loop. A stream that ends
is opened anew on a new channel, for ever: gRPC's own way back takes up to two minutes, and the package's overflows after
an hour. What was received last stays in use meanwhile, so that an agent that is away costs nothing until the SVID ends.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives import serialization

from security.spiffe.material import Material, SpiffeError, X509Svid, not_after

if TYPE_CHECKING:
    from spiffe.workloadapi.x509_context import X509Context

log = logging.getLogger(__name__)

RETRY_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses between attempts; the last one repeats."""
SILENT_S: Final = 10.0
"""A stream whose first message takes longer is given up: agents answer at once, with an identity or a refusal."""


class WorkloadSource:
    """See the module. `run` keeps it up to date; `first` waits for the first identity."""

    def __init__(self, socket: str, wanted: str) -> None:
        """`socket`: `unix:///path` or `tcp://ip:port`; `wanted`: the SPIFFE ID to use where several are given."""
        self.socket = socket
        self._wanted = wanted
        self.current: Material | None = None
        self.problem = "nothing was received yet"
        """Why there is no stream at this moment; "" where there is one."""
        self.updates = 0
        self._changed: list[Callable[[Material], None]] = []
        self._arrived = asyncio.Event()

    def subscribe(self, changed: Callable[[Material], None]) -> None:
        """`changed(material)` is called on the loop for every state after this call. It must not raise."""
        self._changed.append(changed)

    async def first(self, timeout_s: float) -> Material:
        """The first identity. Raises SpiffeError when none has come in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        except TimeoutError:
            raise SpiffeError(
                f"no identity from the Workload API at {self.socket} within {timeout_s:g} s: {self.problem}; is the agent"
                f" running, may this user open its socket, and is there a registration entry for {self._wanted}?"
            ) from None
        assert self.current is not None
        return self.current

    async def run(self) -> None:
        """Reads for ever."""
        failures = 0
        while True:
            before = self.updates
            self.problem = await self._stream()
            failures = 0 if self.updates > before else failures + 1
            pause_s = RETRY_S[min(failures, len(RETRY_S) - 1)]
            if failures in (0, 1, 5) or failures % 60 == 0:
                log.warning("the Workload API at %s: %s; trying again", self.socket, self.problem)
            await asyncio.sleep(pause_s)

    async def _stream(self) -> str:
        """One stream, from its opening to its end; why it ended."""
        from spiffe import WorkloadApiClient
        from spiffe.errors import PySpiffeError

        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        heard = asyncio.Event()

        def end(why: str) -> None:
            if not ended.done():
                ended.set_result(why)

        def took(context: "X509Context") -> None:
            # In the package's thread; parsing is done here, off the loop.
            try:
                material = from_context(context, self._wanted)
            except SpiffeError as wrong:
                loop.call_soon_threadsafe(end, str(wrong))
                return
            loop.call_soon_threadsafe(heard.set)
            loop.call_soon_threadsafe(self._took, material)

        def failed(failure: Exception) -> None:
            loop.call_soon_threadsafe(end, str(failure))

        try:
            client = await asyncio.to_thread(WorkloadApiClient, self.socket)
        except PySpiffeError as wrong:
            return str(wrong)
        handler = client.stream_x509_contexts(took, failed, retry_connect=False)
        first = asyncio.ensure_future(heard.wait())
        try:
            both: list[asyncio.Future[Any]] = [ended, first]
            await asyncio.wait(both, timeout=SILENT_S, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and not heard.is_set():
                return f"it says nothing for {SILENT_S:g} s"
            return await ended
        finally:
            first.cancel()
            handler.cancel()
            await asyncio.to_thread(client.close)

    def _took(self, material: Material) -> None:
        self.problem = ""
        self.updates += 1
        self.current = material
        self._arrived.set()
        for changed in self._changed:
            changed(material)


def from_context(context: "X509Context", wanted: str) -> Material:
    """The package's context as ours: of several SVIDs the one of `wanted`, else the first. Raises SpiffeError."""
    chosen = next((s for s in context.x509_svids if str(s.spiffe_id) == wanted), context.default_svid)
    der = serialization.Encoding.DER
    key = chosen.private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    bundles = {
        bundle.trust_domain.name: tuple(
            # The package has them as a set; the newest first, so that equal states are equal.
            sorted(
                (root.public_bytes(der) for root in bundle.x509_authorities),
                key=lambda one: (-not_after(one), one),
            )
        )
        for bundle in context.x509_bundle_set.bundles
    }
    chain = tuple(one.public_bytes(der) for one in chosen.cert_chain)
    return Material(X509Svid(str(chosen.spiffe_id), chain, key), bundles)

"""The SPIFFE Workload API, served: X.509-SVIDs of the embedded authority for processes on this machine.

Who a caller is, the kernel says (`attested`): its user is looked up in a configured table, and who is not in it gets
nothing. Streams stay open and send anew when the authority's roots change and when an SVID has reached half its life.
JWT-SVIDs are not issued. Source: SPIFFE Workload API, sections 3 to 5.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from security.spiffe.attested import AttestedSocket
from security.spiffe.material import X509Svid, life
from security.spiffe.proto import workload_pb2 as pb

SERVICE: Final = "SpiffeWorkloadAPI"
HEADER: Final = "workload.spiffe.io"
"""Metadata that every call carries, so that a web page cannot make a browser call."""
RPCS_MAX: Final = 256
STOP_S: Final = 1.0


class Issuer(Protocol):
    """The authority behind it."""

    def workload_svid(self, spiffe_id: str) -> X509Svid:
        """A new SVID with a new key."""
        ...

    def bundles(self) -> Mapping[str, tuple[bytes, ...]]:
        """Trust domain -> roots, DER; the own one and those that it is federated with."""
        ...


class WorkloadApi:
    """See the module. `changed` tells that the issuer's roots are other ones now."""

    def __init__(
        self,
        path: str,
        identities: Mapping[int, str],
        trust_domain: str,
        issuer: Issuer,
        group: str = "",
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._socket = AttestedSocket(path, group)
        self._identities = dict(identities)
        self._own = trust_domain
        self._issuer = issuer
        self._wall = wall
        self._server: Any = None
        self._turn = asyncio.Event()
        """Set, and replaced, at every change."""
        self._svids: dict[str, X509Svid] = {}

    async def start(self) -> None:
        """Serves. Raises SpiffeError, OSError."""
        self._socket.prepare()
        options = [("grpc.max_concurrent_streams", 16), ("grpc.max_receive_message_length", 65536)]
        self._server = grpc.aio.server(maximum_concurrent_rpcs=RPCS_MAX, options=options)
        self._server.add_generic_rpc_handlers((self._handlers(),))
        self._server.add_insecure_port("unix:" + self._socket.inner)
        await self._server.start()
        await self._socket.start()

    async def stop(self) -> None:
        """Ends every stream."""
        await self._socket.stop()
        if self._server is not None:
            await self._server.stop(STOP_S)

    def changed(self) -> None:
        """Every stream sends anew, with SVIDs made now."""
        self._svids.clear()
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    def _handlers(self) -> Any:
        def stream(call: Any, request: Any) -> Any:
            return grpc.unary_stream_rpc_method_handler(
                call, request.FromString, lambda answer: answer.SerializeToString()
            )

        refuse = grpc.unary_unary_rpc_method_handler(_no_jwt, bytes, bytes)
        refuse_stream = grpc.unary_stream_rpc_method_handler(_no_jwt_stream, bytes, bytes)
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "FetchX509SVID": stream(self._svid_stream, pb.X509SVIDRequest),
                "FetchX509Bundles": stream(self._bundle_stream, pb.X509BundlesRequest),
                "FetchJWTSVID": refuse,
                "ValidateJWTSVID": refuse,
                "FetchJWTBundles": refuse_stream,
            },
        )

    async def _svid_stream(self, _: pb.X509SVIDRequest, context: Any) -> AsyncIterator[pb.X509SVIDResponse]:
        spiffe_id = await self._attest(context)
        while True:
            turn = self._turn
            svid = self._current(spiffe_id)
            bundles = self._issuer.bundles()
            yield pb.X509SVIDResponse(
                svids=[
                    pb.X509SVID(
                        spiffe_id=spiffe_id,
                        x509_svid=b"".join(svid.chain),
                        x509_svid_key=_key_der(svid.key_pem),
                        bundle=b"".join(bundles[self._own]),
                    )
                ],
                federated_bundles={
                    f"spiffe://{domain}": b"".join(roots)
                    for domain, roots in bundles.items()
                    if domain != self._own
                },
            )
            await _either(turn, self._renew_at(svid) - self._wall())

    async def _bundle_stream(
        self, _: pb.X509BundlesRequest, context: Any
    ) -> AsyncIterator[pb.X509BundlesResponse]:
        await self._attest(context)
        while True:
            turn = self._turn
            bundles = self._issuer.bundles()
            yield pb.X509BundlesResponse(
                bundles={f"spiffe://{domain}": b"".join(roots) for domain, roots in bundles.items()}
            )
            await turn.wait()

    async def _attest(self, context: Any) -> str:
        """The caller's SPIFFE ID; ends the call where it has none."""
        if (HEADER, "true") not in (context.invocation_metadata() or ()):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"security header missing from request: {HEADER}: true"
            )
        uid = self._socket.uid_of(context.peer())
        spiffe_id = self._identities.get(uid) if uid is not None else None
        if spiffe_id is None:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"no identity issued: uid {uid} is not among the hub's workload_identity",
            )
        assert spiffe_id is not None
        return spiffe_id

    def _current(self, spiffe_id: str) -> X509Svid:
        """One SVID for all streams of an identity, until half its life is over."""
        held = self._svids.get(spiffe_id)
        if held is None or self._renew_at(held) <= self._wall():
            held = self._svids[spiffe_id] = self._issuer.workload_svid(spiffe_id)
        return held

    def _renew_at(self, svid: X509Svid) -> float:
        begin, end = life(svid.chain[0])
        return (begin + end) / 2


async def _either(event: asyncio.Event, timeout_s: float) -> None:
    """Until the event, or so many seconds."""
    try:
        async with asyncio.timeout(max(timeout_s, 0.0)):
            await event.wait()
    except TimeoutError:
        return


async def _no_jwt(_: bytes, context: Any) -> bytes:
    await context.abort(
        grpc.StatusCode.UNIMPLEMENTED,
        "the embedded authority issues no JWT-SVIDs; use X.509-SVIDs, or run the hub on SPIRE (--spiffe-socket)",
    )
    raise AssertionError("abort raises")


async def _no_jwt_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield await _no_jwt(request, context)


def _key_der(key_pem: str) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(key_pem.encode(), password=None)
    return key.private_bytes(s.Encoding.DER, s.PrivateFormat.PKCS8, s.NoEncryption())

"""The SPIFFE Workload API, of the embedded authority and of a real SPIRE: the same tests, with the package `spiffe` and with
this project's own source as clients."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest
from spiffe import WorkloadApiClient
from spiffe.workloadapi.errors import WorkloadApiError

from security.ca import CertificateAuthority
from security.spiffe.material import Material, SpiffeError, X509Svid, read_bundle, root_of
from security.spiffe.proto import workload_pb2 as pb
from security.spiffe.source import WorkloadSource
from security.spiffe.workloadapi import WorkloadApi
from tests.servers.spire import Spire

TD = "example.org"
ID = f"spiffe://{TD}/app/meter"
WAIT_S = 60.0


class Provider(Protocol):
    """A served Workload API and what an operator can do to it. All but `socket` block."""

    socket: str
    jwt: bool

    def allow(self) -> None:
        """This process's user is ID from now on."""

    def forbid(self) -> None:
        """It is nobody."""

    def add_root(self) -> None:
        """The trust domain has one root more."""


class Embedded:
    """The hub's own: see `security.spiffe.workloadapi`."""

    jwt = False

    def __init__(self, directory: Path) -> None:
        now = time.time()
        self._ca = CertificateAuthority.create(TD, now)
        self._roots = [self._ca.root_pem]
        self.ttl_s = 600.0
        self._path = directory / "workload.sock"
        self.socket = f"unix://{self._path}"
        self._loop = asyncio.get_running_loop()
        self._api: WorkloadApi | None = None

    def workload_svid(self, spiffe_id: str) -> X509Svid:
        cert, key = self._ca.issue_workload(spiffe_id, time.time(), self.ttl_s)
        return X509Svid(spiffe_id, read_bundle(cert.encode(), "an SVID"), key)

    def bundles(self) -> Mapping[str, tuple[bytes, ...]]:
        return {TD: read_bundle("".join(self._roots).encode(), "the roots")}

    def allow(self) -> None:
        self._serve({os.getuid(): ID})

    def forbid(self) -> None:
        self._serve({os.getuid() + 1: ID})

    def add_root(self) -> None:
        self._roots.append(CertificateAuthority.create(TD, time.time()).root_pem)
        assert self._api is not None
        self._loop.call_soon_threadsafe(self._api.changed)

    def _serve(self, identities: dict[int, str]) -> None:
        async def serve() -> None:
            await self.stop()
            self._api = WorkloadApi(str(self._path), identities, TD, self)
            await self._api.start()

        asyncio.run_coroutine_threadsafe(serve(), self._loop).result(WAIT_S)

    async def stop(self) -> None:
        if self._api is not None:
            await self._api.stop()


class OfSpire:
    """SPIRE's agent."""

    jwt = True

    def __init__(self, spire: Spire) -> None:
        self._spire = spire
        self.socket = spire.agent_socket
        self._entry = ""

    def allow(self) -> None:
        if not self._entry:
            self._entry = self._spire.entry(ID, uid=os.getuid())

    def forbid(self) -> None:
        if self._entry:
            self._spire.delete_entry(self._entry)
            self._entry = ""

    def add_root(self) -> None:
        self._spire.prepare()


@pytest.fixture(scope="module")
def spire() -> Iterator[Spire]:
    with Spire(TD) as made:
        yield made


@pytest.fixture(scope="module")
def of_spire(spire: Spire) -> OfSpire:
    return OfSpire(spire)


@pytest.fixture(params=["embedded", "spire"])
async def provider(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Provider]:
    if request.param == "spire":
        # One for all tests: an entry that is deleted counts for a moment longer, and whoever allows anew would see the old one.
        yield request.getfixturevalue("of_spire")
    else:
        embedded = Embedded(tmp_path)
        yield embedded
        await embedded.stop()


async def eventually(call: Callable[[], Any]) -> Any:
    """The first result of a blocking call that raises WorkloadApiError or SpiffeError until things have settled."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return await asyncio.to_thread(call)
        except (WorkloadApiError, SpiffeError, AssertionError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


@contextlib.contextmanager
def client(provider: Provider) -> Iterator[WorkloadApiClient]:
    made = WorkloadApiClient(provider.socket)
    try:
        yield made
    finally:
        made.close()


@contextlib.asynccontextmanager
async def source(provider: Provider) -> AsyncIterator[tuple[WorkloadSource, list[Material]]]:
    """A running source and all that it has received."""
    made, seen = WorkloadSource(provider.socket, ID), []  # type: tuple[WorkloadSource, list[Material]]
    made.subscribe(seen.append)
    running = asyncio.create_task(made.run())
    try:
        yield made, seen
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}"
        await asyncio.sleep(0.02)


async def test_a_caller_gets_its_identity_with_a_chain_to_the_bundle(provider: Provider) -> None:
    await asyncio.to_thread(provider.allow)
    with client(provider) as api:
        svid = await eventually(lambda: api.fetch_x509_svid(timeout=10))
    assert str(svid.spiffe_id) == ID
    async with source(provider) as (made, _):
        material = await made.first(WAIT_S)
        assert material.svid.spiffe_id == ID and material.trust_domain == TD
        root_of(material.svid.chain, material.own_bundle)
        assert "PRIVATE KEY" in material.svid.key_pem and material.svid.key_pem not in repr(material)


async def test_bundles_are_told_to_those_that_have_an_identity(provider: Provider) -> None:
    await asyncio.to_thread(provider.allow)
    with client(provider) as api:
        bundles = await eventually(lambda: api.fetch_x509_bundles(timeout=10))
    (bundle,) = bundles.bundles
    assert bundle.trust_domain.name == TD and bundle.x509_authorities


async def test_a_caller_without_an_identity_gets_nothing(provider: Provider) -> None:
    await asyncio.to_thread(provider.forbid)

    def refused() -> None:
        with client(provider) as api:
            for call in (api.fetch_x509_svid, api.fetch_x509_bundles):
                try:
                    call(timeout=10)
                except WorkloadApiError as told:
                    assert "PERMISSION_DENIED" in str(told) or "no identity issued" in str(told), told
                else:
                    raise AssertionError(f"{call.__name__} was answered")

    await eventually(refused)
    async with source(provider) as (made, seen):
        with pytest.raises(SpiffeError, match="is there a registration entry for spiffe:"):
            await made.first(0.5)
        assert not seen


async def test_a_call_without_the_header_is_invalid(provider: Provider) -> None:
    await asyncio.to_thread(provider.allow)
    async with grpc.aio.insecure_channel(provider.socket.replace("unix://", "unix:")) as channel:
        call = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"", timeout=10).read()
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_new_root_is_pushed_to_streams_that_are_open(provider: Provider) -> None:
    await asyncio.to_thread(provider.allow)
    async with source(provider) as (made, seen):
        before = await made.first(WAIT_S)
        await asyncio.to_thread(provider.add_root)
        await until(
            lambda: len(seen[-1].own_bundle) > len(before.own_bundle),
            "the new root is in the bundle",
        )
        assert set(before.own_bundle) < set(seen[-1].own_bundle)


async def test_a_new_root_is_pushed_to_who_only_verifies(provider: Provider) -> None:
    await asyncio.to_thread(provider.allow)
    with client(provider) as api:
        await eventually(lambda: api.fetch_x509_bundles(timeout=10))
    async with grpc.aio.insecure_channel(provider.socket.replace("unix://", "unix:")) as channel:
        call = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509Bundles", response_deserializer=pb.X509BundlesResponse.FromString
        )
        stream = call(b"", metadata=(("workload.spiffe.io", "true"),), timeout=WAIT_S)
        before = len((await stream.read()).bundles[f"spiffe://{TD}"])
        await asyncio.to_thread(provider.add_root)
        while len((await stream.read()).bundles[f"spiffe://{TD}"]) <= before:
            pass
        stream.cancel()


async def test_an_svid_is_replaced_before_it_ends(tmp_path: Path) -> None:
    """Of SPIRE's, tests/e2e/test_spire.py shows it."""
    provider = Embedded(tmp_path)
    provider.ttl_s = 3.0
    await asyncio.to_thread(provider.allow)
    try:
        async with source(provider) as (made, seen):
            first = await made.first(WAIT_S)
            await until(lambda: seen[-1].svid.chain != first.svid.chain, "another SVID")
            assert seen[-1].svid.key_pem != first.svid.key_pem
    finally:
        await provider.stop()


async def test_jwt_svids_are_refused_with_a_reason_where_there_are_none(provider: Provider) -> None:
    if provider.jwt:
        await asyncio.to_thread(provider.allow)
        with client(provider) as api:
            assert await eventually(lambda: api.fetch_jwt_svid({"aud"}, timeout=10))
        return
    await asyncio.to_thread(provider.allow)
    with client(provider) as api:
        with pytest.raises(WorkloadApiError, match="issues no JWT-SVIDs"):
            await asyncio.to_thread(lambda: api.fetch_jwt_svid({"aud"}, timeout=10))
        with pytest.raises(WorkloadApiError, match="issues no JWT-SVIDs"):
            await asyncio.to_thread(lambda: api.fetch_jwt_bundles(timeout=10))

"""The hub as a downstream authority of SPIRE: an intermediate of its own, by which it signs the nodes' certificates.

`fetch` asks the SPIRE server (API spire.api.server.svid.v1.SVID/NewDownstreamX509CA) with the hub's SVID, whose entry has
to say `downstream`. The server is known by its SPIFFE ID, `/spire/server`, which gRPC's own TLS cannot check: so gRPC
speaks in clear over a socket in a directory of mode 0700, and the TLS connection behind it is ours.
"""

import asyncio
import datetime
import os
import shutil
import ssl
import tempfile
from typing import Any, Final

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from security import keys
from security.ca import CertificateAuthority
from security.identity import NodeId
from security.keys import SigningKey
from security.spiffe import relay
from security.spiffe.material import Material, SpiffeError, life, load, pem_of, root_of
from security.spiffe.proto import svid_pb2 as pb
from security.tls import TLSError, mutual_client_context

METHOD: Final = "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA"
SERVER_PATH: Final = "/spire/server"
TIMEOUT_S: Final = 10.0


class Intermediate:
    """One authority below SPIRE's, its key in this process's memory alone: a restart asks for another one."""

    def __init__(self, chain: tuple[bytes, ...], key: SigningKey, trust_domain: str, root: bytes) -> None:
        """`chain`: DER, this authority first, without the root; `root`: what it leads to."""
        self.certificate = load(chain[0])
        self._authority = CertificateAuthority(self.certificate, key, trust_domain)
        self._above = pem_of(chain)
        self.root = root
        self.not_before, self.not_after = life(chain[0])
        self.trust_domain = trust_domain

    def issue_node(
        self, csr_pem: str, node: NodeId, now: float, ttl_s: float, not_before: float | None = None
    ) -> str:
        """Chain PEM: the node's certificate and what leads to the root. It ends with this authority. Raises BadRequest,
        CAError."""
        return self._authority.issue_node(csr_pem, node, now, ttl_s, not_before) + self._above


async def fetch(address: tuple[str, int], material: Material, ttl_s: float) -> Intermediate:
    """A new intermediate with a new key, of at most `ttl_s` seconds. Raises SpiffeError: not reachable, refused, or an
    answer that does not fit."""
    key = keys.generate(keys.P256)
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(f"spiffe://{material.trust_domain}")]
            ),
            critical=False,
        )
        .sign(key.signer, key.hash)
    )
    request = pb.NewDownstreamX509CARequest(
        csr=csr.public_bytes(serialization.Encoding.DER), preferred_ttl=int(ttl_s)
    )
    chain = tuple((await _call(address, material, request)).ca_cert_chain)
    if not chain or load(chain[0]).public_key() != key.public:
        raise SpiffeError("the SPIRE server answered with an authority for another key")
    # SPIRE puts its own root last where it signs itself.
    while len(chain) > 1 and chain[-1] in material.own_bundle:
        chain = chain[:-1]
    root = root_of(chain, material.own_bundle)
    return Intermediate(chain, key, material.trust_domain, root)


async def _call(
    address: tuple[str, int], material: Material, request: pb.NewDownstreamX509CARequest
) -> pb.NewDownstreamX509CAResponse:
    where = f"the SPIRE server at {address[0]}:{address[1]}"
    directory = tempfile.mkdtemp(prefix="cloudhub-")  # mode 0700
    try:
        async with asyncio.timeout(TIMEOUT_S):
            link = await _connect(address, material)
            answer: pb.NewDownstreamX509CAResponse = await _over(link, directory, request)
            return answer
    except TimeoutError:
        raise SpiffeError(f"{where} did not answer within {TIMEOUT_S:g} s") from None
    except (OSError, TLSError) as failure:  # also ssl.SSLError
        raise SpiffeError(f"{where} cannot be reached: {failure}") from failure
    except grpc.aio.AioRpcError as failure:
        told = f"{where} makes this hub no downstream authority: {failure.code().name}: {failure.details()}"
        if failure.code() == grpc.StatusCode.PERMISSION_DENIED:
            told += f"; give the entry of {material.svid.spiffe_id} the flag -downstream"
        raise SpiffeError(told) from failure
    finally:
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def _connect(
    address: tuple[str, int], material: Material
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """TLS to the server of our trust domain, and to nobody else of it."""
    context = mutual_client_context(
        pem_of(material.own_bundle), material.svid.chain_pem(), material.svid.key_pem
    )
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection(*address, ssl=context)
    wanted = f"spiffe://{material.trust_domain}{SERVER_PATH}"
    names = (writer.get_extra_info("peercert") or {}).get("subjectAltName", ())
    found = [value for kind, value in names if kind == "URI"]
    if found != [wanted]:
        await relay.close(writer)
        raise ssl.SSLCertVerificationError(
            f"its certificate names {', '.join(found) or 'nobody'}, not {wanted}"
        )
    return reader, writer


async def _over(link: tuple[asyncio.StreamReader, asyncio.StreamWriter], directory: str, request: Any) -> Any:
    """One unary call over a TLS connection that is there already."""
    path = os.path.join(directory, "grpc")
    taken: set[asyncio.Task[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if taken:  # gRPC's second try, on a link that has ended
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(relay.pump((reader, writer), link), name="relay")
        task.add_done_callback(lambda _: writer.close())  # also where it was ended before it began
        taken.add(task)

    server = await asyncio.start_unix_server(accepted, path)
    try:
        async with grpc.aio.insecure_channel("unix:" + path) as channel:
            call = channel.unary_unary(
                METHOD,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=pb.NewDownstreamX509CAResponse.FromString,
            )
            return await call(request, timeout=TIMEOUT_S)
    finally:
        server.close()
        for task in taken:
            task.cancel()
        await asyncio.gather(*taken, return_exceptions=True)
        await relay.close(link[1])


def renewal_time(intermediate: Intermediate) -> float:
    """When to ask for the next one, unix seconds: at half life, so that half of it is left for a server that is away."""
    return (intermediate.not_before + intermediate.not_after) / 2


def shown_time(unix_s: float) -> str:
    """For logs."""
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat(timespec="seconds")

"""Gives simulated nodes their identities: by joining, as agents do, or straight from an authority whose key lies here.

Keys are made by OpenSSL, a thousand times faster than by the agent's own arithmetic. How fast nodes may join is the hub's
to say (50 a second from one address and 100 with one token, after a burst), so that 10,000 nodes take some minutes the
first time; an authority issues thousands a second.
"""

import json
import random
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Final

from edgelite import jointoken, wire
from edgelite.credentials import EnrollError, hub_dns_name, verifying_context
from edgelite.desired import compact
from edgelite.enroll import parse_address, pinned_root
from edgelite.hubs import split_list
from hub.simulate.identities import IdentityCache, new_request
from security.ca import CertificateAuthority
from security.errors import SecurityError
from security.identity import NodeId

DEADLINE_S: Final = 120.0
"""For one node to be let in, its waiting for its turn included."""
ANSWER_S: Final = 10.0
JOINING_AT_ONCE: Final = 16
PAUSE_S: Final = 0.2
RETRY_S_MAX: Final = 5.0
ANSWER_BYTES_MAX: Final = 128 * 1024


class NotEnrolled(SecurityError):
    """The hub refused a join, or did not answer in time. The message says which node, and what was said."""


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where nodes join. edges: "host:port" each; root_pem: what the hub is verified by; sources: addresses of this machine
    to come from, () for the system's choice."""

    edges: Sequence[str]
    token: str
    root_pem: str
    server_name: str
    sources: Sequence[str] = ()

    @classmethod
    def of_token(cls, hub: str, token: str, sources: Sequence[str] = ()) -> "Entrance":
        """Asks a hub for the root that the token pins. Raises NotEnrolled."""
        try:
            ticket = jointoken.parse(token)
            addresses = [parse_address(one) for one in split_list(hub)]
            _, root = pinned_root(addresses, ticket, time.monotonic() + ANSWER_S)
        except (jointoken.TokenError, EnrollError) as refused:
            raise NotEnrolled(str(refused)) from refused
        return cls(split_list(hub), ticket.text(), root, hub_dns_name(ticket.trust_domain), sources)


@dataclass(frozen=True, slots=True)
class Joined:
    """chain, key, roots: PEM."""

    chain: str
    key: str
    roots: list[str]


def enrol(entrance: Entrance, name: str, deadline_s: float = DEADLINE_S) -> Joined:
    """Joins as `name` with a key of its own, at any of the addresses, and comes back when the hub says so. Raises
    NotEnrolled."""
    request, key = new_request()
    body = {
        "token": entrance.token,
        "csr": request,
        "name": name,
        "labels": {},
        "info": {"os": "sim", "arch": "sim"},
    }
    context = verifying_context([entrance.root_pem])
    deadline = time.monotonic() + deadline_s
    last = "no attempt"
    while time.monotonic() < deadline:
        edge = random.choice(entrance.edges)  # noqa: S311 - spreads load, no secret
        try:
            answer = _ask(context, entrance, edge, body)
        except OSError as failure:
            last = f"{edge}: {failure!r}"
            time.sleep(PAUSE_S)
            continue
        except (ValueError, EnrollError, wire.WireError) as wrong:
            raise NotEnrolled(f"{name}: {edge} does not speak the hub's protocol: {wrong}") from wrong
        if "cert" in answer:
            return Joined(str(answer["cert"]), key, [str(root) for root in answer["bundle"]])
        last = f"{edge}: {answer.get('reason') or answer.get('code')}: {answer.get('message')}"
        if answer.get("retry_s") is None:
            break
        time.sleep(min(float(answer["retry_s"]), RETRY_S_MAX))
    raise NotEnrolled(f"{name} was not let in: {last}")


def _ask(context: ssl.SSLContext, entrance: Entrance, edge: str, body: object) -> dict[str, Any]:
    """The body of JOINED or GOAWAY. Raises OSError, WireError, ValueError."""
    decoder = wire.Decoder(ANSWER_BYTES_MAX, ANSWER_BYTES_MAX)
    source = (random.choice(entrance.sources), 0) if entrance.sources else None  # noqa: S311 - as above
    with (
        socket.create_connection(parse_address(edge), timeout=ANSWER_S, source_address=source) as raw,
        context.wrap_socket(raw, server_hostname=entrance.server_name) as sock,
    ):
        sock.sendall(wire.message(wire.JOIN, compact(body)))
        while True:
            data = sock.recv(16384)
            if not data:
                raise ConnectionError("closed without an answer")
            for kind, _, answer in decoder.feed(data):
                if kind in (wire.JOINED, wire.GOAWAY):
                    fields: dict[str, Any] = json.loads(answer)
                    return fields


def join_all(
    cache: IdentityCache, entrance: Entrance, names: Sequence[str], progress: Callable[[int], None]
) -> None:
    """Joins all and keeps what they get, in order of the answers; `progress` is told how many are in. Raises the first
    NotEnrolled once those under way have ended; who was let in until then is kept."""
    with ThreadPoolExecutor(JOINING_AT_ONCE, thread_name_prefix="joining") as pool:
        jobs = {pool.submit(enrol, entrance, name): name for name in names}
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                joined = job.result()
                cache.save(jobs[job], joined.chain, joined.key)
                if done == 1:
                    cache.save_roots(joined.roots)
                progress(done)
        except BaseException:
            for job in jobs:
                job.cancel()
            raise


def issue_all(
    cache: IdentityCache,
    authority: CertificateAuthority,
    names: Sequence[str],
    progress: Callable[[int], None],
) -> None:
    """Issues for all without asking the hub, whose Nodes have to be made by somebody else."""
    cache.save_roots(authority.roots)
    now = time.time()
    for done, name in enumerate(names, 1):
        request, key = new_request()
        identity = NodeId(authority.trust_domain, "default", name, name)
        # With the root OpenSSL need not look for the chain in every handshake; what it sends is the same.
        cache.save(name, authority.issue_node(request, identity, now) + authority.root_pem, key)
        progress(done)

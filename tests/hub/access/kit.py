"""A hub's API with roles and tokens, and people with credentials for it.

async with access_hub() as hub:
    token = await hub.token("shop", "robot")
    await hub.ask("GET", "/api/v1/namespaces/shop/pods", token=token)
"""

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hub.access.authorizer import Authorizer
from hub.access.bootstrap import ensure_roles
from hub.access.keydocuments import KeyDocuments
from hub.access.keys import Keys as TokenKeys
from hub.access.keys import open_shared
from hub.access.roles import Roles
from hub.access.tokens import Tokens
from hub.deletion import ensure_namespaces
from hub.fleet.pages import Pages
from hub.objects import Keys
from hub.registry import Registry
from hub.store.memory import MemoryStore
from security.rbac import MASTERS, Request, User
from security.tls import api_server_context, client_context
from tests.hub import serving
from tests.hub.serving import Reply

DOMAIN = "cloudhub.local"
RBAC = "rbac.authorization.k8s.io"
SECRET = b"k" * 32
Object = dict[str, Any]
DAY = datetime.timedelta(days=1)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
DEADLINE_S = 30.0


class Authority:
    """Issues whatever it is asked for, unlike the real one."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"root {id(self)}")])
        self.identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        ) | dict.fromkeys(("encipher_only", "decipher_only"), False)  # fmt: skip
        builder = self._builder(self.name, self.key, -30 * DAY, 30 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(True, 0), True)
        builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), True)
        self.pem = pem(builder.add_extension(self.identifier, False).sign(self.key, hashes.SHA256()))

    def issue(
        self,
        cn: str = "",
        groups: Sequence[str] = (),
        uris: Sequence[str] = (),
        *,
        begins: datetime.timedelta = -DAY,
        ends: datetime.timedelta = DAY,
        usages: Sequence[x509.ObjectIdentifier] = (CLIENT,),
        ips: Sequence[str] = (),
    ) -> tuple[str, str]:
        """(certificate, key) as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        names += [x509.NameAttribute(NameOID.COMMON_NAME, cn)] if cn else []
        builder = self._builder(x509.Name(names), key, begins, ends)
        builder = builder.add_extension(x509.BasicConstraints(False, None), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
        san: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        san += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
        if san:
            builder = builder.add_extension(x509.SubjectAlternativeName(san), not names)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        found = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self.identifier), False
        ).sign(self.key, hashes.SHA256())
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem(found), text.decode()

    def _builder(
        self, subject: x509.Name, key: Any, begins: datetime.timedelta, ends: datetime.timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
        )


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


@dataclass
class AccessHub:
    """`hub`: the server behind it. Without a certificate or token `ask` is the administrator."""

    hub: serving.Hub
    registry: Registry
    roles: Roles
    tokens: Tokens
    keys: TokenKeys
    authority: Authority
    admin: ssl.SSLContext
    _contexts: dict[str, ssl.SSLContext] = field(default_factory=dict)

    @property
    def anybody(self) -> ssl.SSLContext:
        if "" not in self._contexts:
            self._contexts[""] = self.context()
        return self._contexts[""]

    def context(self, *identity: str) -> ssl.SSLContext:
        """A client that verifies the hub, with a certificate (certificate, key) or without."""
        return client_context(self.authority.pem, *identity)

    def user(self, name: str, *groups: str) -> ssl.SSLContext:
        if name not in self._contexts:
            self._contexts[name] = self.context(*self.authority.issue(name, groups))
        return self._contexts[name]

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Reply:
        sent = {**(headers or {}), "Content-Type": content_type}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        context = tls or (self.admin if token is None else self.anybody)
        async with (
            asyncio.timeout(DEADLINE_S),
            self.hub.http.request(
                method, self.hub.url + path, json=body, headers=sent, params=params, ssl=context
            ) as r,
        ):
            return Reply(r.status, r.headers, await r.read(), r.headers.getall("Warning", []))

    async def made(self, path: str, obj: Object) -> Object:
        """Creates as the administrator; returns when the policy knows it."""
        reply = await self.ask("POST", path, obj)
        assert reply.status == 201, reply.body
        found: Object = reply.json
        await self.roles.at_least(int(found["metadata"]["resourceVersion"]))
        return found

    async def namespace(self, name: str) -> None:
        await self.made("/api/v1/namespaces", {"metadata": {"name": name}})

    async def account(self, namespace: str, name: str) -> Object:
        return await self.made(
            f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}}
        )

    async def token(self, namespace: str, name: str, **spec: Any) -> str:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        reply = await self.ask("POST", path, {"spec": spec})
        assert reply.status == 201, reply.body
        return str(reply.json["status"]["token"])

    async def role(self, namespace: str, name: str, *rules: Object) -> None:
        """`namespace` "" makes a ClusterRole."""
        await self.made(rbac_path(namespace, "role"), {"metadata": {"name": name}, "rules": list(rules)})

    async def bind(self, namespace: str, role: str, subject: Object, *, cluster: bool = False) -> str:
        """Binds a Role of the namespace, or a ClusterRole; the binding's name."""
        name = f"{role}-{subject['name']}".replace(":", "-").replace("/", "-")
        kind = "ClusterRole" if cluster or not namespace else "Role"
        obj = {"metadata": {"name": name}, "roleRef": {"kind": kind, "name": role}, "subjects": [subject]}
        await self.made(rbac_path(namespace, "rolebinding"), obj)
        return name

    def refused(self) -> dict[str, int]:
        """The metric of refused requests, by reason."""
        lines = self.hub.metrics.prometheus().decode().splitlines()
        head = 'cloudhub_api_refused_total{reason="'
        found = (line.removeprefix(head).split('"} ') for line in lines if line.startswith(head))
        return {reason: int(float(count)) for reason, count in found}

    def may(self, user: User, verb: str, resource: str, namespace: str = "", **more: str) -> bool:
        return bool(
            Authorizer(self.roles.policy).reason(
                user, Request(verb, resource=resource, namespace=namespace, **more)
            )
        )


def rbac_path(namespace: str, what: str) -> str:
    """`what`: role or rolebinding."""
    base = f"/apis/{RBAC}/v1"
    return f"{base}/namespaces/{namespace}/{what}s" if namespace else f"{base}/cluster{what}s"


def rule(verbs: str, resources: str, group: str = "", names: str = "") -> Object:
    """Words with blanks between."""
    found: Object = {"verbs": verbs.split(), "apiGroups": [group], "resources": resources.split()}
    return {**found, "resourceNames": names.split()} if names else found


@contextlib.asynccontextmanager
async def access_hub(
    authority: Authority | None = None,
    store: Any = None,
    keys: TokenKeys | None = None,
    fleet: Callable[[Authorizer], Pages] | None = None,
    **options: Any,
) -> AsyncIterator[AccessHub]:
    """A hub over TLS whose only administrator is in system:masters. `keys`: by default those in the store. `fleet`: makes
    the fleet page. `options`: of `serving.hub`."""
    store = store or MemoryStore(slots=16)
    registry = Registry(store, Keys())
    await ensure_namespaces(registry)
    await ensure_roles(registry)
    roles = Roles(store, registry.keys)
    keys = keys or await open_shared(store, registry.keys.root, lambda: SECRET)
    running = [asyncio.create_task(work) for work in (roles.run(), keys.follow())]
    tokens = Tokens(keys, registry, roles, DOMAIN)
    authority = authority or Authority()
    authorizer = Authorizer(roles.policy)
    tls = api_server_context(
        *authority.issue("hub", usages=(SERVER, CLIENT), ips=["127.0.0.1"]), authority.pem
    )
    try:
        await roles.synced()
        async with serving.hub(
            store=store, tls=tls, authorizer=authorizer, tokens=tokens, fleet=fleet and fleet(authorizer),
            documents=KeyDocuments(keys, time.time).documents(), **options,
        ) as hub:  # fmt: skip
            admin = client_context(authority.pem, *authority.issue("root", [MASTERS]))
            yield AccessHub(hub, registry, roles, tokens, keys, authority, admin)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def until(condition: Any, what: str) -> None:
    """Returns once `condition()` is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.01)

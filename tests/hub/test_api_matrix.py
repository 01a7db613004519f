"""Nobody reaches what is not theirs through the API: every case of the matrix, tried at a real server over real TLS.

`api_matrix` says what must come out. Afterwards the store is as it was, and every attempt was counted with its reason.
"""

import asyncio
import contextlib
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import aiohttp
import pytest

from hub.access.authorizer import Authorizer, default_policy
from hub.objects import PODS, SERVICEACCOUNTS
from security import jwt, rbac_defaults
from security.jwt import Claims, Kubernetes, Named, SigningKey, SigningKeys
from security.rbac import RBAC_GROUP, Binding, Policy, Request, Role, RoleRef, Rule, Subject, User
from tests.hub import api_matrix
from tests.hub.access.kit import CLIENT, DAY, SERVER, AccessHub, Authority, access_hub, rule
from tests.hub.api_matrix import OTHER, OWN, Case, cases
from tests.hub.serving import pod

AT_ONCE = 16
CASES = cases()
ISSUER = "https://hub.cloudhub.local"


class Attempt(NamedTuple):
    """Who tries: with which credentials, and for which reason he is refused throughout ("": by his rights)."""

    name: str
    reason: str
    headers: dict[str, str]
    tls: ssl.SSLContext | None = None


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def content(hub: AccessHub) -> dict[str, bytes]:
    """All that the store holds."""
    page = await hub.registry.store.page("", "\x7f", limit=10_000)
    return {kv.key: kv.value for kv in page.items}


@contextlib.asynccontextmanager
async def fleet() -> AsyncIterator[AccessHub]:
    """Two namespaces with something in each, and whom `api_matrix` knows."""
    async with access_hub() as hub:
        for namespace in (OWN, OTHER):
            await hub.namespace(namespace)
            for name in ("tenant", "gone", "again", "mine"):
                await hub.account(namespace, name)
            await hub.made(f"/api/v1/namespaces/{namespace}/pods", pod("x", serviceAccountName="mine"))
            for kind in ("configmaps", "secrets"):
                await hub.made(f"/api/v1/namespaces/{namespace}/{kind}", {"metadata": {"name": "x"}})
        await hub.role(OWN, "all", {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})
        await hub.bind(OWN, "all", {"kind": "ServiceAccount", "name": "tenant", "namespace": OWN})
        await hub.role(OWN, "one", rule("get", "secrets", names="mine"))
        await hub.bind(OWN, "one", {"kind": "User", "name": "named", "apiGroup": RBAC_GROUP})
        for role in ("view", "edit"):
            user = {"kind": "User", "name": role, "apiGroup": RBAC_GROUP}
            await hub.bind(OWN, role, user, cluster=True)
        yield hub


async def unknown(hub: AccessHub) -> list[Attempt]:
    """Whom nobody knows: 401."""
    good = await hub.token(OWN, "tenant")
    gone, again = await hub.token(OWN, "gone"), await hub.token(OWN, "again")
    bound = await hub.token(OWN, "mine", boundObjectRef={"kind": "Pod", "name": "x"})
    accounts = f"/api/v1/namespaces/{OWN}/serviceaccounts"
    for name in ("gone", "again"):
        await hub.ask("DELETE", f"{accounts}/{name}")
    await hub.account(OWN, "again")
    await hub.registry.remove(PODS, await hub.registry.get(PODS, OWN, "x"))
    await hub.roles.at_least(await hub.registry.revision())
    now = time.time()
    tenant = await hub.registry.get(SERVICEACCOUNTS, OWN, "tenant")
    account = Named("tenant", tenant.obj()["metadata"]["uid"])

    def forged(keys: SigningKeys = hub.keys.current, **more: Any) -> dict[str, str]:
        base: dict[str, Any] = {
            "iss": ISSUER, "sub": jwt.username(OWN, "tenant"), "aud": [ISSUER], "exp": now + 900, "nbf": now, "iat": now,
            "kubernetes": Kubernetes(OWN, account),
        }  # fmt: skip
        return bearer(keys.sign(Claims(**{**base, **more})))

    head, body, signature = good.split(".")
    issue = hub.authority.issue
    root = {"cn": "root", "groups": ["system:masters"]}

    def shown(**certificate: Any) -> ssl.SSLContext:
        return hub.context(*issue(**certificate))

    node = "spiffe://cloudhub.local/node/default/n1/n1"
    return [
        Attempt("anonymous", "anonymous", {}),
        Attempt("Basic", "scheme", {"Authorization": "Basic cm9vdDpyb290"}),
        Attempt("empty bearer", "scheme", {"Authorization": "Bearer "}),
        Attempt("garbage", "token_malformed", bearer("x")),
        Attempt("no signature", "token_malformed", bearer(f"{head}.{body}.")),
        Attempt("signature of another token", "token_signature", bearer(f"{head}.{body}.{gone.split('.')[2]}")),
        Attempt("claims of another token", "token_signature", bearer(f"{head}.{gone.split('.')[1]}.{signature}")),
        Attempt("foreign key", "token_unknown_key", forged(SigningKeys([SigningKey.make()]))),
        Attempt("expired token", "token_expired", forged(exp=now - 1)),
        Attempt("not yet valid token", "token_not_yet_valid", forged(nbf=now + 600)),
        Attempt("wrong audience", "token_audience", forged(aud=["vault"])),
        Attempt("wrong issuer", "token_issuer", forged(iss="https://hub.evil.local")),
        Attempt("subject of another", "token_malformed", forged(sub="system:serviceaccount:own:admin")),
        Attempt("account of another uid", "token_account_gone", forged(kubernetes=Kubernetes(OWN, Named("tenant", "0")))),
        Attempt("deleted account", "token_account_gone", bearer(gone)),
        Attempt("account that was made anew", "token_account_gone", bearer(again)),
        Attempt("pod that is gone", "token_bound_gone", bearer(bound)),
        Attempt("node certificate", "certificate_no_user", bearer(good), shown(groups=["CloudHub node"], uris=[node])),
        Attempt("node that calls itself root", "certificate_no_user", {}, shown(**root, uris=[node])),
        Attempt(
            "hub certificate", "certificate_no_user", {},
            shown(groups=["CloudHub hub"], uris=["spiffe://cloudhub.local/hub/h1"], usages=(SERVER, CLIENT)),
        ),
        Attempt("relay", "certificate_no_user", {}, shown(**root, uris=["spiffe://cloudhub.local/relay/berlin"])),
        Attempt("two users", "certificate_no_user", {}, shown(**root, uris=["spiffe://cloudhub.local/user/bob"])),
        Attempt(
            "two identities", "certificate_no_user", {},
            shown(**root, uris=["spiffe://cloudhub.local/user/root", node]),
        ),
        Attempt("tricky identity", "certificate_no_user", {}, shown(**root, uris=["spiffe://cloudhub.local/user/../user/root"])),
        Attempt("SPIFFE in upper case", "certificate_no_user", {}, shown(**root, uris=["SPIFFE://cloudhub.local/node/a/b/c"])),
        Attempt("user of another trust domain", "certificate_no_user", {}, shown(**root, uris=["spiffe://evil.local/user/root"])),
        Attempt("certificate without a name", "certificate_no_user", {}, shown(groups=["system:masters"])),
    ]  # fmt: skip


def known(hub: AccessHub, token: str) -> list[tuple[Attempt, Callable[[Case], bool]]]:
    """Whom the hub knows, and what each may: 403 for the rest."""
    return [
        (Attempt("nobody in particular", "", {}, hub.user("somebody")), api_matrix.may_anybody),
        (Attempt("tenant", "", bearer(token)), api_matrix.may_tenant),
        (Attempt("view", "", {}, hub.user("view")), api_matrix.may_viewer),
        (Attempt("edit", "", {}, hub.user("edit")), api_matrix.may_editor),
        (Attempt("named", "", {}, hub.user("named")), api_matrix.may_named),
        (
            Attempt("administrator who acts for nobody", "", {"Impersonate-User": "somebody"}, hub.admin),
            api_matrix.may_anybody,
        ),
    ]


async def attempts(hub: AccessHub, who: Attempt, wanted: list[Case]) -> list[tuple[Case, int]]:
    """(case, status code) of each."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def one(case: Case) -> tuple[Case, int]:
        async with at_once:
            reply = await hub.ask(
                case.method, case.url, {} if case.method != "GET" else None, headers=who.headers, tls=who.tls or hub.anybody
            )  # fmt: skip
            return case, reply.status

    return await asyncio.gather(*(one(case) for case in wanted))


async def test_no_case_of_the_matrix_passes_and_each_is_counted() -> None:
    async with fleet() as hub:
        strangers = await unknown(hub)
        token = await hub.token(OWN, "tenant")
        before, counted = await content(hub), hub.refused()
        tried: Counter[str] = Counter()
        for i, who in enumerate(strangers):
            # Who asks is known before what for: a quarter of the cases each is enough, and each case has its turn.
            some = CASES[i % 4 :: 4]
            for case, code in await attempts(hub, who, some):
                assert code == 401, (who.name, case)
            tried[who.reason] += len(some)
        for who, may in known(hub, token):
            refused = [case for case in CASES if not may(case)]
            assert len(refused) > 30
            for case, code in await attempts(hub, who, refused):
                assert code == 403, (who.name, case)
            tried["no_right"] += len(refused)
        assert await content(hub) == before
        now = hub.refused()
        assert {reason: now[reason] - counted.get(reason, 0) for reason in tried} == tried
        assert sum(tried.values()) > 2000


async def test_whom_tls_refuses_never_asks_anything_and_is_counted() -> None:
    async with access_hub() as hub:
        stranger = Authority()
        root: dict[str, Any] = {"cn": "root", "groups": ["system:masters"]}
        issue = hub.authority.issue
        tries = {
            "tls_unknown": [stranger.issue(**root), stranger.issue(**root)],
            "tls_expired": [issue(**root, begins=-2 * DAY, ends=-DAY / 24)],
            "tls_not_yet_valid": [issue(**root, begins=DAY / 24, ends=DAY)],
            "tls_usage": [issue(**root, usages=(SERVER,))],
        }
        before = await content(hub)
        for reason, identities in tries.items():
            for identity in identities:
                with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
                    await hub.ask("POST", "/api/v1/namespaces", {}, tls=hub.context(*identity))
            assert hub.refused()[reason] == len(identities)
        assert await content(hub) == before


USERS = {
    api_matrix.may_anybody: User("somebody", ("system:authenticated",)),
    api_matrix.may_tenant: User(
        "system:serviceaccount:own:tenant", ("system:serviceaccounts", "system:authenticated")
    ),
    api_matrix.may_viewer: User("view", ("system:authenticated",)),
    api_matrix.may_editor: User("edit", ("system:authenticated",)),
}
UNKNOWN = User("system:anonymous", ("system:unauthenticated",))


def matrix_policy() -> Policy:
    """As `fleet` makes it."""
    policy = default_policy()
    policy.put_role(Role(OWN, "all", (Rule(("*",), ("*",), ("*",)),)))
    policy.put_binding(
        Binding(OWN, "all", RoleRef("Role", "all"), (Subject("ServiceAccount", "tenant", OWN),))
    )
    for role in ("view", "edit"):
        policy.put_binding(Binding(OWN, role, RoleRef("ClusterRole", role), (Subject("User", role),)))
    return policy


def differences(policy: Policy) -> Iterator[tuple[str, Case]]:
    """Cases in which the policy says something else than `api_matrix`."""
    authorizer = Authorizer(policy)
    for case in CASES:
        wanted = Request(
            case.verb,
            case.group,
            case.resource,
            case.subresource,
            case.scope if case.resource == "namespaces" else case.namespace,
            case.name,
            case.path,
        )
        for may, user in USERS.items():
            if bool(authorizer.reason(user, wanted)) != may(case):
                yield user.name, case
        if authorizer.reason(UNKNOWN, wanted):
            yield UNKNOWN.name, case


def test_the_policy_says_what_the_matrix_says() -> None:
    assert list(differences(matrix_policy())) == []


def mutations() -> list[Any]:
    """Every default role widened by each resource of the matrix, and given to everybody or to anonymous callers."""
    found: list[Any] = []
    for role in rbac_defaults.cluster_roles():
        name = role["metadata"]["name"]
        for group in ("system:authenticated", "system:unauthenticated"):
            bound = [b for b in rbac_defaults.cluster_role_bindings() if b["roleRef"]["name"] == name]
            if not any(subject["name"] == group for b in bound for subject in b["subjects"]):
                found.append((name, group))
    everything = [*api_matrix.NAMESPACED, *api_matrix.CLUSTER]
    # Bound in a namespace, `view` and `edit` give nothing of what is in none.
    found += [
        (role, Rule((verb,), (group,), (resource,)))
        for role, reached in (
            ("system:basic-user", everything),
            ("system:discovery", everything),
            ("view", api_matrix.NAMESPACED),
            ("edit", api_matrix.NAMESPACED),
        )
        for group, resource in reached
        for verb in api_matrix.VERBS
    ]
    return found


def test_a_default_role_that_is_widened_or_given_to_more_makes_a_case_fail() -> None:
    unseen = []
    for name, change in mutations():
        policy = matrix_policy()
        if isinstance(change, str):
            policy.put_binding(Binding("", "more", RoleRef("ClusterRole", name), (Subject("Group", change),)))
        else:
            role = policy.role("", name if name not in ("view", "edit") else f"system:aggregate-to-{name}")
            assert role is not None
            old = policy.rules_of(RoleRef("ClusterRole", name), "")
            if any(rule == change or _within(change, rule) for rule in old or ()):
                continue  # no change
            policy.put_role(Role("", role.name, (*role.rules, change), role.labels))
        if next(differences(policy), None) is None:
            unseen.append((name, change))
    assert unseen == []


def _within(inner: Rule, outer: Rule) -> bool:
    return (
        inner.verbs[0] in outer.verbs
        and inner.apiGroups[0] in outer.apiGroups
        and inner.resources[0] in outer.resources
    )

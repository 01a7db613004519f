"""What a decision about a request costs, by CPU time of this process: roles, tokens, audit events.

    python -m tests.bench.access

The policy holds the default roles and 2,000 roles and bindings in 200 namespaces.
"""

import time
from collections.abc import Callable

from hub.access.auditpolicy import parse
from hub.access.authorizer import Authorizer, default_policy
from security import jwt
from security.jwt import Claims, Kubernetes, Named, SigningKey, SigningKeys
from security.rbac import MASTERS, Binding, Policy, Request, Role, RoleRef, Rule, Subject, User
from tests.bench.report import emit

BINDINGS = 2000
NAMESPACES = 200
ROUNDS = 5
EVERYBODY = "system:authenticated"


def cpu_us(job: Callable[[], object], times: int) -> float:
    """CPU of one run in µs: the least of several rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(times):
            job()
        best = min(best, time.process_time() - began)
    return best / times * 1e6


def policy() -> Policy:
    made = default_policy()
    for n in range(BINDINGS):
        at = f"ns{n % NAMESPACES}"
        made.put_role(Role(at, f"r{n}", (Rule(("get", "list"), ("",), ("pods",)),)))
        made.put_binding(Binding(at, f"b{n}", RoleRef("Role", f"r{n}"), (Subject("User", f"u{n}"),)))
    made.put_binding(Binding("", "adm", RoleRef("ClusterRole", "admin"), (Subject("User", "adm"),)))
    return made


def main() -> None:
    authorizer = Authorizer(policy())
    pods = Request("get", "", "pods", "", "ns1", "a")
    for name, user, wanted in (
        ("master", User("root", (MASTERS,)), pods),
        ("by a role of the namespace", User("u1", (EVERYBODY,)), pods),
        (
            "by an aggregated role",
            User("adm", (EVERYBODY,)),
            Request("patch", "apps", "deployments", "", "ns1", "a"),
        ),
        ("refused", User("u1", (EVERYBODY,)), Request("get", "", "secrets", "", "ns1", "a")),
        ("refused, five groups", User("adm", ("a", "b", "c", "d", EVERYBODY)), Request("get", "", "nodes")),
    ):
        emit(
            "access",
            f"decision: {name}",
            cpu_us(lambda u=user, w=wanted: authorizer.reason(u, w), 5000),
            "us CPU",
            20,
        )  # type: ignore[misc]
    keys = SigningKeys([SigningKey.make()])
    account = Kubernetes("shop", Named("robot", "u"))
    token = keys.sign(Claims("i", jwt.username("shop", "robot"), ["i"], 2e9, 0, 0, account, "x"))
    emit("access", "token: signature checked", cpu_us(lambda: keys.verify(token, 1e9), 200), "us CPU")
    rules = [{"level": "None", "users": [f"u{n}"], "verbs": ["watch"]} for n in range(20)]
    audit = parse(
        {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [*rules, {"level": "Metadata"}]}
    )
    emit("access", "audit: level by 21 rules", cpu_us(lambda: audit.decide(User("u1"), pods), 5000), "us CPU")


if __name__ == "__main__":
    main()

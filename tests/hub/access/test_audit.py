"""The audit log: what the policy wants is told, never a secret, without holding anybody up."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from hub.access.auditlog import AuditFile, AuditLog, read_policy
from hub.access.auditpolicy import Policy, PolicyError, parse
from hub.api.auditing import Auditor
from hub.config import ConfigError
from observability.metrics import Series
from security.rbac import Request, User
from tests.hub.access.kit import access_hub, until

JANE = User("jane", ("dev", "system:authenticated"))


def policy(*rules: Any, **more: Any) -> Policy:
    return parse({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": list(rules), **more})


GET = Request("get", "", "pods", "", "shop", "a")


@pytest.mark.parametrize(
    ("rule", "wanted", "told"),
    [
        ({}, GET, True),
        ({"users": ["jane"]}, GET, True),
        ({"users": ["bob"]}, GET, False),
        ({"userGroups": ["dev"]}, GET, True),
        ({"userGroups": ["ops"]}, GET, False),
        ({"verbs": ["get", "list"]}, GET, True),
        ({"verbs": ["list"]}, GET, False),
        ({"namespaces": ["shop"]}, GET, True),
        ({"namespaces": [""]}, GET, False),
        ({"namespaces": [""]}, Request("get", "", "nodes"), True),
        ({"resources": [{"group": ""}]}, GET, True),
        ({"resources": [{"group": "apps"}]}, GET, False),
        ({"resources": [{"resources": ["pods"]}]}, GET, True),
        ({"resources": [{"resources": ["pods"]}]}, Request("get", "", "pods", "log", "shop", "a"), False),
        ({"resources": [{"resources": ["pods/log"]}]}, Request("get", "", "pods", "log", "shop", "a"), True),
        ({"resources": [{"resources": ["*/log"]}]}, Request("get", "", "pods", "log", "shop", "a"), True),
        ({"resources": [{"resources": ["pods/*"]}]}, Request("get", "", "pods", "exec", "shop", "a"), True),
        ({"resources": [{"resources": ["pods"], "resourceNames": ["b"]}]}, GET, False),
        ({"nonResourceURLs": ["/api*"]}, Request("get", path="/apis/apps"), True),
        ({"nonResourceURLs": ["/api*"]}, Request("get", path="/metrics"), False),
        ({"nonResourceURLs": ["*"]}, GET, False),
        ({"resources": [{"group": ""}]}, Request("get", path="/api"), False),
    ],
)
def test_a_rule_matches_as_in_kubernetes(rule: Any, wanted: Request, told: bool) -> None:
    level, _ = policy({"level": "Request", **rule}).decide(JANE, wanted)
    assert level == ("Request" if told else "None")


def test_the_first_rule_that_matches_decides() -> None:
    found = policy(
        {"level": "None", "users": ["jane"]},
        {"level": "Metadata", "omitStages": ["ResponseStarted"]},
        omitStages=["RequestReceived"],
    )
    assert found.decide(JANE, GET)[0] == "None"
    assert found.decide(User("bob"), GET) == ("Metadata", frozenset(("RequestReceived", "ResponseStarted")))


@pytest.mark.parametrize(
    "wanted",
    [
        Request("create", "", "secrets", "", "shop"),
        Request("create", "", "serviceaccounts", "token", "shop", "a"),
        Request("create", "authentication.k8s.io", "tokenreviews"),
        Request("create", "cloudhub.dev", "jointokens"),
        Request("post", path="/cloudhub/users"),
    ],
)
def test_no_policy_brings_a_secrets_body_into_the_log(wanted: Request) -> None:
    assert policy({"level": "RequestResponse"}).decide(JANE, wanted)[0] == "Metadata"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "object"),
        ({"apiVersion": "v1", "kind": "Policy", "rules": [{"level": "None"}]}, "audit.k8s.io/v1"),
        ({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": []}, "0 rules"),
        ({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "All"}]}, "rules[0].level"),
        ({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "None", "x": 1}]}, "`x`"),
        (
            {
                "apiVersion": "audit.k8s.io/v1",
                "kind": "Policy",
                "rules": [{"level": "None"}],
                "omitStages": ["A"],
            },
            "'A'",
        ),
    ],
)
def test_a_policy_that_is_not_understood_is_refused_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse(value)
    assert words in str(refused.value)


def test_a_policy_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_policy(str(tmp_path / "none"))
    (tmp_path / "bad").write_text("a: [")
    with pytest.raises(ConfigError, match="no YAML"):
        read_policy(str(tmp_path / "bad"))


def audit_log(tmp_path: Path, **more: Any) -> tuple[AuditLog, Series, Series]:
    written, lost = Series(), Series()
    return AuditLog(AuditFile(str(tmp_path / "audit.log"), **more), written, lost), written, lost


def test_the_log_is_rotated_and_its_oldest_files_go(tmp_path: Path) -> None:
    log, written, lost = audit_log(tmp_path, size=1000, keep=2)
    log.start()
    for n in range(40):
        # Each waits for the one before, so that each is a write of its own.
        log.put(lambda n=n: json.dumps({"n": n, "x": "y" * 80}).encode(), 100)
        while written.value <= n:
            threading.Event().wait(0.001)
    log.stop()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert all(file.stat().st_mode & 0o777 == 0o600 and file.stat().st_size <= 1000 for file in files)
    rotated = [file for file in files if file.name != "audit.log"]
    numbers = [
        json.loads(line)["n"]
        for file in (*rotated, tmp_path / "audit.log")
        for line in file.read_text().splitlines()
    ]
    assert numbers == list(range(40 - len(numbers), 40))
    assert (written.value, lost.value) == (40, 0)


def test_what_the_disk_does_not_take_in_time_is_lost_and_counted_not_waited_for(tmp_path: Path) -> None:
    log, written, lost = audit_log(tmp_path)
    held = threading.Event()
    log.start()
    log.put(lambda: b"1" if held.wait(30) else b"", 10)  # the writer is busy with it
    taken = sum(log.put(lambda: b"2", 1 << 20) for _ in range(40))
    assert taken < 20
    assert lost.value == 40 - taken
    held.set()
    log.stop()
    assert written.value == 1 + taken


def test_a_record_that_cannot_be_made_or_written_is_lost_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, written, lost = audit_log(tmp_path)
    log.start()
    log.put(lambda: 1 / 0, 1)  # type: ignore[arg-type, return-value]
    log.put(lambda: b"{}", 1)
    log.stop()
    assert (written.value, lost.value) == (1, 1)


async def test_requests_are_told_as_the_policy_wants_and_no_secret_is_in_the_log(tmp_path: Path) -> None:
    log, written, lost = audit_log(tmp_path)
    log.start()
    wanted = policy(
        {"level": "None", "nonResourceURLs": ["*"]},
        {"level": "RequestResponse", "resources": [{"group": ""}, {"group": "authentication.k8s.io"}]},
        omitStages=["RequestReceived"],
    )
    async with access_hub(auditor=Auditor(wanted, log)) as hub:
        await hub.account("default", "robot")
        maps, secrets = "/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/default/secrets"
        await hub.ask("POST", maps, {"metadata": {"name": "a"}, "data": {"k": "in\nclear"}})
        await hub.ask("POST", secrets, {"metadata": {"name": "s"}, "stringData": {"k": "PLANTED"}})
        await hub.ask("GET", secrets)
        token = await hub.token("default", "robot")
        await hub.ask("POST", "/apis/authentication.k8s.io/v1/tokenreviews", {"spec": {"token": token}})
        await hub.ask("GET", maps, token=token)
        await hub.ask("GET", maps, token="x.y.z")
        await hub.ask("GET", maps, headers={"Impersonate-User": "bob"})
        big = {"metadata": {"name": "big"}, "data": {"k": "x" * 300_000}}
        await hub.ask("POST", maps, big)
        await hub.ask("GET", "/version")
    log.stop()
    text = (tmp_path / "audit.log").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    assert lost.value == 0
    assert written.value == len(events)
    for secret in ("PLANTED", "UExBTlRFRA", token, token.split(".")[2]):
        assert secret not in text
    made = next(
        e for e in events if e["verb"] == "create" and e.get("objectRef", {}).get("resource") == "configmaps"
    )
    assert made["requestObject"]["data"] == {"k": "in\nclear"}
    assert made["responseObject"]["metadata"]["name"] == "a"
    assert made["user"]["groups"] == ["system:masters", "system:authenticated"]
    assert {e["level"] for e in events if e.get("objectRef", {}).get("resource") == "secrets"} == {"Metadata"}
    codes = [(e["user"]["username"], e["responseStatus"]["code"]) for e in events if e["verb"] == "list"]
    assert ("system:serviceaccount:default:robot", 403) in codes
    assert any(e.get("impersonatedUser", {}).get("username") == "bob" for e in events)
    long = next(e for e in events if e.get("annotations", {}).get("audit.k8s.io/truncated"))
    assert "requestObject" not in long
    assert not any(e["requestURI"] == "/version" for e in events)


async def test_a_watch_is_told_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    log, written, _ = audit_log(tmp_path)
    log.start()
    async with access_hub(auditor=Auditor(policy({"level": "Metadata", "verbs": ["watch"]}), log)) as hub:
        url = hub.hub.url + "/api/v1/configmaps?watch=1"
        async with hub.hub.http.get(url, ssl=hub.admin) as open_watch:
            assert open_watch.status == 200
            await until(lambda: written.value == 2, "received and started are told")
        await until(lambda: written.value == 3, "its end is told")
    log.stop()
    events = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [e["stage"] for e in events] == ["RequestReceived", "ResponseStarted", "ResponseComplete"]
    assert len({e["auditID"] for e in events}) == 1

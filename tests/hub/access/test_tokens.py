"""Tokens of service accounts at a real server: whom they are, and when they end."""

import time
from typing import Any

import pytest

from hub.access import tokens as tokens_module
from hub.access.keys import MARGIN_S, open_alone, open_shared, signing_keys_key
from hub.access.tokens import Tokens
from hub.certpaths import SIGNERS_PATH, SIGNERS_ROTATION_PATH
from hub.objects import PODS
from hub.store.memory import MemoryStore
from security import tokenkeys
from security.jwt import KEYS_MAX, LIFE_S_MAX, SigningKey, SigningKeys
from security.sealed import KeyFileError
from shards.kv import Put
from tests.hub.access.kit import DOMAIN, SECRET, AccessHub, access_hub, rule
from tests.hub.serving import pod

WHO = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


async def who(hub: AccessHub, token: str) -> Any:
    """(status, user or message) as the API tells the token's bearer."""
    reply = await hub.ask("POST", WHO, {}, token=token)
    return (201, reply.json["status"]["userInfo"]) if reply.status == 201 else (reply.status, reply.message)


async def test_a_token_is_its_account_and_may_what_is_bound_to_it() -> None:
    async with access_hub() as hub:
        account = await hub.account("default", "robot")
        token = await hub.token("default", "robot")
        code, user = await who(hub, token)
        assert (code, user["username"]) == (201, "system:serviceaccount:default:robot")
        assert user["uid"] == account["metadata"]["uid"]
        assert "system:serviceaccounts:default" in user["groups"]
        path = "/api/v1/namespaces/default/configmaps"
        assert (await hub.ask("GET", path, token=token)).status == 403
        await hub.role("default", "reader", rule("list", "configmaps"))
        await hub.bind(
            "default", "reader", {"kind": "ServiceAccount", "name": "robot", "namespace": "default"}
        )
        assert (await hub.ask("GET", path, token=token)).status == 200
        assert (await hub.ask("GET", "/api/v1/configmaps", token=token)).status == 403


async def test_a_token_ends_with_its_account_even_when_one_of_the_same_name_is_made() -> None:
    async with access_hub() as hub:
        await hub.account("default", "robot")
        token = await hub.token("default", "robot")
        assert (await who(hub, token))[0] == 201
        await hub.ask("DELETE", "/api/v1/namespaces/default/serviceaccounts/robot")
        await hub.roles.at_least(await hub.registry.revision())
        assert await who(hub, token) == (401, "the token's service account is gone")
        await hub.account("default", "robot")
        assert (await who(hub, token))[0] == 401
        assert hub.refused()["token_account_gone"] == 2


async def test_a_token_ends_with_the_pod_that_it_is_bound_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "BOUND_S", 0.0)
    async with access_hub() as hub:
        await hub.account("default", "robot")
        await hub.made("/api/v1/namespaces/default/pods", pod("p", serviceAccountName="robot"))
        await hub.made("/api/v1/namespaces/default/pods", pod("other"))
        ref = {"kind": "Pod", "apiVersion": "v1", "name": "p"}
        token = await hub.token("default", "robot", boundObjectRef=ref)
        code, user = await who(hub, token)
        assert (code, user["extra"]["authentication.kubernetes.io/pod-name"]) == (201, ["p"])
        await hub.registry.remove(PODS, await hub.registry.get(PODS, "default", "p"))
        assert await who(hub, token) == (401, "the pod that the token is bound to is gone")
        path = "/api/v1/namespaces/default/serviceaccounts/robot/token"
        for wrong, code in (
            ({**ref, "name": "other"}, 422),
            ({**ref, "name": "none"}, 404),
            ({**ref, "kind": "Secret"}, 422),
        ):
            assert (await hub.ask("POST", path, {"spec": {"boundObjectRef": wrong}})).status == code


@pytest.mark.parametrize(
    ("spec", "code"),
    [({"expirationSeconds": 599}, 422), ({"audiences": [""]}, 422), ({"audiences": ["a"] * 17}, 422)],
)
async def test_what_no_token_is_made_for_is_refused(spec: Any, code: int) -> None:
    async with access_hub() as hub:
        await hub.account("default", "robot")
        path = "/api/v1/namespaces/default/serviceaccounts/robot/token"
        assert (await hub.ask("POST", path, {"spec": spec})).status == code
        assert (await hub.ask("POST", path.replace("robot", "none"), {"spec": {}})).status == 404
        assert (await hub.ask("GET", path)).status == 405


async def test_a_token_lasts_as_long_as_was_asked_up_to_the_bound() -> None:
    async with access_hub() as hub:
        await hub.account("default", "robot")
        path = "/api/v1/namespaces/default/serviceaccounts/robot/token"
        reply = (await hub.ask("POST", path, {"spec": {"expirationSeconds": 4_000_000_000}})).json
        assert reply["spec"]["expirationSeconds"] == 30 * 86400
        token = await hub.token("default", "robot", expirationSeconds=700)
        user, _ = await hub.tokens.user(token, time.time() + 690)
        assert user.name.endswith(":robot")
        with pytest.raises(Exception, match="expired"):
            await hub.tokens.user(token, time.time() + 701)


async def test_a_review_says_whose_a_token_is_and_for_which_audience() -> None:
    async with access_hub() as hub:
        await hub.account("default", "robot")
        path = "/apis/authentication.k8s.io/v1/tokenreviews"
        token = await hub.token("default", "robot", audiences=["vault", "x"])
        for asked, good in ((["vault", "db"], True), (["db"], False), ([], False)):
            reply = await hub.ask("POST", path, {"spec": {"token": token, "audiences": asked}})
            status = reply.json["status"]
            assert status.get("authenticated", False) is good
            assert status.get("audiences", []) == (["vault"] if good else [])
            assert token not in reply.body.decode()
        assert (await who(hub, token))[0] == 401, "it is not for this API"


async def test_replicas_that_start_together_sign_with_one_key() -> None:
    store = MemoryStore()
    first, second = (
        await open_shared(store, "/r/", lambda: SECRET),
        await open_shared(store, "/r/", lambda: SECRET),
    )
    assert first.current.keys[0].kid == second.current.keys[0].kid
    with pytest.raises(KeyFileError):
        await open_shared(store, "/r/", lambda: b"t" * 32)
    held = await store.get(signing_keys_key("/r/"))
    assert held is not None
    assert b"PRIVATE" not in held.value
    assert first.current.keys[0].pem().splitlines()[1] not in held.value


async def test_a_key_that_was_put_first_elsewhere_is_known_when_it_is_met() -> None:
    async with access_hub() as hub:
        await hub.account("default", "robot")
        old = await hub.token("default", "robot")
        key = signing_keys_key(hub.registry.keys.root)
        kept = hub.keys.current.keys[0]
        await hub.registry.store.txn([], [Put(key, tokenkeys.seal([SigningKey.make(), kept], SECRET))])
        elsewhere = Tokens(
            await open_shared(hub.registry.store, hub.registry.keys.root, lambda: SECRET),
            hub.registry,
            hub.roles,
            DOMAIN,
        )
        new, _ = await elsewhere.issue("default", "robot", {}, time.time())
        assert (await who(hub, new))[0] == 201
        assert (await who(hub, old))[0] == 201
        # Once the old key is out of the set, its tokens are nobody's, also those that were met before.
        third = SigningKey.make()
        await hub.registry.store.txn([], [Put(key, tokenkeys.seal([third], SECRET))])
        hub.keys._refreshed = -1e9
        assert (await who(hub, SigningKeys([third]).sign(hub.keys.current.verify(old, time.time()))))[
            0
        ] == 201
        assert (await who(hub, old))[0] == 401


async def test_the_key_of_a_lone_hub_lies_in_a_file_for_it_alone(tmp_path: Any) -> None:
    first = await open_alone(str(tmp_path))
    file = tmp_path / "token.keys"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(SigningKey.make().pem() + file.read_bytes())
    both = await open_alone(str(tmp_path))
    assert both.current.keys[0].kid != first.current.keys[0].kid
    assert first.current.keys[0].kid in both.current._by_id
    file.chmod(0o644)
    with pytest.raises(Exception, match="chmod 600"):
        await open_alone(str(tmp_path))


async def test_a_rotation_keeps_tokens_and_with_void_ends_them(tmp_path: Any) -> None:
    keys = await open_alone(str(tmp_path))
    async with access_hub(keys=keys) as hub:
        await hub.account("default", "robot")
        old = await hub.token("default", "robot")
        assert (await who(hub, old))[0] == 201
        shown = (await hub.ask("POST", SIGNERS_ROTATION_PATH, {})).json["keys"]
        assert [key["phase"] for key in shown] == ["signs", "verifies"]
        assert shown[1]["ends"] - shown[0]["begins"] == LIFE_S_MAX + MARGIN_S
        new = await hub.token("default", "robot")
        assert (await who(hub, old))[0] == (await who(hub, new))[0] == 201
        assert [k.kid for k in (await open_alone(str(tmp_path))).current.keys] == [k["id"] for k in shown]

        voided = (await hub.ask("POST", SIGNERS_ROTATION_PATH, {}, params={"void": "true"})).json["keys"]
        assert [key["phase"] for key in voided] == ["signs"]
        for ended in (old, new):  # also what was found right before
            assert await who(hub, ended) == (401, "the token is signed with a key that is not this fleet's")
        assert (await who(hub, await hub.token("default", "robot")))[0] == 201
        for _ in range(KEYS_MAX - 1):
            assert (await hub.ask("POST", SIGNERS_ROTATION_PATH, {})).status == 200
        full = await hub.ask("POST", SIGNERS_ROTATION_PATH, {})
        assert full.status == 400 and "--void" in full.message
        assert (await hub.ask("GET", SIGNERS_PATH, token=new)).status == 401
        robot = await hub.token("default", "robot")
        assert (await hub.ask("POST", SIGNERS_ROTATION_PATH, {}, token=robot)).status == 403
    assert (tmp_path / "token.keys").stat().st_mode & 0o777 == 0o600

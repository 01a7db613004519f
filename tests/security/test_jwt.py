"""Tokens of service accounts: only what one of our keys signed, in the one form, for now and for us."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security import jwt
from security.jwt import Claims, Kubernetes, Named, SigningKey, SigningKeyError, SigningKeys, TokenError

NOW = 1_800_000_000.0
ISSUER = "https://hub.example"
KEY = SigningKey.make()
KEYS = SigningKeys([KEY])


def claims(**more: Any) -> Claims:
    base: dict[str, Any] = {
        "iss": ISSUER, "sub": "system:serviceaccount:shop:robot", "aud": [ISSUER], "exp": NOW + 600, "nbf": NOW, "iat": NOW,
        "kubernetes": Kubernetes("shop", Named("robot", "u1")), "jti": "x",
    }  # fmt: skip
    return Claims(**{**base, **more})


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: Any, body: str, key: SigningKey = KEY) -> str:
    head = f"{part(header)}.{body}"
    return f"{head}.{part(key.sign(head.encode()))}"


TOKEN = KEYS.sign(claims())
BODY = TOKEN.split(".")[1]


def test_what_was_signed_comes_back() -> None:
    assert KEYS.verify(TOKEN, NOW) == claims()
    assert jwt.check(KEYS.verify(TOKEN, NOW), ISSUER, [ISSUER, "x"], NOW) == [ISSUER]


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("", "malformed"),
        ("a.b", "malformed"),
        (TOKEN + ".x", "malformed"),
        (TOKEN + "=", "malformed"),
        (" " + TOKEN, "malformed"),
        ("a" * 9000, "malformed"),
        (TOKEN.replace(".", ".\udc80", 1), "malformed"),
        (TOKEN.replace(".", ".é", 1), "malformed"),
        (signed({"alg": "none", "kid": KEY.kid}, BODY), "algorithm"),
        (signed({"alg": "HS256", "kid": KEY.kid}, BODY), "algorithm"),
        (signed({"alg": "ES384", "kid": KEY.kid}, BODY), "algorithm"),
        (signed({"alg": "ES256", "kid": KEY.kid, "crit": ["exp"]}, BODY), "algorithm"),
        (signed({"alg": "ES256"}, BODY), "malformed"),
        (signed({"alg": "ES256", "kid": "other"}, BODY), "unknown_key"),
        (signed({"alg": "ES256", "kid": KEY.kid}, BODY, SigningKey.make()), "signature"),
        (SigningKeys([SigningKey.make()]).sign(claims()), "unknown_key"),
        (signed({"alg": "ES256", "kid": KEY.kid}, part({"sub": "x"})), "malformed"),
        (signed({"alg": "ES256", "kid": KEY.kid}, part(b"[]")), "malformed"),
    ],
)
def test_what_no_key_of_ours_signed_in_this_form_is_refused(token: str, reason: str) -> None:
    with pytest.raises(TokenError) as refused:
        KEYS.verify(token, NOW)
    assert refused.value.reason == reason
    assert not token or token not in str(refused.value)


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from("ABab01_-.=+/ \n"))
@settings(max_examples=300, deadline=None)
def test_no_character_of_a_token_can_be_changed(at: int, other: str) -> None:
    changed = TOKEN[:at] + other + TOKEN[at + 1 :]
    if changed != TOKEN:
        with pytest.raises(TokenError):
            KEYS.verify(changed, NOW)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"iss": "https://hub.other"}, "issuer"),
        ({"exp": NOW}, "expired"),
        ({"nbf": NOW + jwt.SKEW_S + 1}, "not_yet_valid"),
        ({"aud": []}, "audience"),
        ({"aud": "vault"}, "audience"),
        ({"sub": "system:serviceaccount:shop:admin"}, "malformed"),
        ({"sub": "admin"}, "malformed"),
    ],
)
def test_a_token_for_another_time_or_another_place_is_refused(more: Any, reason: str) -> None:
    with pytest.raises(TokenError) as refused:
        jwt.check(claims(**more), ISSUER, [ISSUER], NOW)
    assert refused.value.reason == reason


def test_a_second_key_verifies_and_does_not_sign() -> None:
    new = SigningKey.make()
    keys = SigningKeys([new, KEY])
    assert keys.verify(TOKEN, NOW) == claims()
    with pytest.raises(TokenError):
        KEYS.verify(keys.sign(claims()), NOW)
    assert SigningKey.from_pem(new.pem()).kid == new.kid


def test_a_header_that_is_nested_too_deep_is_malformed() -> None:
    with pytest.raises(TokenError) as refused:
        KEYS.verify(".".join((part(b'{"x":' + b"[" * 5000), part({}), part(b"x" * 64))), NOW)
    assert refused.value.reason == "malformed"


def reason_of(keys: SigningKeys, token: str, now: float) -> str:
    """Why it is refused, "" when it is not."""
    try:
        keys.verify(token, now)
    except TokenError as refused:
        return refused.reason
    return ""


def test_a_rotated_key_signs_from_its_time_on_and_the_old_one_verifies_until_its_tokens_have_ended() -> None:
    new = SigningKey.make(NOW + 10)
    keys = KEYS.rotated(new, NOW, 1000.0)
    assert [key.kid for key in keys.keys] == [new.kid, KEY.kid]
    assert keys.signing(NOW + 9).kid == KEY.kid
    assert keys.signing(NOW + 10).kid == new.kid
    last, first = keys.sign(claims(iat=NOW + 9)), keys.sign(claims(iat=NOW + 10))
    assert reason_of(KEYS, last, NOW) == ""
    assert reason_of(KEYS, first, NOW) == "unknown_key"
    assert reason_of(keys, last, NOW + 1009) == ""
    assert reason_of(keys, last, NOW + 1010) == "unknown_key"
    assert reason_of(keys, first, NOW + 1e9) == ""
    # The next rotation leaves out what has ended, and does not put off the end of what is about to.
    third = keys.rotated(SigningKey.make(NOW + 500), NOW + 500, 1000.0)
    assert [key.ends for key in third.keys] == [None, NOW + 1500, NOW + 1010]
    assert len(third.rotated(SigningKey.make(NOW + 1100), NOW + 1100, 1000.0).keys) == 3


def test_no_more_keys_verify_than_are_served_and_it_is_said_when_one_ends() -> None:
    keys = KEYS
    for i in range(1, jwt.KEYS_MAX):
        keys = keys.rotated(SigningKey.make(NOW + i), NOW + i, 7200.0)
    with pytest.raises(SigningKeyError, match=r"again in 2 h.*--void"):
        keys.rotated(SigningKey.make(NOW + 60), NOW + 60, 7200.0)

"""Tokens of service accounts: JSON Web Tokens signed with ES256, as Kubernetes issues them.

Job: keys, signatures and claims. Time comes from the caller. One algorithm: a header that names another one, or none,
is refused, whatever it says. A key is found by its id alone; more than one may verify, the newest signs.
Not guaranteed: that the account, or what the token is bound to, still exists; `hub.access.tokens` asks that.

Sources: RFC 7515 (compact serialization), RFC 7518 section 3.4 (ES256), RFC 7519 section 4.1; the claims are those of
Kubernetes' bound service account tokens.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from security.errors import SecurityError
from security.rbac import SERVICE_ACCOUNT_PREFIX

TOKEN_CHARS_MAX: Final = 8192
SKEW_S: Final = 30.0
"""How far another replica's clock may be ahead of ours when it has issued a token."""
LIFE_S_MAX: Final = 30 * 86400
"""How long a token may last."""
KEYS_MAX: Final = 8
_COORDINATE_BYTES: Final = 32
_PART: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class TokenError(SecurityError):
    """A token that is not accepted. `reason`: a word for metrics; the text never holds the token."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class SigningKeyError(SecurityError):
    """Signing keys that cannot be read. The message says why and what to do."""


class Named(msgspec.Struct, frozen=True, omit_defaults=True):
    """An object that a token is for, or bound to."""

    name: str
    uid: str = ""


class Kubernetes(msgspec.Struct, frozen=True, omit_defaults=True):
    """The claim `kubernetes.io`. At most one of `pod` and `node` is what the token is bound to; with a pod, `node` is where
    it ran when the token was made."""

    namespace: str
    serviceaccount: Named
    pod: Named | None = None
    node: Named | None = None


class Claims(msgspec.Struct, frozen=True, rename={"kubernetes": "kubernetes.io"}):
    """Times are unix seconds."""

    iss: str
    sub: str
    aud: list[str] | str
    exp: float
    nbf: float
    iat: float
    kubernetes: Kubernetes
    jti: str = ""

    @property
    def audiences(self) -> list[str]:
        return [self.aud] if isinstance(self.aud, str) else self.aud


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str
    crit: Any = None


class SigningKey:
    """One ECDSA P-256 key. `kid` is the base64url SHA-256 of its public half, so it needs no name of its own. `begins`: from
    when it signs; `ends`: until when it verifies, None for one that no other has followed. Unix seconds."""

    def __init__(
        self, private: ec.EllipticCurvePrivateKey, begins: float = 0.0, ends: float | None = None
    ) -> None:
        self._private = private
        self.begins = begins
        self.ends = ends
        self._public = private.public_key()
        info = self._public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.kid = _encode(hashlib.sha256(info).digest())

    @classmethod
    def make(cls, begins: float = 0.0) -> "SigningKey":
        return cls(ec.generate_private_key(ec.SECP256R1()), begins)

    @classmethod
    def from_pem(cls, pem: bytes, begins: float = 0.0, ends: float | None = None) -> "SigningKey":
        """Raises SigningKeyError."""
        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError) as wrong:
            raise SigningKeyError(f"the key that signs service account tokens is damaged: {wrong}") from wrong
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise SigningKeyError("the key that signs service account tokens is no P-256 key")
        return cls(key, begins, ends)

    def ending(self, ends: float) -> "SigningKey":
        """The same key, to verify until then."""
        return SigningKey(self._private, self.begins, ends)

    def verifies_at(self, now: float) -> bool:
        return self.ends is None or now < self.ends

    def pem(self) -> bytes:
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, data: bytes) -> bytes:
        r, s = utils.decode_dss_signature(self._private.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(_COORDINATE_BYTES) + s.to_bytes(_COORDINATE_BYTES)

    def verifies(self, data: bytes, signature: bytes) -> bool:
        if len(signature) != 2 * _COORDINATE_BYTES:
            return False
        r, s = signature[:_COORDINATE_BYTES], signature[_COORDINATE_BYTES:]
        der = utils.encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
        try:
            self._public.verify(der, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class SigningKeys:
    """The keys of one fleet, the newest first. The newest that has begun signs; all that have not ended verify."""

    def __init__(self, keys: Sequence[SigningKey]) -> None:
        """Raises SigningKeyError."""
        if not 1 <= len(keys) <= KEYS_MAX:
            raise SigningKeyError(f"{len(keys)} keys for service account tokens; 1 to {KEYS_MAX} are served")
        self.keys = tuple(keys)
        self._by_id = {key.kid: key for key in keys}

    def signing(self, now: float) -> SigningKey:
        """The one that signs at `now`; the oldest where all are still to begin."""
        return next((key for key in self.keys if key.begins <= now), self.keys[-1])

    def rotated(self, new: SigningKey, now: float, life_s: float) -> "SigningKeys":
        """The set with `new`, which signs next. The others verify for `life_s` after it has begun, as long as their tokens may
        last; those that have ended by `now` are left out. Raises SigningKeyError where that are more than KEYS_MAX."""
        kept = [key for key in self.keys if key.verifies_at(now)]
        if len(kept) >= KEYS_MAX:
            first = min(key.ends for key in kept if key.ends is not None)
            raise SigningKeyError(
                f"{len(kept)} keys still verify tokens, and no more than {KEYS_MAX} are served: rotate again in"
                f" {(first - now) / 3600:.0f} h, when the first has ended, or end all tokens now with --void"
            )
        return SigningKeys(
            [new, *(key.ending(new.begins + life_s) if key.ends is None else key for key in kept)]
        )

    def sign(self, claims: Claims) -> str:
        """The token's text, signed by the key of its `iat`."""
        signer = self.signing(claims.iat)
        header = msgspec.json.encode({"alg": "ES256", "kid": signer.kid, "typ": "JWT"})
        signed = f"{_encode(header)}.{_encode(msgspec.json.encode(claims))}"
        return f"{signed}.{_encode(signer.sign(signed.encode()))}"

    def verify(self, token: str, now: float) -> Claims:
        """What a token says that one of these keys has signed which verifies at `now`; neither its own times nor its audience
        are looked at. Raises TokenError."""
        if len(token) > TOKEN_CHARS_MAX:
            raise TokenError("malformed", f"the token is longer than {TOKEN_CHARS_MAX} characters")
        parts = token.split(".")
        if len(parts) != 3:
            raise TokenError("malformed", "the token is no JSON Web Token of three parts")
        head, body, signature = map(_decode, parts)
        try:
            header = msgspec.json.decode(head, type=_Header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as wrong:
            raise TokenError("malformed", "the token's header cannot be read") from wrong
        if header.alg != "ES256" or header.crit is not None:
            raise TokenError("algorithm", "the token is not signed with ES256")
        key = self._by_id.get(header.kid)
        if key is None or not key.verifies_at(now):
            raise TokenError("unknown_key", "the token is signed with a key that is not this fleet's")
        if not key.verifies(f"{parts[0]}.{parts[1]}".encode(), signature):
            raise TokenError("signature", "the token's signature is wrong")
        try:
            return msgspec.json.decode(body, type=Claims)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as wrong:
            raise TokenError("malformed", "the token's claims are not those of a service account") from wrong


def check(claims: Claims, issuer: str, audiences: Sequence[str], now: float) -> list[str]:
    """The token's audiences that are among `audiences`. Raises TokenError when it is not for now, or not for them."""
    if claims.iss != issuer:
        raise TokenError("issuer", "the token was issued by somebody else")
    if now >= claims.exp:
        raise TokenError("expired", "the token has expired; request a new one")
    if now + SKEW_S < claims.nbf:
        raise TokenError("not_yet_valid", "the token is not valid yet; compare the clocks")
    account = claims.kubernetes
    if claims.sub != username(account.namespace, account.serviceaccount.name):
        raise TokenError("malformed", "the token's subject is not its service account")
    meant = [audience for audience in claims.audiences if audience in audiences]
    if not meant:
        raise TokenError("audience", "the token is for another audience")
    return meant


def username(namespace: str, name: str) -> str:
    """The user that a service account is."""
    return f"{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"


def groups(namespace: str) -> tuple[str, ...]:
    """The groups of the service accounts of a namespace."""
    return ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(part: str) -> bytes:
    """Strict: the one text that stands for these bytes."""
    if _PART.fullmatch(part) is None:
        raise TokenError("malformed", "a part of the token is no base64url")
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error as wrong:
        raise TokenError("malformed", "a part of the token is no base64url") from wrong
    if _encode(data) != part:
        raise TokenError("malformed", "a part of the token is not in its one form")
    return data

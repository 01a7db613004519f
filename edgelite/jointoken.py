"""The text form of a join token. [pure]

    chub1.<id>.<secret>.<root>.<trust domain>

id: 16 lower case hex digits; secret: 24 bytes and root: the SHA-256 of one root certificate's DER, both in URL-safe
base64 without padding (32 and 43 characters). The trust domain is part of it because an agent must know which name
to demand of the hub (`hub.<trust domain>`) before it believes anything that the other side says.

There is exactly one text for a token: what decodes but would be written differently is refused.
Runs unmodified on CPython 3.9+ and MicroPython.
"""

import binascii

from edgelite import der

PREFIX = "chub1"
ID_BYTES = 8
SECRET_BYTES = 24
ROOT_BYTES = 32
TRUST_DOMAIN_CHARS_MAX = 249
TOKEN_CHARS_MAX = 6 + 17 + 33 + 44 + TRUST_DOMAIN_CHARS_MAX


class TokenError(Exception):
    """Not a join token. The message never repeats the text, for it may hold a secret."""


class JoinToken:
    """id: 16 hex digits; secret: 24 bytes; root_sha256: 32 bytes; trust_domain: a DNS name."""

    __slots__ = ("id", "root_sha256", "secret", "trust_domain")

    def __init__(self, id: str, secret: bytes, root_sha256: bytes, trust_domain: str) -> None:
        self.id = id
        self.secret = secret
        self.root_sha256 = root_sha256
        self.trust_domain = trust_domain

    def text(self) -> str:
        """The form that people copy."""
        return ".".join((PREFIX, self.id, _encode(self.secret), _encode(self.root_sha256), self.trust_domain))


def parse(text: str) -> JoinToken:
    """Raises TokenError on anything but the exact text of a token; blanks around it are forgiven."""
    text = text.strip()
    if len(text) > TOKEN_CHARS_MAX:
        raise TokenError(
            "join token of %d characters, at most %d are possible" % (len(text), TOKEN_CHARS_MAX)
        )
    parts = text.split(".", 4)
    if parts[0] != PREFIX or len(parts) != 5:
        raise TokenError("not a join token: it has the form %s.<id>.<secret>.<root>.<trust domain>" % PREFIX)
    token = JoinToken(
        parts[1],
        _decode("secret", parts[2], SECRET_BYTES),
        _decode("root", parts[3], ROOT_BYTES),
        parts[4],
    )
    if len(token.id) != 2 * ID_BYTES or [c for c in token.id if c not in "0123456789abcdef"]:
        raise TokenError("join token damaged: its id is not %d hex digits" % (2 * ID_BYTES))
    if not is_dns_name(token.trust_domain, TRUST_DOMAIN_CHARS_MAX):
        raise TokenError("join token damaged: its trust domain is not a DNS name in lower case")
    return token


def is_dns_name(name: str, chars_max: int = 253) -> bool:
    """Whether `name` is an RFC 1123 subdomain, as Kubernetes names are. The twin of `security.identity`'s regular
    expression, which boards lack."""
    if not 0 < len(name) <= chars_max:
        return False
    for label in name.split("."):
        if not 0 < len(label) <= 63 or label[0] == "-" or label[-1] == "-":
            return False
        for c in label:
            if c not in "abcdefghijklmnopqrstuvwxyz0123456789-":
                return False
    return True


def _encode(raw: bytes) -> str:
    text = binascii.b2a_base64(raw).decode().strip()
    return text.replace("+", "-").replace("/", "_").replace("=", "")


def _decode(what: str, text: str, size: int) -> bytes:
    try:
        raw = der.unbase64(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4))
    except der.DerError:
        raw = b""
    if len(raw) != size or _encode(raw) != text:
        raise TokenError("join token damaged: its %s part is not %d bytes of base64url" % (what, size))
    return raw

"""P-256 keys, deterministic ECDSA signatures and certificate requests, for lack of them in the standard library.
[pure]

Used only to enrol and to renew, and by `edgelite.signatures`: TLS itself signs with OpenSSL or mbedTLS. Entropy is an argument; signatures need
none (RFC 6979). Runs unmodified on CPython 3.9+ and MicroPython.

Not constant time: Python's integers leak, through timing, facts about the private key and the nonce. A key signs one
request in its life here (the same bytes again when an answer was lost), locally and never on a peer's demand, so that
an observer gets no second sample. Do not use this module to answer challenges.
"""

import hashlib

from edgelite import der

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
GX = 0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296
GY = 0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5

ENTROPY_BYTES = 48  # 128 bits more than the key, so that the reduction's bias vanishes (FIPS 186-5, A.2.1)
COMMON_NAME_BYTES_MAX = 64  # X.520 upper bound

OID_EC = b"\x2a\x86\x48\xce\x3d\x02\x01"
OID_P256 = b"\x2a\x86\x48\xce\x3d\x03\x01\x07"
OID_ECDSA_SHA256 = b"\x2a\x86\x48\xce\x3d\x04\x03\x02"
OID_COMMON_NAME = b"\x55\x04\x03"


class KeyError256(Exception):
    """Not a P-256 private key in the form that `private_pem` writes; or unfit entropy."""


def generate(entropy: bytes) -> int:
    """A private key from ENTROPY_BYTES or more bytes of a cryptographic random source."""
    if len(entropy) < ENTROPY_BYTES:
        raise KeyError256("a key needs %d bytes of entropy, got %d" % (ENTROPY_BYTES, len(entropy)))
    return int.from_bytes(entropy, "big") % (N - 1) + 1


def public_point(private: int) -> bytes:
    """The public key, uncompressed: 0x04, x, y; 65 bytes."""
    x, y = affine(multiply(private, (GX, GY, 1)))
    return b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")


def sign(private: int, message: bytes) -> "tuple[int, int]":
    """ECDSA with SHA-256 and the nonce of RFC 6979: (r, s)."""
    digest = hashlib.sha256(message).digest()
    z = int.from_bytes(digest, "big")
    for k in _nonces(private, z % N):
        r = affine(multiply(k, (GX, GY, 1)))[0] % N
        s = pow(k, N - 2, N) * (z + r * private) % N
        if r and s:
            return r, s
    raise AssertionError("unreachable: _nonces never ends")


def signature_der(private: int, message: bytes) -> bytes:
    """The signature as X.509 wants it: SEQUENCE of r and s."""
    r, s = sign(private, message)
    return der.tlv(der.SEQUENCE, der.integer(r), der.integer(s))


def private_pem(private: int) -> str:
    """The key as PEM that `ssl.load_cert_chain` reads (SEC1, RFC 5915, with curve and public key)."""
    body = der.tlv(
        der.SEQUENCE,
        der.integer(1),
        der.tlv(der.OCTET_STRING, private.to_bytes(32, "big")),
        der.tlv(0xA0, der.tlv(der.OID, OID_P256)),
        der.tlv(0xA1, der.tlv(der.BIT_STRING, b"\0", public_point(private))),
    )
    return der.pem("EC PRIVATE KEY", body)


def private_from_pem(text: str) -> int:
    """The key from what `private_pem` wrote; other blocks in the text are passed over. Raises KeyError256."""
    try:
        found = der.unpem("EC PRIVATE KEY", text)
        if len(found) != 1:
            raise KeyError256("expected one EC PRIVATE KEY block, found %d" % len(found))
        data = found[0]
        parts = der.children(data, *der.read(data, 0, len(data))[1:])
    except der.DerError as e:
        raise KeyError256("not an EC private key: %s" % e)
    if len(parts) < 2 or parts[1][0] != der.OCTET_STRING or parts[1][2] - parts[1][1] != 32:
        raise KeyError256("not a P-256 private key")
    private = int.from_bytes(data[parts[1][1] : parts[1][2]], "big")
    if not 0 < private < N:
        raise KeyError256("the private key is out of range")
    if private_pem(private) != der.pem("EC PRIVATE KEY", data):
        raise KeyError256("the private key is damaged: its public key is another one")
    return private


def public_key_info(private: int) -> bytes:
    """SubjectPublicKeyInfo in DER; its SHA-256 is the key's hash."""
    algorithm = der.tlv(der.SEQUENCE, der.tlv(der.OID, OID_EC), der.tlv(der.OID, OID_P256))
    return der.tlv(der.SEQUENCE, algorithm, der.tlv(der.BIT_STRING, b"\0", public_point(private)))


def request_der(private: int, common_name: str) -> bytes:
    """A PKCS #10 request (RFC 2986) with this key. The name is a hint for people (its printable ASCII, cut to 64 bytes): the hub takes
    only the key from a request."""
    name = "".join([c for c in common_name if " " <= c <= "~"])[:COMMON_NAME_BYTES_MAX].encode() or b"node"
    pair = der.tlv(der.SEQUENCE, der.tlv(der.OID, OID_COMMON_NAME), der.tlv(der.UTF8_STRING, name))
    info = der.tlv(
        der.SEQUENCE,
        der.integer(0),
        der.tlv(der.SEQUENCE, der.tlv(der.SET, pair)),
        public_key_info(private),
        der.tlv(0xA0),
    )
    algorithm = der.tlv(der.SEQUENCE, der.tlv(der.OID, OID_ECDSA_SHA256))
    return der.tlv(
        der.SEQUENCE, info, algorithm, der.tlv(der.BIT_STRING, b"\0", signature_der(private, info))
    )


def request_pem(private: int, common_name: str) -> str:
    """`request_der` as PEM."""
    return der.pem("CERTIFICATE REQUEST", request_der(private, common_name))


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """RFC 2104; boards have hashlib.sha256 but not always hmac. The key may have at most 64 bytes."""
    padded = key + bytes(64 - len(key))
    inner = hashlib.sha256(bytes([b ^ 0x36 for b in padded]) + message).digest()
    return hashlib.sha256(bytes([b ^ 0x5C for b in padded]) + inner).digest()


def _nonces(private: int, h: int) -> "Iterator[int]":
    """RFC 6979 section 3.2, steps b to h, for SHA-256 and a 256-bit order."""
    seed = private.to_bytes(32, "big") + h.to_bytes(32, "big")
    v = b"\x01" * 32
    k = hmac_sha256(b"\x00" * 32, v + b"\x00" + seed)
    v = hmac_sha256(k, v)
    k = hmac_sha256(k, v + b"\x01" + seed)
    v = hmac_sha256(k, v)
    while True:
        v = hmac_sha256(k, v)
        nonce = int.from_bytes(v, "big")
        if 0 < nonce < N:
            yield nonce
        k = hmac_sha256(k, v + b"\x00")
        v = hmac_sha256(k, v)


# Jacobian coordinates: (X, Y, Z) stands for (X/Z^2, Y/Z^3); Z = 0 is the point at infinity. Formulas dbl-2001-b and
# add-2007-bl of the Explicit-Formulas Database, for a = -3.


def _double(point: "tuple[int, int, int]") -> "tuple[int, int, int]":
    x, y, z = point
    delta = z * z % P
    gamma = y * y % P
    beta = x * gamma % P
    alpha = 3 * (x - delta) * (x + delta) % P
    x3 = (alpha * alpha - 8 * beta) % P
    z3 = ((y + z) * (y + z) - gamma - delta) % P
    return x3, (alpha * (4 * beta - x3) - 8 * gamma * gamma) % P, z3


def add(a: "tuple[int, int, int]", b: "tuple[int, int, int]") -> "tuple[int, int, int]":
    x1, y1, z1 = a
    x2, y2, z2 = b
    if z1 == 0:
        return b
    if z2 == 0:
        return a
    z1z1 = z1 * z1 % P
    z2z2 = z2 * z2 % P
    u1 = x1 * z2z2 % P
    s1 = y1 * z2 * z2z2 % P
    h = (x2 * z1z1 - u1) % P
    r = (y2 * z1 * z1z1 - s1) % P
    if h == 0:
        return _double(a) if r == 0 else (1, 1, 0)
    hh = h * h % P
    hhh = h * hh % P
    v = u1 * hh % P
    x3 = (r * r - hhh - 2 * v) % P
    return x3, (r * (v - x3) - s1 * hhh) % P, z1 * z2 * h % P


def multiply(k: int, point: "tuple[int, int, int]") -> "tuple[int, int, int]":
    """k times a point, four bits at a time."""
    table = [(1, 1, 0), point]
    for _ in range(14):
        table.append(add(table[-1], point))
    out = table[0]
    for shift in range(252, -4, -4):
        out = _double(_double(_double(_double(out))))
        out = add(out, table[(k >> shift) & 15])
    return out


def affine(point: "tuple[int, int, int]") -> "tuple[int, int]":
    x, y, z = point
    inverse = pow(z, P - 2, P)
    square = inverse * inverse % P
    return x * square % P, y * square * inverse % P

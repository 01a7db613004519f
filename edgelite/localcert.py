"""The certificate of the agent's local API: self-signed, for the loopback address alone. [pure]

Workloads are given it as the `ca.crt` that they trust, so it signs nothing but itself. It begins long ago and ends late, for the
clocks of edge nodes are not to be relied on. X.509 v3 (RFC 5280), ECDSA P-256 with SHA-256.
"""

import hashlib

from edgelite import der, p256

NOT_BEFORE, NOT_AFTER = b"20200101000000Z", b"20700101000000Z"
NAME = b"edgelite local API"
HOSTS = (b"localhost", b"kubernetes", b"kubernetes.default", b"kubernetes.default.svc")
ADDRESSES = (b"\x7f\x00\x00\x01", b"\x00" * 15 + b"\x01")
BOOLEAN = 0x01
CONTEXT_DNS, CONTEXT_ADDRESS = 0x82, 0x87

_BASIC_CONSTRAINTS, _KEY_USAGE, _EXTENDED_USAGE, _SUBJECT_KEY = (
    b"\x55\x1d\x13",
    b"\x55\x1d\x0f",
    b"\x55\x1d\x25",
    b"\x55\x1d\x0e",
)
_SERVER_AUTH = b"\x2b\x06\x01\x05\x05\x07\x03\x01"


def self_signed_pem(private: int, serial: int) -> str:
    """serial: positive, at most 159 bits, another one for every certificate."""
    name = der.tlv(
        der.SEQUENCE,
        der.tlv(
            der.SET,
            der.tlv(
                der.SEQUENCE,
                der.tlv(der.OID, p256.OID_COMMON_NAME),
                der.tlv(der.UTF8_STRING, NAME),
            ),
        ),
    )
    algorithm = der.tlv(der.SEQUENCE, der.tlv(der.OID, p256.OID_ECDSA_SHA256))
    body = der.tlv(
        der.SEQUENCE,
        der.tlv(0xA0, der.integer(2)),
        der.integer(serial),
        algorithm,
        name,
        der.tlv(
            der.SEQUENCE,
            der.tlv(der.GENERALIZED_TIME, NOT_BEFORE),
            der.tlv(der.GENERALIZED_TIME, NOT_AFTER),
        ),
        name,
        p256.public_key_info(private),
        der.tlv(0xA3, der.tlv(der.SEQUENCE, *_extensions(private))),
    )
    signature = der.tlv(der.BIT_STRING, b"\0", p256.signature_der(private, body))
    return der.pem("CERTIFICATE", der.tlv(der.SEQUENCE, body, algorithm, signature))


def _extensions(private: int) -> "list[bytes]":
    names = [der.tlv(CONTEXT_DNS, host) for host in HOSTS]
    names += [der.tlv(CONTEXT_ADDRESS, address) for address in ADDRESSES]
    true = der.tlv(BOOLEAN, b"\xff")
    point = hashlib.sha256(p256.public_point(private)).digest()[:20]
    return [
        _extension(_BASIC_CONSTRAINTS, true, der.tlv(der.SEQUENCE, true, der.integer(0))),
        # digitalSignature for TLS, keyCertSign because it signs itself.
        _extension(_KEY_USAGE, true, der.tlv(der.BIT_STRING, b"\x02\x84")),
        _extension(_EXTENDED_USAGE, b"", der.tlv(der.SEQUENCE, der.tlv(der.OID, _SERVER_AUTH))),
        _extension(_SUBJECT_KEY, b"", der.tlv(der.OCTET_STRING, point)),
        _extension(der.OID_SUBJECT_ALT_NAME, b"", der.tlv(der.SEQUENCE, *names)),
    ]


def _extension(oid: bytes, critical: bytes, value: bytes) -> bytes:
    return der.tlv(der.SEQUENCE, der.tlv(der.OID, oid), critical, der.tlv(der.OCTET_STRING, value))

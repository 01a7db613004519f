"""The few bits of DER and PEM that an agent needs: build a request, read its own certificate. [pure]

Not a certificate parser: OpenSSL (or mbedTLS) verifies certificates, this only reads facts out of ones that were
verified or are about to be. Lengths are checked against the buffer; nothing recurses on input.
Runs unmodified on CPython 3.9+ and MicroPython.
"""

import binascii

SEQUENCE = 0x30
SET = 0x31
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OID = 0x06
UTF8_STRING = 0x0C
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18

PEM_CHARS_MAX = 65536
_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

OID_SUBJECT_ALT_NAME = b"\x55\x1d\x11"


class DerError(Exception):
    """Not the DER or PEM that was expected; the message says where."""


def tlv(tag: int, *parts: bytes) -> bytes:
    """One element whose content is the concatenation of `parts`."""
    body = b"".join(parts)
    n = len(body)
    if n < 0x80:
        return bytes([tag, n]) + body
    size = bytes([n]) if n < 0x100 else bytes([n >> 8, n & 0xFF])
    if n > 0xFFFF:
        raise DerError("element of %d bytes, at most 65535 are supported" % n)
    return bytes([tag, 0x80 | len(size)]) + size + body


def integer(value: int) -> bytes:
    """A non-negative INTEGER of at most 256 bits."""
    raw = value.to_bytes(33, "big")
    at = 0
    while at < 32 and raw[at] == 0 and raw[at + 1] < 0x80:
        at += 1
    return tlv(INTEGER, raw[at:])


def read(data: bytes, at: int, end: int) -> "tuple[int, int, int]":
    """(tag, start of content, end of content) of the element at `at`. Raises DerError when it passes `end`."""
    if at + 2 > end:
        raise DerError("element cut short at byte %d" % at)
    tag = data[at]
    n = data[at + 1]
    at += 2
    if n >= 0x80:
        size = n & 0x7F
        if not 1 <= size <= 3 or at + size > end:
            raise DerError("bad length at byte %d" % at)
        n = int.from_bytes(data[at : at + size], "big")
        at += size
    if at + n > end:
        raise DerError("element of %d bytes passes the end at byte %d" % (n, at))
    return tag, at, at + n


def children(data: bytes, start: int, end: int) -> "list[tuple[int, int, int]]":
    """(tag, start, end of content) of every element between `start` and `end`; at most 64."""
    out: "list[tuple[int, int, int]]" = []
    while start < end:
        if len(out) >= 64:
            raise DerError("more than 64 elements at byte %d" % start)
        item = read(data, start, end)
        out.append(item)
        start = item[2]
    return out


def pem(label: str, der: bytes) -> str:
    """`der` as one PEM block."""
    text = binascii.b2a_base64(der).decode().strip()
    lines = ["-----BEGIN " + label + "-----"]
    lines += [text[i : i + 64] for i in range(0, len(text), 64)]
    lines += ["-----END " + label + "-----", ""]
    return "\n".join(lines)


def unpem(label: str, text: str) -> "list[bytes]":
    """The DER of every PEM block with this label, in order. Raises DerError on a broken block."""
    if len(text) > PEM_CHARS_MAX:
        raise DerError("PEM text of %d characters, at most %d are allowed" % (len(text), PEM_CHARS_MAX))
    begin = "-----BEGIN " + label + "-----"
    end = "-----END " + label + "-----"
    out: "list[bytes]" = []
    at = text.find(begin)
    while at >= 0:
        stop = text.find(end, at)
        if stop < 0:
            raise DerError("PEM block " + label + " without its end")
        body = "".join(text[at + len(begin) : stop].split())
        out.append(unbase64(body))
        at = text.find(begin, stop)
    return out


def unbase64(text: str) -> bytes:
    """Strict base64: only its alphabet, padded. Checked here because decoders forgive, or fail, in different ways."""
    core = text.rstrip("=")
    if len(text) % 4 or len(text) - len(core) > 2:
        raise DerError("base64 cut short")
    for c in core:
        if c not in _BASE64:
            raise DerError("a character that is not base64")
    return binascii.a2b_base64(text.encode())


class Certificate:
    """Facts of an X.509 v3 certificate.

    not_before, not_after: unix seconds; point: the public key's BIT STRING content (65 bytes for P-256); uris: the
    URI names among its subject alternative names.
    """

    def __init__(self, der: bytes) -> None:
        tag, start, end = read(der, 0, len(der))
        if tag != SEQUENCE or end != len(der):
            raise DerError("not a certificate")
        tag, start, end = read(der, start, end)
        fields = children(der, start, end)
        if tag != SEQUENCE or len(fields) < 7 or fields[0][0] != 0xA0:
            raise DerError("not an X.509 v3 certificate")
        # version, serial, signature, issuer, validity, subject, key, then optional ones
        dates = children(der, fields[4][1], fields[4][2])
        key = children(der, fields[6][1], fields[6][2])
        if len(dates) != 2 or len(key) != 2 or key[1][0] != BIT_STRING:
            raise DerError("certificate without validity or key")
        self.not_before = _seconds(der, dates[0])
        self.not_after = _seconds(der, dates[1])
        self.point = der[key[1][1] + 1 : key[1][2]]
        self.uris = _uris(der, fields[7:])


def certificates(text: str) -> "list[Certificate]":
    """The certificates of a PEM chain, leaf first. Raises DerError when there is none."""
    found = [Certificate(der) for der in unpem("CERTIFICATE", text)]
    if not found:
        raise DerError("no certificate in the PEM text")
    return found


def _uris(der: bytes, optional: "list[tuple[int, int, int]]") -> "list[str]":
    for tag, start, end in optional:
        if tag != 0xA3:
            continue
        for _, low, high in children(der, *read(der, start, end)[1:]):
            parts = children(der, low, high)
            if not parts or der[parts[0][1] : parts[0][2]] != OID_SUBJECT_ALT_NAME:
                continue
            _, at, stop = read(der, parts[-1][1], parts[-1][2])
            return [_ascii(der[a:b]) for t, a, b in children(der, at, stop) if t == 0x86]
    return []


def _ascii(raw: bytes) -> str:
    for byte in raw:
        if not 0x20 <= byte < 0x7F:
            raise DerError("text with a byte that is not printable ASCII")
    return raw.decode()


def _seconds(der: bytes, item: "tuple[int, int, int]") -> int:
    tag, start, end = item
    text = _ascii(der[start:end])
    if tag == UTC_TIME and len(text) == 13:
        text = ("20" if text[0] < "5" else "19") + text  # RFC 5280: 50..99 are 19xx
    elif tag != GENERALIZED_TIME or len(text) != 15:
        raise DerError("time in another form than RFC 5280 allows")
    if text[14] != "Z" or not text[:14].isdigit():
        raise DerError("time in another form than RFC 5280 allows")
    year, month, day = int(text[0:4]), int(text[4:6]), int(text[6:8])
    # Days from the civil calendar, years beginning in March so that the leap day is last.
    y = year - (1 if month <= 2 else 0)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = y * 365 + y // 4 - y // 100 + y // 400 + day_of_year - 719468
    return days * 86400 + int(text[8:10]) * 3600 + int(text[10:12]) * 60 + int(text[12:14])

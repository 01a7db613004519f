"""Keys, signatures, DER, PEM and the token's text form. Runs on CPython and, unmodified, in the MicroPython VM."""

import binascii

from edgelite import der, jointoken, p256

# RFC 6979, A.2.5
PRIVATE = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
PUBLIC = (
    "0460fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"
    "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"
)
SAMPLE = (
    0xEFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716,
    0xF7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8,
)
TEST = (
    0xF1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367,
    0x019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083,
)
ROOT = bytes(range(32))
SECRET = bytes(range(200, 224))


def failure(kind, function, *arguments):
    """The message of the error of this kind that the call raises."""
    try:
        function(*arguments)
    except kind as e:
        return str(e)
    raise AssertionError("no " + kind.__name__)


def hexed(raw):
    return binascii.hexlify(raw).decode()


def test_the_public_key_is_that_of_rfc_6979():
    assert hexed(p256.public_point(PRIVATE)) == PUBLIC


def test_signatures_are_those_of_rfc_6979():
    assert p256.sign(PRIVATE, b"sample") == SAMPLE
    assert p256.sign(PRIVATE, b"test") == TEST


def test_hmac_is_that_of_rfc_4231():
    assert (
        hexed(p256.hmac_sha256(b"\x0b" * 20, b"Hi There"))
        == "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
    )


def test_multiples_at_the_edges_of_the_group_are_right():
    g = p256.public_point(1)
    minus_g = p256.public_point(p256.N - 1)
    assert g[1:33] == minus_g[1:33]
    assert int.from_bytes(g[33:], "big") + int.from_bytes(minus_g[33:], "big") == p256.P
    assert (
        hexed(p256.public_point(2))
        == "047cf27b188d034f7e8a52380304b51ac3c08969e277f21b35a60b48fc4766997807775510db8ed040293d9ac69f7430dbba7dade63ce982299e04b79d227873d1"
    )


def test_a_key_needs_enough_entropy_and_is_in_range():
    assert p256.generate(bytes(48)) == 1
    assert 0 < p256.generate(b"\xff" * 48) < p256.N
    assert "48 bytes" in failure(p256.KeyError256, p256.generate, bytes(47))


def test_a_private_key_survives_pem():
    for private in (1, PRIVATE, p256.N - 1):
        assert p256.private_from_pem(p256.private_pem(private)) == private


def test_a_private_key_is_found_among_other_blocks():
    text = p256.request_pem(PRIVATE, "till-1") + p256.private_pem(PRIVATE)
    assert p256.private_from_pem(text) == PRIVATE


def test_damaged_private_keys_are_refused():
    good = p256.private_pem(PRIVATE)
    for bad in ("", "junk", good[:80], good + good, good.replace("MHc", "MHd"), good[:60] + "?" + good[61:]):
        assert failure(p256.KeyError256, p256.private_from_pem, bad)


def test_the_same_request_is_made_again_from_the_same_key():
    assert p256.request_pem(PRIVATE, "till-1") == p256.request_pem(PRIVATE, "till-1")


def test_integers_are_encoded_with_the_fewest_bytes_and_stay_positive():
    for value, encoded in ((0, "020100"), (127, "02017f"), (128, "02020080"), (256, "02020100")):
        assert hexed(der.integer(value)) == encoded


def test_elements_of_any_length_are_read_back():
    for size in (0, 127, 128, 255, 256, 65535):
        raw = der.tlv(der.OCTET_STRING, bytes(size))
        tag, start, end = der.read(raw, 0, len(raw))
        assert (tag, end - start, end) == (der.OCTET_STRING, size, len(raw))


def test_elements_that_pass_their_end_are_refused():
    for raw in (b"", b"\x30", b"\x30\x05\x00", b"\x30\x84\x7f\xff\xff\xff", b"\x30\x80", b"\x30\x82\x01"):
        assert failure(der.DerError, der.read, raw, 0, len(raw))


def test_pem_blocks_are_found_by_label_and_in_order():
    text = der.pem("A", b"one") + "noise\n" + der.pem("B", b"two") + der.pem("A", b"x" * 100)
    assert der.unpem("A", text) == [b"one", b"x" * 100]
    assert failure(der.DerError, der.unpem, "A", "-----BEGIN A-----\nAAAA")
    assert failure(der.DerError, der.unpem, "A", "x" * (der.PEM_CHARS_MAX + 1))


def test_junk_is_no_certificate():
    for raw in (
        b"",
        b"\x30\x00",
        b"\x30\x02\x30\x00",
        der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, bytes(20))),
    ):
        assert failure(der.DerError, der.Certificate, raw)


def test_a_token_survives_its_text_form():
    token = jointoken.JoinToken("00112233aabbccdd", SECRET, ROOT, "fleet.example.com")
    back = jointoken.parse("  " + token.text() + "\n")
    assert (back.id, back.secret, back.root_sha256) == (token.id, SECRET, ROOT)
    assert back.trust_domain == "fleet.example.com"
    assert "+" not in token.text() and "/" not in token.text() and "=" not in token.text()


def test_damaged_tokens_are_refused_without_repeating_the_secret():
    text = jointoken.JoinToken("00112233aabbccdd", SECRET, ROOT, "cloudhub.local").text()
    _, ident, secret, root = text.split(".", 4)[:4]
    for bad in (
        "",
        "junk",
        text[:-16],
        text.replace("chub1", "chub2"),
        text.replace("00112233aabbccdd", "00112233AABBCCDD"),
        text.replace(ident, ident + "0"),
        text.replace(secret, secret[:-1]),
        text.replace(secret, secret + "AAAA"),
        text.replace(root, root[:-1] + "9"),  # other bits beyond the 32 bytes: a second text for one token
        text.replace(root, root + "="),
        text.replace(secret, "?" + secret[1:]),
        text + "/x",
        text + "\u00e9",
        text + ".",
        text.replace("cloudhub.local", "Cloudhub.local"),
        text + "x" * 400,
    ):
        message = failure(jointoken.TokenError, jointoken.parse, bad)
        assert secret not in message


def test_names_are_rfc_1123_subdomains():
    for good in ("a", "till-1", "a.b-c.d9", "1", "a" * 63, ".".join(["a" * 63] * 3) + "." + "a" * 61):
        assert jointoken.is_dns_name(good), good
    for bad in (
        "",
        "-a",
        "a-",
        "a..b",
        ".a",
        "a.",
        "A",
        "a_b",
        "a/b",
        "a%2e",
        "\u00e4",
        "a" * 64,
        "a." * 127,
    ):
        assert not jointoken.is_dns_name(bad), bad

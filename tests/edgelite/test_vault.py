"""Sealing, and the wraps of the data key. Runs on CPython and, unmodified, in the MicroPython VM."""

from binascii import hexlify

from edgelite.vault import Unreadable, Vault, seal, unseal

KEY = bytes(range(32))
NONCE = bytes(16)


class Entropy:
    """Never the same twice."""

    def __init__(self):
        self.count = 0

    def __call__(self, size):
        self.count += 1
        return bytes([(self.count + n) % 256 for n in range(size)])


def refused(call):
    try:
        call()
    except Unreadable:
        return True
    return False


def test_what_is_sealed_can_be_unsealed_and_shows_nothing():
    for size in (0, 1, 31, 32, 33, 1000):
        text = b"s" * size
        sealed = seal(KEY, "name", text, NONCE)
        assert len(sealed) == size + 48
        assert size < 31 or b"ssss" not in sealed
        assert unseal(KEY, "name", sealed) == text


def test_a_change_another_name_and_another_key_are_noticed():
    sealed = seal(KEY, "name", b"secret", NONCE)
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        assert refused(lambda data=bytes(changed): unseal(KEY, "name", data))
    assert refused(lambda: unseal(KEY, "other", sealed))
    assert refused(lambda: unseal(bytes(32), "name", sealed))
    for cut in (0, 1, 47, len(sealed) - 1):
        assert refused(lambda cut=cut: unseal(KEY, "name", sealed[:cut]))


def test_the_data_key_outlives_a_renewal_whenever_the_power_goes():
    entropy = Entropy()
    old, new = b"o" * 32, b"n" * 32
    first = Vault(None, [old], entropy)
    assert first.fresh
    sealed = first.seal("name", b"token")
    both = first.record([old, new])
    for stored, secrets in (
        (first.record([old]), [old]),
        (both, [old, new]),
        (both, [old]),
        (both, [new]),
        (first.record([new]), [new]),
    ):
        again = Vault(stored, secrets, entropy)
        assert not again.fresh
        assert again.unseal("name", sealed) == b"token"


def test_another_identity_begins_anew_and_reads_nothing():
    entropy = Entropy()
    first = Vault(None, [b"o" * 32], entropy)
    sealed = first.seal("name", b"token")
    other = Vault(first.record([b"o" * 32]), [b"x" * 32], entropy)
    assert other.fresh
    assert refused(lambda: other.unseal("name", sealed))


def test_the_record_holds_no_key():
    vault = Vault(None, [KEY], Entropy())
    record = vault.record([KEY])
    assert hexlify(vault._key) not in record
    assert vault._key not in record

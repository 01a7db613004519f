"""Sealed values: bound to key, generation and name, and never the same twice."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.envelope import MAGIC, OVERHEAD_BYTES_MAX, EnvelopeError, generation_of, seal, unseal

KEY, OTHER = b"k" * 32, b"o" * 32


@given(st.binary(max_size=300), st.text(max_size=40))
@settings(deadline=None, max_examples=50)
def test_what_is_sealed_opens_under_its_name_and_shows_nothing(plain: bytes, name: str) -> None:
    sealed = seal(KEY, "1-ab", name, plain, os.urandom)
    assert unseal(KEY, name, sealed) == plain
    assert generation_of(sealed) == "1-ab"
    assert len(plain) < 8 or plain not in sealed[len(MAGIC) :]
    assert len(sealed) <= len(plain) + OVERHEAD_BYTES_MAX


def test_a_value_that_was_moved_to_another_name_does_not_open() -> None:
    sealed = seal(KEY, "1-ab", "obj/core/secrets/-/shop/a", b"x", os.urandom)
    with pytest.raises(EnvelopeError, match="shop/b"):
        unseal(KEY, "obj/core/secrets/-/shop/b", sealed)


def test_neither_another_key_nor_another_generation_opens_it() -> None:
    sealed = seal(KEY, "1-ab", "a", b"x", os.urandom)
    with pytest.raises(EnvelopeError):
        unseal(OTHER, "a", sealed)
    with pytest.raises(EnvelopeError):
        unseal(KEY, "a", sealed.replace(b"1-ab", b"1-ac"))


def test_no_changed_and_no_cut_value_opens() -> None:
    sealed = seal(KEY, "1-ab", "a", b"text", os.urandom)
    changed = [
        sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(MAGIC), len(sealed))
    ]
    cut = [sealed[:length] for length in range(len(MAGIC), len(sealed))]
    for damaged in [*changed, *cut]:
        with pytest.raises(EnvelopeError):
            unseal(KEY, "a", damaged)


def test_equal_values_are_sealed_differently() -> None:
    assert len({seal(KEY, "1-ab", "a", b"x", os.urandom) for _ in range(100)}) == 100


def test_what_was_written_in_clear_is_told_apart() -> None:
    assert generation_of(b'{"kind":"Secret"}') is None
    assert generation_of(b"") is None

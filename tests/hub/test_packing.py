"""Objects that resemble each other are kept small, and come back as they were."""

import random

import orjson

from hub.packing import GAIN_MIN, PACK_MIN_BYTES, SAMPLE_BYTES_MAX, SAMPLES_MAX, Packed, Packer, pack


def unpacked(packed: Packed) -> bytes:
    unpack, held = packed
    return unpack(held) if unpack is not None else held


def of_sort(sort: int, i: int) -> bytes:
    """An object of some 3 KB, of which the sort decides all but a few bytes."""
    words = random.Random(sort)
    fields = {f"field-{words.getrandbits(32)}": f"{words.getrandbits(128):x}" for _ in range(50)}
    return orjson.dumps({"metadata": {"name": f"till-{i}", "uid": f"{i:032x}"}, "spec": fields})


def test_all_that_is_packed_comes_back_though_the_dictionary_has_changed_since() -> None:
    packer = Packer()
    raws = [of_sort(i % 20, i) for i in range(200)] + [b"{}", b"x" * PACK_MIN_BYTES, b"y" * 100_000]
    packed = [packer.pack(raw) for raw in raws]
    assert packer.samples == SAMPLES_MAX
    assert [unpacked(one) for one in packed] == raws


def test_objects_of_a_few_sorts_take_a_fraction_of_what_each_would_alone() -> None:
    packer = Packer()
    raws = [of_sort(i % 5, i) for i in range(200)]
    together = sum(len(packer.pack(raw)[1]) for raw in raws[5:])
    alone = sum(len(pack(raw)[1]) for raw in raws[5:])
    assert together * 5 < alone
    assert packer.samples == 5, "each sort is learnt once"


def test_no_more_than_a_bound_of_samples_is_kept_of_objects_that_have_nothing_in_common() -> None:
    packer = Packer()
    raws = [of_sort(i, i) for i in range(100)]
    packed = [packer.pack(raw) for raw in raws]
    assert packer.samples == SAMPLES_MAX
    assert len({id(getattr(unpack, "__self__", None)) for unpack, _ in packed}) <= 6
    assert all(len(held) * GAIN_MIN > len(raw) for raw, (_, held) in zip(raws[20:], packed[20:], strict=True))


def test_an_object_whose_beginning_tells_nothing_of_it_is_packed_too() -> None:
    packer = Packer()
    raw = b"z" * SAMPLE_BYTES_MAX + random.Random(0).randbytes(SAMPLE_BYTES_MAX)
    for samples in (0, 1, 1):
        assert [unpacked(packer.pack(raw)) for _ in range(3)] == [raw] * 3
        assert packer.samples == samples
        assert unpacked(packer.pack(of_sort(1, 1))) == of_sort(1, 1)


def test_what_is_small_is_kept_as_it_is() -> None:
    raw = b"x" * (PACK_MIN_BYTES - 1)
    assert pack(raw) == Packer().pack(raw) == (None, raw)

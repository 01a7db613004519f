"""The schedule of faults."""

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.schedule import Fault, kinds, schedule

TTL_S = 2.0


def made(seed: int, seconds: float = 30.0) -> list[Fault]:
    return schedule(seed, seconds, replicas=3, etcd=3, nats=2, ttl_s=TTL_S, gap_s=1.0)


@given(st.integers(0, 1 << 31))
def test_every_kind_of_fault_comes_and_a_seed_repeats(seed: int) -> None:
    faults = made(seed)
    assert {f.kind for f in faults} == kinds(TTL_S).keys()
    assert faults == made(seed)


@given(st.integers(0, 1 << 31))
def test_faults_keep_to_their_limits(seed: int) -> None:
    faults = made(seed, 120.0)
    for fault in faults:
        others = [
            f for f in faults
            if f is not fault and f.group == fault.group
            and f.at_s < fault.at_s + fault.for_s and fault.at_s < f.at_s + f.for_s
        ]  # fmt: skip
        if fault.group != "replica":
            assert not others, f"{fault} and {others}"
        assert not any(set(f.victims) & set(fault.victims) for f in others)
        away = {v for f in others if f.at_s <= fault.at_s < f.at_s + f.for_s for v in f.victims} | set(
            fault.victims
        )
        assert fault.group != "replica" or len(away) <= 2

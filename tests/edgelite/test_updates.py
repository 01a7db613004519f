"""Updates with power cut at every step, and what of them other libraries have to agree to."""

from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from edgelite import p256, updateplan
from edgelite.desired import compact
from edgelite.signatures import verify
from edgelite.updatestore import UpdateStore
from hub.releases import ANNOTATION, annotation, release, wanted
from tests.edgelite.updated_node import BASE, KEY, Node, signed, updated


def test_power_lost_at_every_step_leaves_a_working_release_and_the_update_succeeds() -> None:
    """Every write, sync and rename, each with three ways in which what was not synced may be left."""
    whole = updated()
    whole.wants("0.3.0")
    whole.rest()
    assert whole.files.steps > 40
    for cut_at in range(1, whole.files.steps + 1):
        for seed in range(3):
            node = Node(seed * 7919 + cut_at)
            node.files.cut_at = cut_at
            node.wants("0.2.0")
            node.rest()
            node.wants("0.3.0")
            assert node.rest() == "0.3.0", (cut_at, seed)
            assert node.said[:2] == ("True", "Updated"), (cut_at, seed)


@pytest.mark.parametrize("how", ["crash", "hang", "deaf"])
def test_power_lost_at_every_step_of_a_bad_release_leaves_what_worked(how: str) -> None:
    bad = {"0.3.0": how}
    whole = updated(bad=bad)
    before = whole.files.steps
    whole.wants("0.3.0")
    whole.rest()
    for cut_at in range(before, whole.files.steps + 1):
        node = updated(cut_at, bad)
        node.files.cut_at = cut_at
        node.wants("0.3.0")
        assert node.rest() == "0.2.0", cut_at
        assert node.said[0] == "False", cut_at


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["0.2.0", "0.3.0", "0.4.0"]),
            st.sampled_from(["", "crash", "hang", "deaf"]),
            st.integers(1, 80),
        ),
        max_size=5,
    ),
    st.integers(0, 1 << 30),
)
def test_whatever_is_wanted_in_turn_and_wherever_power_goes_something_that_works_runs(
    updates: Any, seed: int
) -> None:
    node = Node(seed)
    last = BASE
    for attempt, (version, how, cut_after) in enumerate(updates):
        node.files.cut_at = node.files.steps + cut_after
        node.bad = {version: how} if how and version != last else {}
        node.wants(version, attempt=attempt)
        running = node.rest()
        newer = not updateplan.older(version, last)
        assert running == (version if newer and version not in node.bad else last)
        assert node.said[0] == ("True" if running == version else "False")
        last = running


@given(st.binary(max_size=200))
def test_a_record_that_nobody_wrote_is_that_of_a_node_that_was_never_updated(data: bytes) -> None:
    assert updateplan.load(data) == updateplan.NO_FIELDS


def test_records_are_read_as_they_were_written_and_others_not() -> None:
    record = UpdateStore(updated().files, "u").record
    assert record["good"] is not None
    assert updateplan.load(updateplan.dump(record)) == record
    for name in ("good", "last", "next", "trial"):
        assert updateplan.load(updateplan.dump({**record, name: {"slot": "c"}})) == updateplan.NO_FIELDS


@pytest.mark.parametrize(
    "change",
    [
        {"version": "../0.2"}, {"version": ""}, {"sha256": "0" * 63}, {"sig": "zz" * 64}, {"size": 0}, {"size": True},
        {"size": updateplan.SIZE_MAX + 1}, {"deadline": 0}, {"hold": -1}, {"downgrade": "yes"}, {"platform": "a b"},
    ],
)  # fmt: skip
def test_documents_out_of_form_are_refused(change: dict[str, Any]) -> None:
    good = release(b"x", "0.2.0", KEY)
    assert updateplan.parse(compact(good)) == good
    with pytest.raises(updateplan.UpdateError):
        updateplan.parse(compact({**good, **change}))


def test_signatures_are_those_of_other_libraries_and_nothing_else_passes() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    point = p256.public_point(key.private_numbers().private_value)
    message, signature = b"", b""
    for message in (b"", b"a release", bytes(1000)):
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        assert verify(point, message, signature)
        assert not verify(point, message + b"!", signature)
        for at in (0, 31, 32, 63):
            spoilt = bytearray(signature)
            spoilt[at] ^= 1
            assert not verify(point, message, bytes(spoilt))
        assert not verify(p256.public_point(KEY), message, signature)
    order = p256.N.to_bytes(32, "big")
    for wrong in (bytes(64), order + signature[32:], signature[:32] + order, signature[:63]):
        assert not verify(point, message, wrong)
    assert not verify(b"\x04" + bytes(64), message, signature)
    assert not verify(point[:-1] + bytes([point[-1] ^ 1]), message, signature)


def test_what_a_node_wants_is_what_was_released() -> None:
    said = release(b"x" * 10, "0.2.0", KEY)
    assert said == signed(b"x" * 10, "0.2.0")
    found = wanted({ANNOTATION: annotation("ops", "edgelite-0.2.0", said, deadline=60)})
    assert found is not None
    assert (found.namespace, found.name, found.size) == ("ops", "edgelite-0.2.0", 10)
    assert updateplan.parse(found.body)["deadline"] == 60
    assert b"from" not in found.body
    assert updateplan.statement(updateplan.parse(found.body)) == updateplan.statement(said)

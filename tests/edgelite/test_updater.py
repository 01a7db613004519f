"""What becomes of an update, and of one that is no good. Runs in the MicroPython VM too."""

import json

from edgelite import updateplan, updater
from edgelite.desired import compact
from edgelite.updatestore import UpdateStore, choose
from tests.edgelite.updated_node import BASE, KEY, Node, updated


def test_a_good_release_runs_and_its_result_is_told():
    node = Node()
    node.wants("0.2.0")
    assert node.rest() == "0.2.0"
    assert node.said[:2] == ("True", "Updated")
    assert "slot a" in node.said[2]
    node.wants("0.3.0")
    assert node.rest() == "0.3.0"
    assert "slot b" in node.said[2]
    assert (node.trials, node.rest()) == (2, "0.3.0"), "it stays without being tried again"


def test_a_release_that_does_not_work_is_given_up_and_what_ran_before_runs():
    for how, reason, trials in (
        ("crash", "Crashed", updateplan.STARTS_MAX),
        ("hang", "NotConfirmed", 1),
        ("deaf", "NotConfirmed", 1),
    ):
        node = updated(bad={"0.3.0": how})
        node.wants("0.3.0")
        assert node.rest() == "0.2.0"
        assert node.said[:2] == ("False", reason)
        assert node.trials == 1 + trials
        assert (node.rest(), node.trials) == ("0.2.0", 1 + trials), "it is not tried again by itself"
        node.bad = {}
        node.wants("0.3.0", attempt=2)
        assert node.rest() == "0.3.0"


class Cut(Node):
    """Its connection is lost soon after a trial has begun."""

    def live(self):
        return self.running == BASE or self.at < 0.5


def test_a_trial_has_to_stay_connected_for_as_long_as_was_said():
    node = Cut()
    node.wants("0.2.0")
    assert (node.rest(), node.said[1]) == (BASE, "NotConfirmed")


def test_a_bad_signature_costs_no_byte():
    node = Node()
    node.wants("0.2.0", key=KEY + 1)
    assert (node.rest(), node.served) == (BASE, 0)
    assert node.said[:2] == ("False", "BadSignature")


def test_what_was_signed_is_all_that_decides():
    for field, value in (("version", "0.2.1"), ("size", 4201), ("sha256", "0" * 64), ("downgrade", True)):
        node = Node()
        node.wants("0.2.0")
        said = json.loads(node.document)
        said[field] = value
        node.document = compact(said)
        assert (node.rest(), node.said[1]) == (BASE, "BadSignature"), field


def test_nothing_runs_where_no_key_is_trusted():
    node = Node()
    node.keys = []
    node.wants("0.2.0")
    assert (node.rest(), node.said[1]) == (BASE, "NoUpdateKey")


def test_other_bytes_than_were_signed_never_run():
    node = Node()
    node.wants("0.2.0")
    node.spoil = lambda piece: piece[:-1] + b"!"
    assert node.rest() == BASE
    assert node.said[:2] == ("False", "BadHash")
    assert node.served == updater.FETCHES_MAX * 5


def test_an_older_release_needs_the_signers_word_and_what_the_node_allows():
    node = Node()
    node.wants("0.0.9")
    assert (node.rest(), node.said[1]) == (BASE, "Downgrade")
    node.minimum = "0.0.8"
    node.wants("0.0.7", downgrade=True)
    assert (node.rest(), node.said[1]) == (BASE, "TooOld")
    node.wants("0.0.9", downgrade=True)
    assert node.rest() == "0.0.9"


def test_pieces_that_are_lost_are_asked_for_again_and_fetching_goes_on_where_it_was():
    node = Node()
    node.wants("0.2.0")
    node.lose_pieces = 3
    assert node.rest() == "0.2.0"
    assert node.served == 5 + 3


def test_a_document_that_is_withdrawn_leaves_what_runs():
    node = updated()
    node.document = None
    assert (node.rest(), node.trials) == ("0.2.0", 1)


def test_the_installed_release_runs_where_another_one_was_installed_since():
    node = updated()
    assert choose(UpdateStore(node.files, "u"), "0.5.0", lambda text: None) == (None, False)


def test_a_slot_that_rots_is_not_run_and_is_fetched_again():
    node = updated()
    node.files.data["u/a"] = b"?" + node.files.data["u/a"][1:]
    assert node.rest() == "0.2.0"
    assert node.trials == 2


def test_a_full_disk_tries_nothing_and_runs_what_worked():
    node = updated()
    store = UpdateStore(node.files, "u")
    record = updateplan.begun(store.record, updateplan.parse(node.document), "0" * 16)
    store.save(updateplan.fetched(record))
    node.files.room = 0
    choice, on_trial = choose(UpdateStore(node.files, "u"), BASE, lambda text: None)
    assert (choice["version"], on_trial) == ("0.2.0", False)


def test_power_lost_at_every_fifth_step_leaves_a_working_release_and_the_update_succeeds():
    whole = updated()
    whole.wants("0.3.0")
    whole.rest()
    for cut_at in range(1, whole.files.steps + 1, 5):
        node = Node(cut_at)
        node.files.cut_at = cut_at
        node.wants("0.2.0")
        node.rest()
        node.wants("0.3.0")
        assert node.rest() == "0.3.0", cut_at
        assert node.said[:2] == ("True", "Updated"), cut_at


def test_versions_are_ordered_as_people_read_them():
    ordered = ["0.1.0", "0.2.0-rc1", "0.2.0-rc2", "0.2.0", "0.2.1", "0.10.0", "1.0"]
    for i in range(1, len(ordered)):
        assert updateplan.older(ordered[i - 1], ordered[i])
        assert not updateplan.older(ordered[i], ordered[i - 1])
    assert not updateplan.older("1.0", "1.0")

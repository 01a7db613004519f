"""Where an agent connects next."""

from edgelite.hubs import REDIRECTS_MAX, Hubs, split_list


def test_a_list_may_have_blanks_and_empty_parts():
    assert split_list("a:1, b:2,,c:3 ") == ["a:1", "b:2", "c:3"]


def test_a_fleet_begins_at_different_addresses():
    assert [Hubs("a:1,b:2,c:3", chance).next() for chance in (0.0, 0.5, 0.99)] == ["a:1", "b:2", "c:3"]


def test_every_address_is_tried_once_before_a_pause():
    hubs = Hubs("a:1,b:2,c:3", 0.5)
    tried = []
    while True:
        tried.append(hubs.next())
        if not hubs.ended(answered=False):
            break
    assert tried == ["b:2", "c:3", "a:1"]
    hubs.rested()
    assert hubs.next() == "b:2" and hubs.ended(answered=False)


def test_an_address_that_answered_is_used_again():
    hubs = Hubs("a:1,b:2", 0.0)
    assert hubs.ended(answered=False) and hubs.next() == "b:2"
    assert not hubs.ended(answered=True)
    hubs.rested()
    assert hubs.next() == "b:2"


def test_a_redirect_counts_for_one_connection_only():
    hubs = Hubs("a:1", 0.0)
    assert hubs.redirected("x:9", 0.0) and hubs.next() == "x:9" and hubs.redirects == 1
    assert not hubs.ended(answered=True)
    hubs.rested()
    assert hubs.next() == "a:1" and hubs.redirects == 0


def test_hubs_that_send_each_other_nodes_are_given_up_after_two():
    hubs = Hubs("a:1", 0.0)
    assert [hubs.redirected("x:9", 0.0) for _ in range(REDIRECTS_MAX + 1)] == [True, True, False]
    assert hubs.next() == "a:1" and hubs.redirects == 0


def test_a_hub_that_hands_over_after_it_has_served_begins_a_new_count():
    hubs = Hubs("a:1", 0.0)
    assert all(hubs.redirected("x:9", 60.0) for _ in range(10)) and hubs.redirects == 1


def test_a_target_that_does_not_answer_is_named_and_the_next_try_is_at_home_at_once():
    hubs = Hubs("a:1", 0.0)
    hubs.redirected("x:9", 0.0)
    assert hubs.ended(answered=False)
    assert (hubs.next(), hubs.unreached, hubs.redirects) == ("a:1", "x:9", 1)

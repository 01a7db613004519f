import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgelite.session import Close
from hub.simulate.enrolling import issue_all
from hub.simulate.fleet import Fleet
from hub.simulate.identities import IdentityCache
from hub.simulate.node import SILENT, WAITING
from hub.simulate.settings import Faults, Settings
from security.ca import CertificateAuthority


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Accepts, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def fleet(tmp_path: Path, listener: socket.socket) -> Iterator[Fleet]:
    authority = CertificateAuthority.create("cloudhub.local", time.time())
    cache = IdentityCache(str(tmp_path), authority.trust_domain, authority.root_sha256)
    cache.open()
    settings = Settings(f"127.0.0.1:{listener.getsockname()[1]}", 3, at_once=2, faults=Faults(latency_s=0.01))
    issue_all(cache, authority, settings.names, lambda _: None)
    made = Fleet(settings, settings.names, cache, "hub.cloudhub.local")
    yield made
    made.close()


def until(fleet: Fleet, states: dict[str, int]) -> None:
    deadline = time.monotonic() + 20
    while fleet.states() != states:
        assert time.monotonic() < deadline, fleet.states()
        fleet.step()


def test_no_more_connections_than_allowed_are_being_made_at_a_time(fleet: Fleet) -> None:
    fleet.start()
    until(fleet, {"shaking": 2, "waiting": 1})
    for _ in range(5):
        fleet.step()
    assert fleet.states() == {"shaking": 2, "waiting": 1}


@pytest.mark.parametrize("how", [1, SILENT])
def test_a_pause_that_outlives_its_connection_ends_quietly(fleet: Fleet, how: int) -> None:
    fleet.start()
    until(fleet, {"shaking": 2, "waiting": 1})
    until_paused = time.monotonic() + 0.05
    for node in fleet.nodes:
        if node.state == "shaking":
            fleet.pause(node, until_paused, how)
    fleet.cut_all()
    assert {node.state for node in fleet.nodes} == {WAITING}
    while time.monotonic() < until_paused + 0.05:
        fleet.step()
    until(fleet, {"shaking": 2, "waiting": 1})  # they have come back


def test_a_redirect_is_followed_before_others_begin(fleet: Fleet) -> None:
    fleet.start()
    until(fleet, {"shaking": 2, "waiting": 1})
    sent = next(node for node in fleet.nodes if node.state == "shaking")
    sent._closing = Close("redirect", "", 0.0, to=fleet.hub)
    fleet._let(sent, sent.cut)
    assert fleet.states() == {"shaking": 1, "waiting": 2}
    fleet.step()
    assert sent.state != WAITING and fleet.tally.counts["redirects"] == 1

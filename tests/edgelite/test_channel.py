import socket
import threading

import pytest

from edgelite import credentials, wire
from edgelite.channel import OUT_BYTES_MAX, Channel, ChannelError, resolve, split_address
from edgelite.loop import Loop
from tests.edgelite.scripted_hub import DOMAIN, Hub


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path / "ca")
    hub.enrol(tmp_path / "node")
    yield hub
    hub.close()


def run(loop, gen, limit_s=20):
    task = loop.spawn(gen, "test")
    end = loop.now() + limit_s
    failed = []
    loop._on_crash = lambda _, error: failed.append(error)
    while not task.done:
        assert loop.now() < end
        loop.turn(0.5)
    if failed:
        raise failed[0]
    return task.result


def channel(loop, tmp_path, name="hub." + DOMAIN):
    return Channel(loop, credentials.client_context(str(tmp_path / "node")), name)


def connected(loop, hub, tmp_path):
    """(channel, the hub's end of it)."""
    made = channel(loop, tmp_path)
    thread, box = hub.accept_in_thread()
    host, port = split_address(hub.address)
    run(loop, made.connect(host, port, loop.now() + 10))
    thread.join()
    return made, box[0]


def collect(loop, made, size):
    got = b""
    while len(got) < size:
        yield from made.wait(loop.now() + 5)
        got += made.receive()
    return got


def failure(loop, gen):
    with pytest.raises(ChannelError) as caught:
        run(loop, gen)
    return caught.value


def test_bytes_pass_both_ways(loop, hub, tmp_path):
    made, peer = connected(loop, hub, tmp_path)
    made.send(wire.frame(wire.PING))
    assert made.flush()
    assert peer.get() == (wire.PING, 0, b"")
    peer.send(wire.PONG)
    assert run(loop, collect(loop, made, 8)) == wire.frame(wire.PONG)
    assert made.receive() == b""
    assert made.local_address == "127.0.0.1"
    made.close()


def test_more_than_the_socket_takes_waits_and_arrives_whole_and_in_order(loop, hub, tmp_path):
    made, peer = connected(loop, hub, tmp_path)
    messages = [wire.frame(wire.DATA, bytes([n]) * (100 + n * 997)) for n in range(80)] * 2
    total = sum(len(m) for m in messages)
    for message in messages:
        made.send(message)
    assert made.out_bytes == total
    received = []

    def drain():
        while len(received) < len(messages):
            received.append(peer.get())

    def write():
        while not made.flush():
            yield from made.wait(loop.now() + 5)

    assert not made.flush()
    thread = threading.Thread(target=drain)
    thread.start()
    run(loop, write())
    thread.join(10)
    assert [(k, b) for k, _, b in received] == [(wire.DATA, m[8:]) for m in messages]
    assert (made.out_bytes, made.sent_bytes) == (0, total)
    made.close()


def test_a_megabyte_at_once_is_received_in_bounded_pieces(loop, hub, tmp_path):
    made, peer = connected(loop, hub, tmp_path)
    body = bytes(1 << 20)
    thread = threading.Thread(target=peer.send, args=(wire.SET, body))
    thread.start()
    assert len(run(loop, collect(loop, made, len(body) + 8))) == len(body) + 8
    thread.join()
    made.close()


def test_a_second_connection_resumes_the_first(loop, hub, tmp_path):
    context = credentials.client_context(str(tmp_path / "node"))
    ticket = None
    for expected in (False, True):
        made = Channel(loop, context, "hub." + DOMAIN, ticket)
        thread, box = hub.accept_in_thread()
        run(loop, made.connect(*split_address(hub.address), loop.now() + 10))
        thread.join()
        box[0].send(wire.PING)
        run(loop, collect(loop, made, 8))
        assert made.resumed is expected
        assert box[0].channel.getpeercert()["subjectAltName"]
        ticket = made.ticket()
        made.close()


def test_a_slow_hub_is_given_up_at_the_bound(loop, hub, tmp_path):
    made, _ = connected(loop, hub, tmp_path)
    made.send(bytes(OUT_BYTES_MAX))
    with pytest.raises(ChannelError) as caught:
        made.send(b"x")
    assert caught.value.code == "slow"
    made.close()


def test_the_end_of_the_connection_is_an_error_after_what_came_before(loop, hub, tmp_path):
    made, peer = connected(loop, hub, tmp_path)
    peer.send(wire.PING)
    peer.close()
    assert run(loop, collect(loop, made, 8)) == wire.frame(wire.PING)
    assert failure(loop, collect(loop, made, 1)).code == "lost"
    made.close()
    with pytest.raises(ChannelError):
        made.receive()


def test_a_hub_of_another_authority_is_refused(loop, hub, tmp_path):
    stranger = Hub(tmp_path / "other")
    thread, _ = stranger.accept_in_thread()
    error = failure(loop, channel(loop, tmp_path).connect(*split_address(stranger.address), loop.now() + 5))
    thread.join()
    stranger.close()
    assert error.code == "certificate"
    assert "not this node's hub" in str(error)


def test_a_node_cannot_pose_as_the_hub(loop, hub, tmp_path):
    import ssl

    posing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    posing.load_cert_chain(tmp_path / "node" / "identity.pem")
    hub.context = posing
    thread, _ = hub.accept_in_thread()
    error = failure(loop, channel(loop, tmp_path).connect(*split_address(hub.address), loop.now() + 5))
    thread.join()
    assert error.code == "certificate"


def test_a_hub_with_another_name_is_refused(loop, hub, tmp_path):
    thread, _ = hub.accept_in_thread()
    made = channel(loop, tmp_path, "hub.other.example")
    error = failure(loop, made.connect(*split_address(hub.address), loop.now() + 5))
    thread.join()
    assert error.code == "certificate"
    assert "hub.other.example" in str(error)


def test_a_server_that_never_finishes_the_handshake_is_given_up_at_the_deadline(loop, hub, tmp_path):
    error = failure(loop, channel(loop, tmp_path).connect(*split_address(hub.address), loop.now() + 0.1))
    assert error.code == "timeout"
    assert "TLS handshake" in str(error)


def test_a_closed_port_is_named(loop, hub, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = failure(loop, channel(loop, tmp_path).connect("127.0.0.1", port, loop.now() + 5))
    assert error.code == "connect"
    assert f"127.0.0.1:{port}" in str(error)


def test_garbage_instead_of_tls_is_an_error(loop, hub, tmp_path):
    def garbage():
        raw, _ = hub.listener.accept()
        raw.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        raw.close()

    thread = threading.Thread(target=garbage)
    thread.start()
    error = failure(loop, channel(loop, tmp_path).connect(*split_address(hub.address), loop.now() + 5))
    thread.join()
    assert error.code in ("tls", "lost")


def test_names_are_resolved_without_blocking_the_loop(loop):
    found = run(loop, resolve(loop, "localhost", 80, loop.now() + 5))
    assert ("127.0.0.1", 80) in [address[:2] for _, address in found] or found
    assert run(loop, resolve(loop, "::1", 80, loop.now() + 5)) == [(socket.AF_INET6, ("::1", 80))]
    assert failure(loop, resolve(loop, "no such host.invalid", 80, loop.now() + 5)).code == "resolve"


def test_addresses_are_split_or_refused_with_a_remedy():
    assert split_address("hub.example:8444") == ("hub.example", 8444)
    assert split_address("[::1]:8444") == ("::1", 8444)
    for bad in ("hub.example", ":8444", "hub:0", "hub:99999", "hub:x", "::1:8444", ""):
        with pytest.raises(ValueError, match="HOST:PORT"):
            split_address(bad)

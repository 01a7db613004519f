"""A hub that tests play message by message: real TLS on 127.0.0.1, blocking sockets with deadlines."""

import contextlib
import json
import os
import socket
import ssl
import threading
import time

from edgelite import p256, wire
from edgelite.desired import version_of
from security import tls
from security.ca import CertificateAuthority
from security.identity import NodeId

DOMAIN = "cloudhub.local"
DEADLINE_S = 10.0


def until(condition, what="the condition", deadline_s=DEADLINE_S):
    """Waits until `condition()` is true; its value."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f"{what} did not come about within {deadline_s} s")


class Hub:
    """Listens on a free port; `accept` gives the next connection."""

    def __init__(self, directory, port=0):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.ca = CertificateAuthority.open(str(directory), DOMAIN)
        cert, key = self.ca.issue_hub("h1", DOMAIN, [], ["127.0.0.1"], time.time())
        self.context = tls.edge_server_context(cert, key, self.ca.root_pem)
        self.listener = socket.create_server(("127.0.0.1", port))
        self.listener.settimeout(DEADLINE_S)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.connections = []

    def enrol(self, data_dir, name="n1", edge=None, ttl_s=14 * 86400):
        """Writes what `edgelite join` would."""
        os.makedirs(data_dir, mode=0o700, exist_ok=True)
        private = p256.generate(os.urandom(p256.ENTROPY_BYTES))
        chain = self.ca.issue_node(
            p256.request_pem(private, name), NodeId(DOMAIN, "default", name, name), time.time(), ttl_s
        )
        write(data_dir, "identity.pem", chain + p256.private_pem(private))
        write(data_dir, "bundle.pem", self.ca.root_pem)
        facts = {"node": name, "trust_domain": DOMAIN, "hub": "hub." + DOMAIN, "edge": edge or self.address}
        write(data_dir, "node.json", json.dumps(facts))

    def accept(self, context=None):
        raw, _ = self.listener.accept()
        raw.settimeout(DEADLINE_S)
        try:
            connection = Connection((context or self.context).wrap_socket(raw, server_side=True))
        except BaseException:
            raw.close()
            raise
        self.connections.append(connection)
        return connection

    def accept_in_thread(self):
        """For a peer that connects from this very thread."""
        box = []

        def work():
            with contextlib.suppress(OSError):
                box.append(self.accept())

        thread = threading.Thread(target=work)
        thread.start()
        return thread, box

    def close(self):
        for connection in self.connections:
            connection.close()
        self.listener.close()


class Connection:
    def __init__(self, channel):
        self.channel = channel
        self.decoder = wire.Decoder()
        self.waiting = []
        self.received_bytes = 0

    def get(self):
        """The next message (type, stream, body bytes)."""
        while not self.waiting:
            data = self.channel.recv(65536)
            if not data:
                raise EOFError("the agent closed the connection")
            self.received_bytes += len(data)
            self.waiting = self.decoder.feed(data)
        return self.waiting.pop(0)

    def expect(self, kind, *skip):
        """The JSON body of the next message, which has to be of this type; those in `skip` may come before."""
        while True:
            got, _, body = self.get()
            if got == kind:
                return json.loads(body) if body and kind != wire.DATA else body
            assert got in skip, f"{wire.NAMES[got]} {body!r} instead of {wire.NAMES[kind]}"

    def ended(self):
        """True when the agent closes; whatever it still says is dropped."""
        try:
            while True:
                self.get()
        except (EOFError, ConnectionError, ssl.SSLError):
            return True

    def send(self, kind, body=b"", stream=0):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.channel.sendall(wire.message(kind, body, stream))

    def welcome(self, sync="match", **more):
        body = {
            "proto": 1,
            "features": [],
            "store": "s1",
            "gen": 1,
            "slot": 5,
            "epoch": 7,
            "claim": "c7",
            "rev": 10,
            "heartbeat": 30.0,
            "window": 64,
            "time": time.time(),
            "sync": sync,
        }
        body.update(more)
        self.send(wire.WELCOME, body)

    def set(self, key, document, revision=11):
        header = json.dumps({"k": key, "v": version_of(document), "r": revision}).encode()
        self.send(wire.SET, wire.set_body(header, document))

    def close(self):
        self.channel.close()


def write(data_dir, name, text):
    with open(os.path.join(data_dir, name), "w") as file:
        file.write(text)

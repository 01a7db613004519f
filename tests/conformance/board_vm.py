"""main.py of the board in the VM: the modules that this VM lacks, made of Node's, and the firmware as the package has it.

Prints JSON lines: {"said": text}, {"started": name} when a function starts (its first argument), and {"state", "documents", "heap",
"code"} when something of that changes or starts; `heap` is what is live beside the `code`, which a board has in its flash, in bytes.
"""

import gc
import json
import os
import sys
import time
from binascii import hexlify, unhexlify

import bridge

EAGAIN = 11


class Module:
    """Stands for a module: `base` with some names as given."""

    def __init__(self, base, **names):
        for name in dir(base) if base else []:
            if not name.startswith("__"):
                setattr(self, name, getattr(base, name))
        for name in names:
            setattr(self, name, names[name])


class Poll:
    def register(self, channel, events):
        pass

    def poll(self, ms):
        bridge.wait(ms)


class Raw:
    """The socket below TLS: where it goes."""

    def __init__(self, family=0, kind=0):
        self.address = None

    def settimeout(self, seconds):
        pass

    def connect(self, address):
        self.address = address

    def close(self):
        pass


class Channel:
    def __init__(self):
        self.waiting = b""

    def setblocking(self, flag):
        pass

    def read(self, size):
        if not self.waiting:
            come = bridge.read()
            if come == "-":
                return b""
            if not come:
                raise OSError(EAGAIN)
            self.waiting = unhexlify(come)
        data, self.waiting = self.waiting[:size], self.waiting[size:]
        return data

    def write(self, data):
        bridge.write(hexlify(bytes(data)).decode())
        return len(data)

    def close(self):
        bridge.close()


class Context:
    def __init__(self, protocol):
        self.verify_mode = 0

    def load_cert_chain(self, certificate, key):
        with open(certificate) as file:
            self.identity = file.read()

    def load_verify_locations(self, cadata):
        self.roots = cadata if isinstance(cadata, str) else cadata.decode()

    def wrap_socket(self, raw, server_hostname):
        if self.verify_mode != 2:
            raise OSError("a connection that verifies nothing")
        host, port = raw.address
        trouble = bridge.connect(host, port, server_hostname, self.roots, self.identity)
        if trouble:
            raise OSError(trouble)
        return Channel()


def rename(source, target):
    real.rename(source, target)
    bridge.persist()


def remove(path):
    real.remove(path)
    bridge.persist()


real = os
sys.modules["os"] = Module(
    os,
    urandom=lambda size: unhexlify(bridge.entropy(size)),
    sync=bridge.persist,
    rename=rename,
    remove=remove,
)
sys.modules["time"] = Module(time, sleep=lambda seconds: bridge.sleep(int(seconds * 1000)))
sys.modules["select"] = Module(None, poll=Poll, POLLIN=1)
sys.modules["socket"] = Module(
    None,
    SOCK_STREAM=1,
    socket=Raw,
    getaddrinfo=lambda host, port, *more: [(2, 1, 0, "", (host, port))],
)
sys.modules["ssl"] = Module(None, PROTOCOL_TLS_CLIENT=16, CERT_REQUIRED=2, SSLContext=Context)


started = []


def blink(task):
    started.append(task.args[0])
    show(started=task.args[0])
    while not task.stopping:
        task.print("blink", *task.args)
        yield 0.2


def show(**what):
    print(json.dumps(what))


class Board:
    """The firmware; `step` is a turn of its loop. This VM collects garbage between steps alone, when one has asked for it."""

    def __init__(self):
        from edgelite.callables import Functions
        from edgelite.firmware import Firmware

        self.functions = Functions()
        self.functions.register("blink", blink)
        self.make = Firmware
        self.firmware = None
        self.code = 0
        self.shown = None
        self.showing = False
        gc.collect()

    def step(self):
        if self.firmware is None:
            self.code = gc.mem_alloc()
            self.firmware = self.make("/node", self.functions, say=lambda text: show(said=text))
        board = self.firmware.board
        if self.showing:
            heap = gc.mem_alloc() - self.code
            show(state=self.shown[0], documents=self.shown[1], heap=heap, code=self.code)
        self.firmware.turn()
        state = (board.state, len(board.desired.versions), len(started))
        self.showing = state != self.shown
        self.shown = state
        gc.collect()


class Check:
    """A check that needs no hub, in steps."""

    def __init__(self, what, *numbers):
        if what == "check":
            import everycut

            self.steps = everycut.steps("/node/journal", int(numbers[0]))
        else:
            import powercuts

            self.steps = powercuts.steps(int(numbers[0]), int(numbers[1]))
        self.what = what
        self.last = None

    def step(self):
        gc.collect()
        for found in self.steps:
            if self.what == "check":
                self.last = found
            elif found is not None:
                print(json.dumps(found))
            return
        if self.what == "check":
            show(checked=self.last)
        bridge.done()


job = None


def begin(*words):
    global job
    job = Check(*words) if words else Board()


def step():
    job.step()

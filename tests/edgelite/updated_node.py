"""A node that is updated, in memory: the real decisions, store and updater, over files that lose what was not synced. Runs on MicroPython
too."""

import binascii
import hashlib

from edgelite import p256, signatures, updateplan, updater
from edgelite.desired import compact
from edgelite.updater import DOCUMENT, Site, Updater
from edgelite.updatestore import UpdateStore, choose, ended
from tests.edgelite.memory_files import MemoryFile, MemoryFiles

BASE = "0.1.0"
KEY = 0x1234567890ABCDEF1234567890ABCDEF
PIECE_BYTES = 1000
BOOTS_MAX = 40
SIGNED = {}
VERIFIED = {}


def verify(point, message, signature):
    """The real one, asked once for the same."""
    mark = (point, message, signature)
    if mark not in VERIFIED:
        VERIFIED[mark] = signatures.verify(point, message, signature)
    return VERIFIED[mark]


updater.verify = verify


class PowerCut(Exception):
    """Nothing after it is carried out."""


class CutFile(MemoryFile):
    def write(self, data):
        self.disk.step()
        return MemoryFile.write(self, data)


class CutFiles(MemoryFiles):
    """Power goes at step `cut_at`; what was not synced is lost, kept or torn, file by file, as `seed` says."""

    def __init__(self, seed):
        MemoryFiles.__init__(self)
        self.seed = seed
        self.steps = 0
        self.cut_at = None

    def step(self):
        self.steps += 1
        if self.steps == self.cut_at:
            raise PowerCut()

    def create(self, path):
        self.step()
        MemoryFiles.create(self, path)
        return CutFile(self, path)

    def append(self, path):
        if path not in self.data:
            self.data[path] = b""
        return CutFile(self, path)

    def sync(self, file):
        self.step()
        MemoryFiles.sync(self, file)

    def replace(self, source, target):
        self.step()
        MemoryFiles.replace(self, source, target)
        self.step()

    def lose_power(self):
        left = dict(self.durable)
        for path in sorted(self.data):
            data, had = self.data[path], len(left.get(path, b""))
            self.seed = (self.seed * 1103515245 + 12345) % (1 << 31)
            fate = (self.seed >> 16) % 3
            if fate == 1:
                left[path] = data
            elif fate == 2 and len(data) > had:
                left[path] = data[: had + (self.seed >> 8) % (len(data) - had)]
        self.data, self.durable = dict(left), dict(left)


class Ended(Exception):
    """The agent's process is over: it wants to be started again."""


def signed(data, version, key=KEY, downgrade=False):
    """What is said of a release, as `hub.releases.release` says it."""
    mark = (data, version, key, downgrade)
    if mark not in SIGNED:
        sha256 = binascii.hexlify(hashlib.sha256(data).digest()).decode()
        said = {"version": version, "platform": "pyz", "sha256": sha256, "size": len(data)}
        if downgrade:
            said["downgrade"] = True
        r, s = p256.sign(key, updateplan.statement(said))
        said["sig"] = binascii.hexlify(r.to_bytes(32, "big") + s.to_bytes(32, "big")).decode()
        SIGNED[mark] = said
    return dict(SIGNED[mark])


class Node(Site):
    """One node, its disk, and a hub that answers. `bad`: versions that crash, hang, or are deaf (never reach the hub)."""

    keys = [binascii.hexlify(p256.public_point(KEY)).decode()]  # noqa: RUF012

    def __init__(self, seed=0, bad=None):
        self.files = CutFiles(seed)
        self.bad = bad or {}
        self.releases = {}
        self.document = None
        self.served = 0
        self.spoil = lambda piece: piece
        self.lose_pieces = 0
        self.said = ("", "", "")
        self.running = ""
        self.trials = 0

    def wants(self, version, key=KEY, downgrade=False, **settings):
        """Publishes a release and has the node want it."""
        data = (version.encode() + b" ") * 700
        said = signed(data, version, key, downgrade)
        said.update({"deadline": 5, "hold": 1})
        said.update(settings)
        self.releases[said["sha256"]] = data
        self.document = compact(said)

    def rest(self):
        """Starts it again and again until it rests; the version that runs then."""
        for _ in range(BOOTS_MAX):
            try:
                if self.start():
                    return self.running
            except PowerCut:
                self.files.lose_power()
        raise AssertionError("it never rests")

    def start(self):
        """One start of the agent's process. Does it stay?"""
        store = UpdateStore(self.files, "u")
        choice, on_trial = choose(store, BASE, lambda text: None)
        if choice is not None:
            assert store.holds(choice["slot"], choice["sha256"]), "what runs is not what was signed"
        self.running = BASE if choice is None else choice["version"]
        assert on_trial or self.running not in self.bad, "what never worked runs for good"
        self.how = self.bad.get(self.running, "")
        if on_trial:
            self.trials += 1
            if self.how in ("crash", "hang"):
                ended(store, 1, self.how == "hang")
                return False
        try:
            self.work()
        except Ended:
            return False
        assert not on_trial, "a trial ends by itself"
        return True

    def work(self):
        """The agent runs until nothing more is to be done. Raises Ended."""
        self.at, self.asked, self.version = 0.0, [], self.running
        made = Updater(self, UpdateStore(self.files, "u"))
        if self.document:
            assert made.admit(self.document) is None
            made.set(self.document)
        if self.live():
            made.synced()
        while made.due is not None:
            self.at = max(self.at, made.due)
            made.turn()
            while self.asked:
                self.serve(made, self.asked.pop(0))
                made.turn()

    def serve(self, made, ask):
        kind, key, body = ask
        assert (kind, key) == ("piece", DOCUMENT)
        self.served += 1
        if self.lose_pieces:
            self.lose_pieces -= 1
            return  # with its connection: it is asked for again
        piece = self.releases[body["sha"]][body["at"] :][: min(body["len"], PIECE_BYTES)]
        made.piece(f"piece/{body['sha'][:16]}/{body['at']}", self.spoil(piece))

    def now(self):
        return self.at

    def live(self):
        return self.how != "deaf"

    def report(self, kind, key, body):
        self.asked.append((kind, key, body))

    def condition(self, status, reason, message):
        self.said = (status, reason, message)

    def say(self, text):
        pass

    def restart(self):
        raise Ended()


def updated(seed=0, bad=None):
    """A node that runs 0.2.0 from slot a."""
    node = Node(seed, bad)
    node.wants("0.2.0")
    node.rest()
    return node

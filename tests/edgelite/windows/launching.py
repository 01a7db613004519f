"""What the launcher on Windows promises, checked by Windows' Python: run there by path (`python.exe launching.py DIRECTORY [NAME...]`),
by tests/edgelite/windows/test_windows.py under wine. Releases are a few lines of Python. Prints one JSON object per promise, as
`promises.py` does.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import traceback

sys.path.insert(0, __file__.replace("\\", "/").rpartition("/tests/")[0])

from edgelite import __version__, kernel32, updateplan, winhost, winlauncher
from edgelite.exits import RESTART
from edgelite.updatestore import UpdateStore
from tests.edgelite import updated_node

ROOT = sys.path[0]
DEADLINE_S = 60.0
SAYS = "import os, sys; print('{} runs', os.environ['EDGELITE_SLOT'], *sys.argv[1:2], flush=True)\n"
WAITS = SAYS + "import time; time.sleep(600)\n"
KEEPS = SAYS + (
    "if os.environ['EDGELITE_SLOT'] == 'good': sys.exit(7)\n"
    "import json; path = os.path.dirname(sys.argv[0]) + '/state.json'; r = json.load(open(path)); t = r['trial']\n"
    "r.update(good={{'slot': t['slot'], 'sha256': t['sha256'], 'version': t['version']}}, base=t['base'], trial=None)\n"
    f"json.dump(r, open(path, 'w')); sys.exit({RESTART})\n"
)
LISTENS = SAYS + (
    f"sys.path.insert(0, {ROOT!r}); from edgelite import winhost\n"
    "class Agent: stop = drain = again = lambda self: os._exit(5)\n"
    "winhost.listen({!r}, Agent()); print('listens', flush=True); import time; time.sleep(600)\n"
)
# Starts a process that is to outlive it, and says who they are.
LEAVES = SAYS + (
    "import subprocess, time; left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(os.getpid(), left.pid, flush=True); time.sleep(600)\n"
)
# Presses Ctrl-C in the console that it shares with its launcher.
PRESSES = SAYS + (
    "import ctypes, signal, time; signal.signal(signal.SIGINT, lambda *_: os._exit({}))\n"
    "ctypes.WinDLL('kernel32').GenerateConsoleCtrlEvent(0, 0)\n"
    "while True: time.sleep(0.02)\n"
)
LAUNCH = (
    f"import sys; sys.path.insert(0, {ROOT!r}); from edgelite.winlauncher import Launcher\n"
    "print('ends with', Launcher(sys.argv[1], 'info').run())\n"
)


class Lines:
    """A text stream that keeps what it is given, and tells who waits for it."""

    def __init__(self):
        self.lines = []
        self.heard = lambda line: None

    def write(self, text):
        self.lines += text.splitlines()
        self.heard(text)

    def flush(self):
        pass


class Bench(winlauncher.Launcher):
    """A data directory with a slot or two, and the launcher on it, whose own release only says that it runs."""

    def __init__(self, directory):
        self.said = Lines()
        super().__init__(directory, "info", "", self.said)
        self.directory = directory
        os.makedirs(os.path.join(directory, "update"))
        self.record = dict(updateplan.NO_FIELDS)

    def _base(self):
        self.said.write("base runs")
        return 0

    def slot(self, name, program):
        data = program.encode()
        with open(os.path.join(self.directory, "update", name), "wb") as file:
            file.write(data)
        return {"slot": name, "sha256": hashlib.sha256(data).hexdigest(), "version": "9.0"}

    def good(self, program):
        self.record["good"] = self.slot("a", program)
        self.record["base"] = __version__

    def trial(self, program, deadline=DEADLINE_S):
        more = {"id": "0" * 16, "deadline": int(deadline), "hold": 0, "starts": 0, "base": ""}
        self.record["trial"] = {**self.slot("b", program), **more}

    def launched(self):
        self.store().save(self.record)
        return self.run(), self.said.lines

    def elsewhere(self):
        """The real launcher, in a process and a console of its own."""
        command = [sys.executable, "-c", LAUNCH, self.directory]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, creationflags=kernel32.NO_WINDOW)

    def store(self):
        return UpdateStore(winlauncher.SlotFiles(), os.path.join(self.directory, "update"))

    def last(self):
        return self.store().record["last"]["reason"]

    def stop_at(self, word):
        """Has it stopped once its child has said so."""
        self.said.heard = lambda line: word in line and threading.Thread(target=self.stop).start()


def alive(pid):
    try:
        process = kernel32.call("OpenProcess", kernel32.QUERY_LIMITED | kernel32.SYNCHRONIZE, False, pid)
    except OSError:
        return False
    try:
        return kernel32.runs(process)
    finally:
        kernel32.close(process)


def until(condition, what):
    limit = time.monotonic() + DEADLINE_S / 3
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


def a_trial_that_was_kept_is_started_anew_and_ends_as_the_agent_ends(bench):
    bench.good(SAYS.format("a"))
    bench.trial(KEEPS.format("b"))
    assert bench.launched() == (7, ["b runs trial run", "b runs good run"])


def a_trial_that_crashes_is_given_up_and_the_installed_release_runs(bench):
    bench.trial(SAYS.format("b") + "sys.exit(1)\n")
    assert bench.launched() == (0, ["b runs trial run"] * updateplan.STARTS_MAX + ["base runs"])
    assert bench.last() == "Crashed"


def a_trial_that_hangs_is_ended_and_what_was_good_runs(bench):
    bench.good(SAYS.format("a") + "sys.exit(7)\n")
    bench.trial(WAITS.format("b"), 1)
    assert bench.launched() == (7, ["b runs trial run", "a runs good run"])
    assert bench.last() == "NotConfirmed"


def what_runs_is_asked_to_stop_and_ends_by_itself(bench):
    bench.good(LISTENS.format("a", bench.directory))
    bench.stop_at("listens")
    assert bench.launched() == (5, ["a runs good run", "listens"])


def a_trial_that_does_not_listen_is_ended_after_a_while_and_that_start_does_not_count(bench):
    winlauncher.STOP_S = 0.5
    bench.trial(WAITS.format("b"))
    bench.stop_at("runs")
    assert bench.launched() == (0, ["b runs trial run"])
    assert bench.store().record["trial"]["starts"] == 0


def ctrl_c_stops_the_launcher_with_its_child(bench):
    bench.good(PRESSES.format("a", 5))
    bench.store().save(bench.record)
    process = bench.elsewhere()
    try:
        said = process.communicate(timeout=DEADLINE_S)[0]
        assert (said.splitlines(), process.returncode) == (["a runs good run", "ends with 5"], 0), said
    finally:
        process.kill()


def a_killed_launcher_takes_its_child_along_and_leaves_what_that_has_started(bench):
    bench.trial(LEAVES.format("b"))
    bench.store().save(bench.record)
    process = bench.elsewhere()
    try:
        assert process.stdout.readline() == "b runs trial run\n"
        child, left = [int(word) for word in process.stdout.readline().split()]
        assert alive(child) and alive(left)
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    try:
        until(lambda: not alive(child), "the child has ended")
        assert alive(left)
    finally:
        for pid in (child, left):
            if alive(pid):
                os.kill(pid, 9)


def who_has_stopped_listening_leaves_it_to_the_next(bench):
    class Agent:
        def __init__(self):
            self.told = []

        def stop(self):
            self.told.append("stop")

        drain = again = stop

    first, second = Agent(), Agent()
    winhost.listen(bench.directory, first)()
    try:
        winhost.tell(bench.directory, winhost.STOP)
    except OSError as error:
        assert kernel32.number(error) == kernel32.NOT_FOUND, error
    else:
        raise AssertionError("somebody listens")
    deaf = winhost.listen(bench.directory, second)
    winhost.tell(bench.directory, winhost.STOP)
    until(lambda: second.told, "it was told")
    deaf()
    assert first.told == []


class Node(updated_node.Node):
    """Decides and stores on a disk of Windows; what it is asked to run is not run."""

    def __init__(self, bad=None):
        super().__init__(0, bad)
        self.files = winlauncher.SlotFiles()


def the_decisions_hold_on_a_disk_of_windows(bench):
    """Bad signature, crash, hang, cut off in the middle; `tests.edgelite.test_updates` has them with power cut at each step."""
    os.makedirs(os.path.join(bench.directory, "node", "u"))
    before = os.getcwd()
    os.chdir(os.path.join(bench.directory, "node"))
    try:
        node = Node({"0.3.0": "crash", "0.4.0": "hang"})
        node.wants("0.2.0", key=updated_node.KEY + 1)
        assert (node.rest(), node.said[1]) == (updated_node.BASE, "BadSignature")
        node.wants("0.3.0")
        assert (node.rest(), node.said[1]) == (updated_node.BASE, "Crashed")
        node.wants("0.4.0")
        assert (node.rest(), node.said[1]) == (updated_node.BASE, "NotConfirmed")
        node.wants("0.5.0")
        served = node.served
        node.lose_pieces = 1
        node.spoil = cut
        try:
            node.rest()
        except ConnectionError:
            pass
        assert 0 < os.path.getsize("u/fetched") < 4200
        node.spoil = lambda piece: piece
        assert (node.rest(), node.said[1]) == ("0.5.0", "Updated")
        assert node.served - served == 7, "it goes on where it was: five pieces, one lost, one cut off"
    finally:
        os.chdir(before)


def cut(piece):
    if os.path.getsize("u/fetched") >= 2000:
        raise ConnectionError
    return piece


PROMISES = [
    a_trial_that_was_kept_is_started_anew_and_ends_as_the_agent_ends,
    a_trial_that_crashes_is_given_up_and_the_installed_release_runs,
    a_trial_that_hangs_is_ended_and_what_was_good_runs,
    what_runs_is_asked_to_stop_and_ends_by_itself,
    a_trial_that_does_not_listen_is_ended_after_a_while_and_that_start_does_not_count,
    ctrl_c_stops_the_launcher_with_its_child,
    a_killed_launcher_takes_its_child_along_and_leaves_what_that_has_started,
    who_has_stopped_listening_leaves_it_to_the_next,
    the_decisions_hold_on_a_disk_of_windows,
]


def main(directory, names):
    failed = False
    for promise in PROMISES:
        if names and promise.__name__ not in names:
            continue
        said = {"name": promise.__name__}
        began = time.monotonic()
        try:
            promise(Bench(os.path.join(os.path.realpath(directory), promise.__name__[:24])))
        except Exception:
            failed, said["error"] = True, traceback.format_exc()
        said["seconds"] = round(time.monotonic() - began, 2)
        print(json.dumps(said), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

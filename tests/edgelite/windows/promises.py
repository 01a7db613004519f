"""What the runtime on Windows promises, checked by Windows' Python: run there by path (`python.exe promises.py DIRECTORY [NAME...]`),
by tests/edgelite/windows/test_windows.py under wine. Prints one JSON object per promise: name, and error or skip where there is one.

A promise is a function of a `Bench`; its name is a sentence. `Skipped` says what this system has not.
"""

import ctypes
import json
import os
import random
import sys
import time
import traceback

sys.path.insert(0, __file__.replace("\\", "/").rpartition("/tests/")[0])

from edgelite import kernel32, winfiles, winhost
from edgelite.config import Config
from edgelite.loop import Loop, Wait, now
from edgelite.runtimes import windows, windows_names, windows_shim
from edgelite.runtimes.base import Launch, Mount, RuntimeFailure, State

DEADLINE_S = 60.0
PYTHON = sys.executable
# A program that hears Ctrl-Break, and says what it hears; of wine, which has none, Ctrl-C, which is off in groups of their own.
POLITE = """
import ctypes, signal, sys, time
def bye(number, _):
    print("told", number, flush=True)
    sys.exit(5)
signal.signal(signal.SIGBREAK, bye)
signal.signal(signal.SIGINT, bye)
if hasattr(ctypes.WinDLL("ntdll"), "wine_get_version"):
    ctypes.WinDLL("kernel32").SetConsoleCtrlHandler(None, False)
print("up", flush=True)
while True:
    time.sleep(0.02)
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGBREAK, signal.SIG_IGN)
more = int(sys.argv[1])
child = subprocess.Popen([sys.executable, "-c", sys.argv[2], str(more - 1), sys.argv[2]]) if more else None
print(__import__("os").getpid(), flush=True)
time.sleep(1000)
"""


class Skipped(Exception):
    """This system has not what the promise is about."""


class Kept(State):
    """A dict: what a journal would hold."""

    def __init__(self):
        self.values = {}

    def put(self, key, value):
        self.values[key] = value

    def delete(self, key):
        self.values.pop(key, None)

    def items(self):
        return list(self.values.items())


class Sink:
    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += data
        return
        yield Wait(-1, 0, None)


class Bench:
    def __init__(self, directory):
        self.directory = directory
        self.state = Kept()
        self.pods = set()
        self.boot = "boot-1"
        self.loop = Loop()
        self.runtime = self._runtime()

    def _runtime(self):
        return windows.create(self.state, self.directory, self.boot, Config())

    def restart(self):
        self.loop.close()
        self.loop = Loop()
        self.runtime = self._runtime()
        return self.run(self.runtime.recover())

    def run(self, generator):
        task = self.loop.spawn(generator, "promise")
        limit = now() + DEADLINE_S
        while not task.done:
            assert now() < limit, f"not done within {DEADLINE_S} s"
            self.loop._stopping = False
            self.loop.turn(0.2)
        if task.error is not None:
            raise task.error
        return task.result

    def until(self, condition, what):
        limit = now() + DEADLINE_S
        while True:
            found = condition()
            if found:
                return found
            assert now() < limit, what
            self.loop.turn(0.02)

    def start(self, command, uid="u1", attempt=0, env=(), mounts=(), **container):
        entry = {"name": "main", "command": command, **container}
        pod = {"kind": "Pod", "ns": "default", "name": uid, "uid": uid, "spec": {"containers": [entry]}}
        place = os.path.join(self.directory, "pods", uid)
        os.makedirs(place, exist_ok=True)
        self.pods.add(uid)
        launch = Launch(pod, entry, attempt, command, [], list(env), list(mounts), place, {})
        return self.run(self.runtime.start(launch))

    def python(self, script, *arguments, **options):
        return self.start([PYTHON, "-c", script, *arguments], **options)

    def ended(self, uid="u1"):
        limit = now() + DEADLINE_S
        while now() < limit:
            for status in self.run(self.runtime.changes(limit)):
                if status.uid == uid:
                    return status
        raise AssertionError(f"{uid} did not end")

    def log(self, uid="u1", **options):
        sink = Sink()
        self.run(self.runtime.logs(uid, "main", options, sink))
        return sink.data.decode().replace("\r\n", "\n")

    def log_has(self, text, lines=0, **options):
        def look():
            found = self.log(**options)
            return found if text in found and found.count("\n") >= lines else ""

        return self.until(look, f"log with {text!r}")

    def exec(self, *argv, timeout_s=30.0, uid="u1"):
        return self.run(self.runtime.exec(uid, "main", list(argv), timeout_s))

    def close(self):
        for uid in self.pods:
            self.run(self.runtime.remove(uid))
        self.loop.close()


def alive(pid):
    try:
        process = kernel32.call("OpenProcess", kernel32.QUERY_LIMITED | kernel32.SYNCHRONIZE, False, pid)
    except OSError:
        return False
    try:
        return kernel32.runs(process)
    finally:
        kernel32.close(process)


# Running and ending


def arguments_environment_and_exit_code_arrive_as_they_are(bench):
    hard = 'a b"\\\\" \\ c\\" %PATH% ^& \t\u00e9'
    script = (
        "import os, sys; sys.stdout.reconfigure(encoding='utf-8', newline='')\n"
        "print(ascii(sys.argv[1:]), ascii(os.environ['Hard']), os.environ['TEMP'] == os.getcwd(), flush=True)\n"
        "sys.stderr.write('err\\n'); sys.exit(3)"
    )
    arguments = [hard, "", "--", "tail\\"]
    started = bench.python(script, *arguments, env=[("HARD", "first"), ("hard", hard)])
    assert started.phase == "running" and started.handle.startswith("process://")
    end = bench.ended()
    assert (end.exit_code, end.reason, end.handle) == (3, "Error", started.handle), vars_of(end)
    assert bench.log() == f"{arguments!a} {hard!a} True\nerr\n", bench.log()
    assert bench.run(bench.runtime.changes(now() + 0.05)) == []


def stop_asks_by_ctrl_break_and_the_program_ends_by_itself(bench):
    bench.python(POLITE)
    bench.log_has("up")
    end = bench.run(bench.runtime.stop("u1", "main", 30.0))
    assert end.exit_code == 5 and "told" in bench.log(), (vars_of(end), bench.log())
    assert bench.run(bench.runtime.changes(now() + 0.05)) == []
    if "told 2" in bench.log():
        raise Skipped("Ctrl-Break: this system has none, and Ctrl-C reached the program in its place")


def what_does_not_listen_is_killed_with_all_its_children_after_its_grace(bench):
    bench.python(STUBBORN, "2", STUBBORN)
    pids = [int(line) for line in bench.log_has("\n", 3).split()]
    assert len(pids) == 3 and all(alive(pid) for pid in pids), pids
    end = bench.run(bench.runtime.stop("u1", "main", 0.2))
    assert end.exit_code == 137, vars_of(end)
    bench.until(lambda: not any(alive(pid) for pid in pids), "the whole tree has ended")


def children_end_with_the_main_process(bench):
    script = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)']); print(p.pid)"
    bench.python(script)
    assert bench.ended().exit_code == 0
    pid = int(bench.log())
    bench.until(lambda: not alive(pid), "the child has ended")


def a_failed_start_says_why_and_leaves_nothing(bench):
    for command, said in (
        (["no-such-program"], "not found in %PATH%"),
        (["C:\\nowhere\\x.exe"], "no such file"),
        (["evil.bat"], ""),
    ):
        try:
            bench.start(command)
        except RuntimeFailure as failure:
            assert failure.reason == "RunContainerError" and said in failure.message, failure.message
            assert command[0] in failure.message
        else:
            raise AssertionError(f"{command} was started")
    assert bench.restart() == [] and bench.state.values == {}


def a_batch_file_is_refused_for_cmd_would_read_its_arguments_otherwise(bench):
    path = os.path.join(bench.directory, "tool.bat")
    with open(path, "w") as file:
        file.write("@echo off\r\n")
    try:
        bench.start([path, "x"])
    except RuntimeFailure as failure:
        assert "batch file" in failure.message, failure.message
    else:
        raise AssertionError("it was started")


# Agents that come and go


def a_new_agent_adopts_what_runs_and_hears_of_its_end(bench):
    bench.python(POLITE)
    bench.log_has("up")
    (found,) = bench.restart()
    assert (found.uid, found.attempt, found.phase) == ("u1", 0, "running"), vars_of(found)
    assert (
        bench.exec(PYTHON, "-c", "import os; print(len(os.environ['EDGELITE_LAUNCH']))")[1].strip() == b"32"
    )
    assert bench.run(bench.runtime.stop("u1", "main", 30.0)).exit_code == 5
    assert bench.log().count("up") == 1


def what_ended_while_no_agent_ran_is_found_with_its_exit_code(bench):
    bench.python("import sys; sys.exit(9)")
    path = os.path.join(bench.directory, "pods", "u1", "process", "main", "0", "exit")
    limit = now() + DEADLINE_S
    while not os.path.exists(path):
        assert now() < limit
        time.sleep(0.02)
    (found,) = bench.restart()
    assert (found.phase, found.exit_code) == ("exited", 9), vars_of(found)
    assert bench.restart()[0].exit_code == 9 and bench.run(bench.runtime.changes(now() + 0.05)) == []


def a_shim_that_is_killed_takes_its_workload_along(bench):
    bench.python(STUBBORN, "1", STUBBORN)
    pids = [int(line) for line in bench.log_has("\n", 2).split()]
    (key,) = bench.state.values
    shim = json.loads(bench.state.values[key])["shim"][0]
    process = kernel32.call("OpenProcess", kernel32.TERMINATE, False, shim)
    kernel32.call("TerminateProcess", process, 1)
    kernel32.close(process)
    # Before the runtime looks: the job itself ends them.
    bench.until(lambda: not any(alive(pid) for pid in pids), "its tree has ended")
    end = bench.ended()
    assert (end.exit_code, end.reason) == (137, "ContainerStatusUnknown"), vars_of(end)


def a_shim_that_was_never_told_ends_and_was_no_attempt(bench):
    entry = {"name": "main", "command": [PYTHON]}
    pod = {"kind": "Pod", "ns": "d", "name": "p", "uid": "u1", "spec": {"containers": [entry]}}
    place = os.path.join(bench.directory, "pods", "u1")
    os.makedirs(place, exist_ok=True)
    launch = Launch(pod, entry, 0, entry["command"], [], [], [], place, {})
    c = bench.runtime._new(launch)
    os.makedirs(c.directory)
    site = bench.runtime._site
    shim = site.prepare(c, site.specification(launch, c))
    c.shim = (shim.pid, shim.start)
    bench.state.put(c.key, c.record())
    assert alive(shim.pid)
    shim.close()  # the agent has died
    assert bench.restart() == [] and bench.state.values == {}
    bench.until(lambda: not alive(c.shim[0]), "it has ended")


def after_a_reboot_an_unrecorded_end_is_unknown(bench):
    bench.python(POLITE)
    bench.log_has("up")
    bench.boot = "boot-2"
    (found,) = bench.restart()
    assert (found.exit_code, found.reason) == (137, "ContainerStatusUnknown"), vars_of(found)


# Inside


def exec_has_the_surroundings_of_the_container_and_ends_in_time(bench):
    bench.python("open('here', 'w').write('mark')\n" + POLITE, env=[("COLOUR", "blue")])
    bench.log_has("up")
    script = "import os, sys; print(open('here').read(), os.environ['COLOUR'], flush=True); sys.stderr.write('e'); sys.exit(3)"
    code, output = bench.exec(PYTHON, "-c", script)
    assert (code, output.replace(b"\r", b"")) == (3, b"mark blue\ne"), (code, output)
    code, output = bench.exec(PYTHON, "-c", "print('x' * 300000)")
    assert (code, len(output)) == (0, 10240)
    try:
        bench.exec(PYTHON, "-c", STUBBORN, "1", STUBBORN, timeout_s=1.0)
    except RuntimeFailure as failure:
        assert failure.reason == "Timeout"
    else:
        raise AssertionError("it ended")
    try:
        bench.exec("no-such-program")
    except RuntimeFailure as failure:
        assert "not found" in failure.message
    members = bench.runtime._site.members(bench.runtime._newest("u1", "main"))
    bench.until(lambda: len(bench.runtime._site.members(bench.runtime._newest("u1", "main"))) == 1, members)


def input_reaches_a_command_whole_and_its_end_is_seen(bench):
    bench.python(POLITE)
    bench.log_has("up")
    script = (
        "import hashlib, sys; d = sys.stdin.buffer.read(); print(len(d), hashlib.sha256(d).hexdigest()[:8])"
    )
    opened = bench.run(
        bench.runtime.open_exec("u1", "main", [PYTHON, "-c", script], True, (True, False), False)
    )
    data = bytes(range(256)) * 1000
    got = []

    def send(channel, piece):
        got.append(piece)
        return
        yield

    def talk():
        yield from opened.write(data)
        yield from opened.end_input()
        for _, copy in opened.outputs(send):
            yield from copy
        return (yield from opened.result(lambda: True))

    assert bench.run(talk()) == 0
    opened.abandon()
    import hashlib

    assert b"".join(got).split() == [b"256000", hashlib.sha256(data).hexdigest()[:8].encode()], got


def what_a_container_uses_is_told_while_it_runs(bench):
    bench.python(POLITE)
    bench.log_has("up")
    ((uid, name, cpu, memory),) = bench.run(bench.runtime.usage())
    assert (uid, name) == ("u1", "main") and cpu >= 0 and memory > 100000, (cpu, memory)
    if not cpu:
        raise Skipped("cpu time of a job: this system's job accounting counts none")


def a_followed_log_ends_with_its_container(bench):
    bench.python("import time; print('one', flush=True); time.sleep(0.3); print('two')")
    sink = Sink()
    task = bench.loop.spawn(bench.runtime.logs("u1", "main", {"follow": True}, sink), "reader")
    bench.ended()
    bench.until(lambda: task.done, "the end of the log")
    assert sink.data.split() == [b"one", b"two"], sink.data


def a_log_that_is_being_written_is_rotated(bench):
    from edgelite.runtimes import supervised

    path = os.path.join(bench.directory, "pods", "u1", "process", "main", "0", "log")
    supervised.LOG_BYTES, before = 20000, supervised.LOG_BYTES
    try:
        bench.python("for n in range(3000): print('line %06d' % n, flush=not n % 50)\n" + POLITE)
        bench.log_has("up")
        bench.until(lambda: [bench.runtime._settle(), os.path.exists(path + ".1")][1], "it is rotated")
        assert bench.log(tail=2) == "line 002999\nup\n"
        assert os.stat(path).st_size < 20000
    finally:
        supervised.LOG_BYTES = before


def remove_leaves_nothing_and_may_be_repeated(bench):
    script = "import os; os.makedirs('a/b'); open('a/b/c', 'w').close(); os.chmod('a/b/c', 0o400)\n" + POLITE
    bench.python(script)
    bench.log_has("up")
    bench.run(bench.runtime.stop("u1", "main", 30.0))
    bench.run(bench.runtime.remove("u1"))
    bench.run(bench.runtime.remove("u1"))
    assert bench.state.values == {} and os.listdir(os.path.join(bench.directory, "pods", "u1")) == []


# Limits


def limits_are_set_where_job_objects_have_them(bench):
    limits = windows.probe_limits()
    assert {"memory", "pids"} <= limits, limits
    bench.python(POLITE, resources={"limits": {"memory": "256Mi", "cpu": "500m"}})
    bench.log_has("up")
    site = bench.runtime._site
    job = site._job(bench.runtime._newest("u1", "main"))
    told = kernel32.JobLimits()
    kernel32.call(
        "QueryInformationJobObject",
        job,
        kernel32.JOB_LIMITS,
        ctypes.byref(told),
        ctypes.sizeof(told),
        None,
    )
    kernel32.close(job)
    missing = []
    if not told.flags:
        missing.append("the limits of a job: this system does not tell them back")
    else:
        assert told.flags & kernel32.LIMIT_KILL_ON_CLOSE and told.job_memory == 256 << 20, hex(told.flags)
    if "cpu" not in limits:
        missing.append("the cpu's hard cap: this system's job objects have none, and pods are warned")
    if missing:
        raise Skipped("; ".join(missing))


def memory_above_the_limit_is_not_given(bench):
    script = "try:\n    x = bytearray(400 << 20); print('given')\nexcept MemoryError:\n    print('refused')"
    bench.python(script, resources={"limits": {"memory": "200Mi"}})
    bench.ended()
    if bench.log() == "given\n":
        raise Skipped("the memory limit of a job: this system takes it and does not enforce it")
    assert bench.log() == "refused\n", bench.log()


# Files and names


def a_volume_is_shown_by_a_junction(bench):
    source = os.path.join(bench.directory, "volume")
    os.makedirs(source)
    with open(os.path.join(source, "key"), "w") as file:
        file.write("content")
    script = "print(open('conf/d/key').read())"
    try:
        bench.python(script, mounts=[Mount("v", source, "conf/d", False)])
    except RuntimeFailure as failure:
        assert "volume v cannot be shown at conf/d" in failure.message and "NTFS" in failure.message
        raise Skipped("junctions: this system's file system has none, and the pod is told so") from failure
    bench.ended()
    assert bench.log() == "content\n"
    bench.run(bench.runtime.remove("u1"))
    assert os.listdir(source) == ["key"], "removing a pod leaves its volumes alone"


def a_file_that_is_open_keeps_its_content_and_that_is_said(bench):
    root = os.path.join(bench.directory, "files")
    assert winfiles.write(root, {"a": (b"1", 0o644), "d/b": (b"1", 0o644), "old": (b"", 0o644)}, "", None)
    assert not winfiles.write(root, {"a": (b"1", 0o644), "d/b": (b"1", 0o644), "old": (b"", 0o644)}, "", None)
    wanted = {"a": (b"2", 0o644), "d/b": (b"2", 0o644)}
    handle = kernel32.call("CreateFileW", os.path.join(root, "a"), 0x80000000, 1, None, 3, 0x80, None)
    try:
        winfiles.write(root, wanted, "", None)
    except OSError as error:
        assert "a is open in a program" in str(error), error
    else:
        raise AssertionError("it was replaced under its reader")
    finally:
        kernel32.close(handle)
    assert content(root, "a") == "1"
    assert winfiles.write(root, wanted, "", None)
    assert sorted(os.listdir(root)) == ["a", "d"] and content(root, "d", "b") == "2"


def content(*parts):
    with open(os.path.join(*parts), encoding="utf-8") as file:
        return file.read()


def names_that_windows_forbids_are_refused_and_others_can_be_made(bench):
    for name in ("con", "NUL.txt", "a:b", "a?", "dot.", "blank ", "com1", "x\x01"):
        assert windows_names.name_fault(name), name
        try:
            winfiles.write(bench.directory, {name: (b"", 0o644)}, "", None)
        except OSError:
            continue
        raise AssertionError(name)
    for name in ("..hidden", "console", "a b", "com10", "\u00fcml\u00e4ut", ".x"):
        assert not windows_names.name_fault(name), name
        with open(os.path.join(bench.directory, name), "w"):
            pass


def the_boot_id_stays_the_same_until_a_reboot(bench):
    first, second = winhost.WindowsHost().boot_id(), winhost.WindowsHost().boot_id()
    assert first == second and len(first) == 32
    facts = winhost.WindowsHost().node_info()
    assert facts["operatingSystem"] == "windows" and facts["architecture"] == "amd64", facts
    host = winhost.WindowsHost()
    assert host.memory_bytes() > 1 << 28 and host.disk_bytes(bench.directory) > 1 << 20


def windows_splits_command_lines_into_what_they_were_made_of(bench):
    """Against CommandLineToArgvW; the lines come from the test, which has made them by hypothesis, else from a seed."""
    shell = ctypes.WinDLL("shell32")
    shell.CommandLineToArgvW.restype = ctypes.POINTER(ctypes.c_wchar_p)
    path = os.path.join(bench.directory, "..", "..", "lines.json")
    if os.path.exists(path):
        lines = json.loads(content(path))
    else:
        chance = random.Random(7)
        pick = lambda: "".join(chance.choices('ab \t"\\\n%', k=chance.randrange(12)))  # noqa: E731
        lines = [["C:\\some program", *[pick() for _ in range(chance.randrange(5))]] for _ in range(2000)]
    assert len(lines) >= 100
    for argv in lines:
        count = ctypes.c_int()
        found = shell.CommandLineToArgvW(windows_names.command_line(argv), ctypes.byref(count))
        assert found[: count.value] == argv, (argv, found[: count.value])


def the_specification_lies_on_no_disk(bench):
    bench.python(POLITE, env=[("PASSWORD", "hunter2-hunter2")])
    bench.log_has("up")
    for folder, _, names in os.walk(bench.directory):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                assert b"hunter2-hunter2" not in file.read(), name
    c = bench.runtime._newest("u1", "main")
    assert ["PASSWORD", "hunter2-hunter2"] in windows_shim.shared(c.launch)["env"]


def vars_of(status):
    return {name: getattr(status, name) for name in status.__slots__}


PROMISES = [
    arguments_environment_and_exit_code_arrive_as_they_are,
    stop_asks_by_ctrl_break_and_the_program_ends_by_itself,
    what_does_not_listen_is_killed_with_all_its_children_after_its_grace,
    children_end_with_the_main_process,
    a_failed_start_says_why_and_leaves_nothing,
    a_batch_file_is_refused_for_cmd_would_read_its_arguments_otherwise,
    a_new_agent_adopts_what_runs_and_hears_of_its_end,
    what_ended_while_no_agent_ran_is_found_with_its_exit_code,
    a_shim_that_is_killed_takes_its_workload_along,
    a_shim_that_was_never_told_ends_and_was_no_attempt,
    after_a_reboot_an_unrecorded_end_is_unknown,
    exec_has_the_surroundings_of_the_container_and_ends_in_time,
    input_reaches_a_command_whole_and_its_end_is_seen,
    what_a_container_uses_is_told_while_it_runs,
    a_followed_log_ends_with_its_container,
    a_log_that_is_being_written_is_rotated,
    remove_leaves_nothing_and_may_be_repeated,
    limits_are_set_where_job_objects_have_them,
    memory_above_the_limit_is_not_given,
    a_volume_is_shown_by_a_junction,
    a_file_that_is_open_keeps_its_content_and_that_is_said,
    names_that_windows_forbids_are_refused_and_others_can_be_made,
    the_boot_id_stays_the_same_until_a_reboot,
    windows_splits_command_lines_into_what_they_were_made_of,
    the_specification_lies_on_no_disk,
]


def main(directory, names):
    failed = False
    for promise in PROMISES:
        if names and promise.__name__ not in names:
            continue
        said = {"name": promise.__name__}
        began = time.monotonic()
        place = os.path.join(directory, promise.__name__[:24])
        os.makedirs(place)
        bench = Bench(os.path.realpath(place))
        try:
            try:
                promise(bench)
            finally:
                bench.close()
        except Skipped as reason:
            said["skip"] = str(reason)
        except Exception:
            said["error"] = traceback.format_exc()
        said["seconds"] = round(time.monotonic() - began, 2)
        print(json.dumps(said), flush=True)
        # Of wine the test knows what may be skipped; on a real Windows nothing may.
        failed |= "error" in said or "skip" in said
    return int(failed and not hasattr(ctypes.WinDLL("ntdll"), "wine_get_version"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

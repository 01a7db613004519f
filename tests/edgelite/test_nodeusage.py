"""What the machine uses, read from a /proc that the test writes."""

import os

from edgelite import nodeusage
from edgelite.runtimes import process_usage
from edgelite.runtimes.process_proc import Process

MIB = 1 << 20


def test_time_that_cores_have_worked_and_memory_that_cannot_be_had(tmp_path):
    hz = os.sysconf("SC_CLK_TCK")
    (tmp_path / "stat").write_text(f"cpu  {hz} 0 {hz} 9999 777 0 0 {hz} 55 0\ncpu0 1 2 3\n")
    (tmp_path / "meminfo").write_text("MemTotal: 4096 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\n")
    assert nodeusage.read(str(tmp_path)) == (3000000000, 3 * MIB)


def test_a_host_that_does_not_tell_is_no_failure(tmp_path):
    assert nodeusage.read(str(tmp_path)) is None
    (tmp_path / "stat").write_text("cpu  x\n")
    assert nodeusage.read(str(tmp_path)) is None


def test_this_machine_tells():
    cpu, memory = nodeusage.read()
    assert cpu > 0 and memory > MIB


def test_cgroups_are_asked_first_and_each_for_what_it_has(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    one.mkdir()
    (two / "cpu.stat").write_text("usage_usec 1500\nuser_usec 1000\n")
    (one / "memory.usage_in_bytes").write_text("5000\n")
    (one / "memory.stat").write_text("cache 9\ntotal_inactive_file 2000\n")
    groups = [(2, str(two)), (1, str(one))]
    assert process_usage.measure(groups, [], str(tmp_path)) == (1500000, 3000)
    (two / "memory.current").write_text("100\n")
    (two / "memory.stat").write_text("inactive_file 40\n")
    assert process_usage.measure(groups, [], str(tmp_path)) == (1500000, 60)


def test_without_cgroups_living_processes_are_counted(tmp_path):
    hz, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    (tmp_path / "7").mkdir()
    before = f"S 1 7 7 0 -1 0 0 0 0 0 {hz} {hz} {hz} {hz} 20 0 1 0 99 4096 3 "
    (tmp_path / "7" / "stat").write_text("7 (a ) b) " + before + "0 0")
    members = [Process(7, "S", 1, 7, 99), Process(8, "S", 1, 7, 99)]  # the second one has ended
    assert process_usage.measure([], members, str(tmp_path)) == (4000000000, 3 * page)

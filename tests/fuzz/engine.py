"""One target in a process of its own: `python -m tests.fuzz.engine TARGET [FILE...] [-libFuzzer-option...]`.

With files it replays those and needs no fuzzer. Memory and the CPU time of every input are bounded: exceeding either is a
finding, as is any exception.
"""

import ast
import importlib
import os
import resource
import sys
import time
from collections.abc import Callable

ADDRESS_BYTES_MAX = 2 << 30
RSS_MB_MAX = 768
"""What libFuzzer lets the process have in memory; instrumented modules and the corpus take about 150."""
INPUT_BYTES_MAX = 4096
INPUT_CPU_S_MAX = 2.0
"""For at most INPUT_BYTES_MAX bytes; the slowest honest input takes some ms, three times as much with instrumentation."""

Check = Callable[[bytes], None]


class TooSlow(Exception):
    """An input took more CPU time than it may."""


def timed(check: Check) -> Check:
    def run(data: bytes) -> None:
        began = time.process_time()
        check(data)
        took = time.process_time() - began
        if took > INPUT_CPU_S_MAX:
            raise TooSlow(f"{took:.1f} s of CPU for {len(data)} bytes, at most {INPUT_CPU_S_MAX} are allowed")

    return run


def load(target: str) -> Check:
    """The target's `check`, as it is."""
    check: Check = timed(importlib.import_module(f"tests.fuzz.targets.{target}").check)
    return check


def instrumented(target: str) -> Check:
    """The target's `check`, its modules instrumented: they must not have been imported before."""
    import atheris  # needs neither to be there, nor its second to load, for a replay

    # Read from its text, for importing the target would import what it names.
    path = os.path.join(os.path.dirname(__file__), "targets", f"{target}.py")
    with open(path) as file:
        named = {t.id: n.value for n in ast.parse(file.read()).body if isinstance(n, ast.Assign)
                 for t in n.targets if isinstance(t, ast.Name)}  # fmt: skip
    with atheris.instrument_imports(include=list(ast.literal_eval(named["INSTRUMENTED"]))):
        return load(target)


def main() -> None:
    target, *arguments = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES_MAX, ADDRESS_BYTES_MAX))
    files = [name for name in arguments if os.path.isfile(name)]
    if files:
        check = load(target)
        for name in files:
            with open(name, "rb") as file:
                check(file.read())
        return
    check = instrumented(target)
    import atheris

    options = [
        f"-max_len={INPUT_BYTES_MAX}",
        f"-rss_limit_mb={RSS_MB_MAX}",
        "-timeout=120",  # a loop without an end; what is merely slow is found by its CPU time
        "-print_final_stats=1",
        "-detect_leaks=0",
    ]
    atheris.Setup([sys.argv[0], *options, *arguments], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

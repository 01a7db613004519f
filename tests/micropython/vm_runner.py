"""Finds and runs `def test_...()` functions inside the VM; prints one JSON line per test."""

import gc
import io
import json
import sys


def run(names):
    for name in names:
        module = __import__(name)
        for part in name.split(".")[1:]:
            module = getattr(module, part)
        for function in sorted(dir(module)):
            if function.startswith("test_"):
                print(
                    json.dumps(
                        {"module": name, "test": function, "error": failure(getattr(module, function))}
                    )
                )
                gc.collect()


def failure(function):
    """The traceback of a failed test, or ""."""
    try:
        function()
    except BaseException as error:
        text = io.StringIO()
        sys.print_exception(error, text)
        return text.getvalue() or repr(error)
    return ""

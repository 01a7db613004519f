"""Walks a Pod along a runtime's table of fields. [pure]

A table is {path: (verdict, text)} as process_fields describes it; initContainers are judged as containers. What no entry is about
is unknown to this agent, and warned about; a value at its default is never refused or warned about.
"""

from edgelite.runtimes.process_fields import REFUSED, WARNED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Table = dict[str, tuple[str, str]]
    Defaults = dict[str, tuple[Any, ...]]


def judge(spec: "dict[str, Any]", table: "Table", defaults: "Defaults") -> "tuple[list[str], list[str]]":
    """(refusals, warnings) that follow from the table alone: "path: text"."""
    refusals: "list[str]" = []
    warnings: "list[str]" = []
    for where, path, value in _leaves("spec", "spec", spec, table):
        if not value or value in defaults.get(path, ()):
            continue
        verdict, text = table.get(path, (WARNED, "unknown to this agent, has no effect"))
        if verdict == REFUSED:
            refusals.append("%s: %s" % (where, text))
        elif verdict == WARNED:
            warnings.append("%s: %s" % (where, text))
    return refusals, warnings


def _leaves(where: str, path: str, value: "Any", table: "Table") -> "list[tuple[str, str, Any]]":
    """(path with indexes for people, path as in the table, value) of what entries are about."""
    if isinstance(value, list):
        listed = path.replace("spec.initContainers", "spec.containers") + "[]"
        if listed in table or any(known.startswith(listed) for known in table):
            found = []
            for n, entry in enumerate(value):
                found += _leaves("%s[%d]" % (where, n), listed, entry, table)
            return found
    has_inner = any(known.startswith(path + ".") for known in table)
    if isinstance(value, dict) and has_inner:
        found = []
        for name, inner in value.items():
            found += _leaves(where + "." + name, path + "." + name, inner, table)
        return found
    return [(where, path, value)]

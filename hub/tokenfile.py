"""Join tokens asked for by a file: CSV with a header, a token for each line.

Columns: node, pool, site, tenant, ttl, count, in any order, as far as they are needed; the values are those of the options of
`cloudhub token create`. All lines are checked as the API will check them before anything is made.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hub.api import schema, validation
from hub.config import ConfigError, duration_s
from hub.objects import JOINTOKENS
from hub.usage import UsageError

COLUMNS: Final = ("node", "pool", "site", "tenant", "ttl", "count")
FILE_BYTES_MAX: Final = 16 << 20
LINES_MAX: Final = 100_000
PROBLEMS_MAX: Final = 20
"""That are told at once."""
_FIELDS: Final = {"ttlSeconds": "ttl"}
"""Of a JoinToken's spec, where the column is called otherwise."""


class TokenFileError(UsageError):
    """What is wrong with the file, with line and column; nothing has been made."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A line that is in order: `spec` of a JoinToken."""

    line: int
    spec: Mapping[str, Any]


def parse(text: str, options: Mapping[str, Any]) -> list[Wanted]:
    """`options`: fields of the spec that hold for all lines. Raises TokenFileError."""
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    problems: list[str] = []
    wanted: list[Wanted] = []
    seen: dict[str, int] = {}
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        _check_header(header)
        for values in rows:
            if not any(value.strip() for value in values):
                continue
            if len(wanted) >= LINES_MAX:
                raise TokenFileError(f"line {rows.line_num}: at most {LINES_MAX} tokens are made of one file")
            spec, wrong = _spec(header, values, options)
            node = spec.get("node")
            if node is not None and seen.setdefault(str(node), rows.line_num) != rows.line_num:
                wrong.append(("node", f"{node!r} is on line {seen[str(node)]} already"))
            problems += [
                f"line {rows.line_num}{where and ', column ' + where}: {what}" for where, what in wrong
            ]
            if len(problems) >= PROBLEMS_MAX:
                break
            wanted.append(Wanted(rows.line_num, spec))
    except csv.Error as broken:
        raise TokenFileError(f"line {rows.line_num}: no CSV: {broken}") from broken
    if problems:
        raise TokenFileError("\n".join([*problems[:PROBLEMS_MAX], "nothing was made"]))
    if not wanted:
        raise TokenFileError("the file has no lines after its header")
    return wanted


def _check_header(header: list[str]) -> None:
    for number, name in enumerate(header, 1):
        if name not in COLUMNS:
            raise TokenFileError(
                f"line 1, column {number}: {name[:64]!r} is no column; there are {', '.join(COLUMNS)}"
            )
        if name in header[: number - 1]:
            raise TokenFileError(f"line 1, column {number}: {name!r} is there twice")
    if "node" not in header and "pool" not in header:
        raise TokenFileError("line 1: a header is needed, with a column node or pool")


def _spec(
    header: list[str], values: list[str], options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """(the spec, what is wrong as (column, text))."""
    if len(values) != len(header):
        return {}, [("", f"{len(values)} fields, the header has {len(header)}")]
    spec: dict[str, Any] = dict(options)
    wrong: list[tuple[str, str]] = []
    for name, value in zip(header, map(str.strip, values), strict=True):
        if not value:
            continue
        try:
            if name == "ttl":
                spec["ttlSeconds"] = int(duration_s(value, value))
            elif name == "count":
                spec["count"] = int(value)
            else:
                spec[name] = value
        except ConfigError:
            wrong.append((name, f"{value[:64]!r} is no duration; write it as 30m, 1h or 2d"))
        except ValueError:
            wrong.append((name, f"{value[:64]!r} is no number"))
    if wrong:
        return spec, wrong
    return spec, [(_column(cause.field), cause.message) for cause in _causes(spec)]


def _causes(spec: Mapping[str, Any]) -> list[Any]:
    kind = schema.resource(JOINTOKENS.group, JOINTOKENS.version, JOINTOKENS.resource)
    assert kind is not None
    return list(validation.validate_create(kind, {"metadata": {"name": "token"}, "spec": dict(spec)}))


def _column(field: str) -> str:
    name = field.removeprefix("spec.")
    return _FIELDS.get(name, name)

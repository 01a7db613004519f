"""Forms of names, labels, keys and paths, each with Kubernetes' own words. [pure]

Job: functions from a string to the messages of what is wrong with it (none: it is well formed).
Sources: RFC 1123, RFC 6335 (service names), and the Kubernetes page on object names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

Check = Callable[[str], list[str]]

_LABEL_FMT: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN_FMT: Final = _LABEL_FMT + r"(\." + _LABEL_FMT + ")*"
_QUALIFIED_FMT: Final = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE_FMT: Final = f"({_QUALIFIED_FMT})?"
_CONFIG_KEY_FMT: Final = "[-._a-zA-Z0-9]+"
_HEADER_FMT: Final = "[-A-Za-z0-9]+"
_PERCENT_FMT: Final = "[0-9]+%"

_LABEL: Final = re.compile(_LABEL_FMT)
_SUBDOMAIN: Final = re.compile(_SUBDOMAIN_FMT)
_QUALIFIED: Final = re.compile(_QUALIFIED_FMT)
_CONFIG_KEY: Final = re.compile(_CONFIG_KEY_FMT)
_HEADER: Final = re.compile(_HEADER_FMT)
_PERCENT: Final = re.compile(_PERCENT_FMT)
_GENERATED: Final = "bcdfghjklmnpqrstvwxz2456789"  # no vowels: no words
_GENERATED_LENGTH: Final = 5
_NAME_BASE_MAX: Final = 63 - _GENERATED_LENGTH


def _regex(message: str, fmt: str, *examples: str) -> str:
    shown = " or ".join(f"'{example}', " for example in examples)
    return f"{message} (e.g. {shown}regex used for validation is '{fmt}')"


def _longest(limit: int) -> str:
    return f"must be no more than {limit} characters"


def dns_label(value: str) -> list[str]:
    """A namespace, container or volume name."""
    out = [_longest(63)] if len(value) > 63 else []
    if not _LABEL.fullmatch(value):
        out.append(
            _regex(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must "
                "start and end with an alphanumeric character",
                _LABEL_FMT,
                "my-name",
                "123-abc",
            )
        )
    return out


def dns_subdomain(value: str) -> list[str]:
    """The name of most objects."""
    out = [_longest(253)] if len(value) > 253 else []
    if not _SUBDOMAIN.fullmatch(value[:254]):
        out.append(
            _regex(
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and "
                "must start and end with an alphanumeric character",
                _SUBDOMAIN_FMT,
                "example.com",
            )
        )
    return out


def path_segment(value: str) -> list[str]:
    """The name of a role or binding: whatever can stand in a path, such as `system:basic-user`."""
    out = [_longest(253)] if len(value) > 253 else []
    if value in (".", ".."):
        out.append(f"may not be '{value}'")
    out += [f"may not contain '{c}'" for c in ("/", "%") if c in value]
    if any(not c.isprintable() for c in value):
        out.append("may not contain characters that cannot be printed")
    return out


def qualified_name(value: str) -> list[str]:
    """A label or annotation key, taint key, resource name: `name` or `prefix/name`."""
    prefix, slash, name = value.rpartition("/")
    message = (
        "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
        "character"
    )
    if "/" in prefix:
        return [
            "a qualified name "
            + _regex(message, _QUALIFIED_FMT, "MyName", "my.name", "123-abc")
            + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        ]
    out = []
    if slash and not prefix:
        out.append("prefix part must be non-empty")
    elif slash:
        out += [f"prefix part {text}" for text in dns_subdomain(prefix)]
    if not name:
        out.append("name part must be non-empty")
    elif len(name) > 63:
        out.append("name part " + _longest(63))
    if not _QUALIFIED.fullmatch(name):
        out.append("name part " + _regex(message, _QUALIFIED_FMT, "MyName", "my.name", "123-abc"))
    return out


def label_value(value: str) -> list[str]:
    out = [_longest(63)] if len(value) > 63 else []
    if value and not _QUALIFIED.fullmatch(value):
        out.append(
            _regex(
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and "
                "must start and end with an alphanumeric character",
                _LABEL_VALUE_FMT,
                "MyValue",
                "my_value",
                "12345",
            )
        )
    return out


def env_name(value: str) -> list[str]:
    if not value:
        return ["environment variable name must be non-empty"]
    if any(not 0x20 <= ord(c) <= 0x7E or c == "=" for c in value):
        return [
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
        ]
    return []


def config_key(value: str) -> list[str]:
    """A key of a ConfigMap or Secret: it becomes a file name."""
    out = [_longest(253)] if len(value) > 253 else []
    if not _CONFIG_KEY.fullmatch(value):
        out.append(
            _regex(
                "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
                _CONFIG_KEY_FMT,
                "key.name",
                "KEY_NAME",
                "key-name",
            )
        )
    if value == ".":
        out.append("must not be '.'")
    elif value == "..":
        out.append("must not be '..'")
    elif value.startswith(".."):
        out.append("must not start with '..'")
    return out


def http_header(value: str) -> list[str]:
    if _HEADER.fullmatch(value):
        return []
    message = "a valid HTTP header must consist of alphanumeric characters or '-'"
    return [_regex(message, _HEADER_FMT, "X-Header-Name")]


def percent(value: str) -> list[str]:
    if _PERCENT.fullmatch(value):
        return []
    message = "a valid percent string must be a numeric string followed by an ending '%'"
    return [_regex(message, _PERCENT_FMT, "1%", "93%")]


def port_name(value: str) -> list[str]:
    """An IANA service name (RFC 6335)."""
    out = [_longest(15)] if len(value) > 15 else []
    if not re.fullmatch(r"[-a-z0-9]+", value):
        out.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search(r"[a-z]", value):
        out.append("must contain at least one letter (a-z)")
    if "--" in value:
        out.append("must not contain consecutive hyphens")
    if value.startswith("-") or value.endswith("-"):
        out.append("must not begin or end with a hyphen")
    return out


def port_number(value: int) -> list[str]:
    return [] if 1 <= value <= 65535 else ["must be between 1 and 65535, inclusive"]


def relative_path(value: str) -> list[str]:
    """A path that stays below where it is put."""
    if value.startswith("/"):
        return ["must be a relative path"]
    return ["must not contain '..'"] if ".." in value.split("/") else []


def generated_name(base: str, entropy: bytes) -> str:
    """`base` (metadata.generateName) and five characters. entropy: at least 5 random bytes."""
    tail = "".join(_GENERATED[byte % len(_GENERATED)] for byte in entropy[:_GENERATED_LENGTH])
    if len(tail) < _GENERATED_LENGTH:
        raise ValueError(f"need {_GENERATED_LENGTH} bytes of entropy, have {len(entropy)}")
    return base[:_NAME_BASE_MAX] + tail

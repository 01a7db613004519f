"""What a Device says about its properties, and whether a value fits one. The same rules at the hub and at the node. [pure]

A property is an object with `name` and `type`, and optionally `unit` (text for people, UCUM by convention), `access`
(ReadOnly: the node reports it; WriteOnly: the cloud sets it; ReadWrite: both), `minimum` and `maximum` (numbers), `values`
(what a string may be), `maxLength` (characters of a string), and how it is reported: `deadband` (a number is reported
when it differs from what was reported last by at least this), `minIntervalSeconds` (no two reports within it) and `keep`
(how many reports are kept, by the node while the hub is away and in the status: 1 is the latest alone).

Bounds: PROPERTIES_MAX of a device; all reports that may be kept of one take at most KEPT_BYTES_MAX. Runs on MicroPython.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Object = dict[str, Any]
    Faults = list[tuple[str, str]]

BOOLEAN, INTEGER, NUMBER, STRING = "boolean", "integer", "number", "string"
TYPES = (BOOLEAN, INTEGER, NUMBER, STRING)
READ_ONLY, READ_WRITE, WRITE_ONLY = "ReadOnly", "ReadWrite", "WriteOnly"
ACCESS = (READ_ONLY, READ_WRITE, WRITE_ONLY)

PROPERTIES_MAX = 64
NAME_CHARS_MAX = 63
UNIT_CHARS_MAX = 32
VALUES_MAX = 32
TEXT_CHARS_MAX = 256
KEEP_MAX = 64
KEPT_BYTES_MAX = 64 << 10
NUMBER_BYTES = 48  # of one report of a number or truth value as JSON, its time included
TEXT_BYTES_PER_CHAR = 6  # escaped, at worst
INTERVAL_DEFAULT_S = 10
INTERVAL_MAX_S = 86400
SAFE_INTEGER = (1 << 53) - 1  # what every JSON reader keeps exactly
_NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"


def is_number(value: object) -> bool:
    """A finite int or float, and no bool."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return True
    return isinstance(value, float) and value == value and value not in (float("inf"), float("-inf"))


def access_of(prop: "Object") -> str:
    return str(prop.get("access") or READ_ONLY)


def interval_of(prop: "Object") -> int:
    """Seconds between two reports."""
    return int(prop.get("minIntervalSeconds") or INTERVAL_DEFAULT_S)


def keep_of(prop: "Object") -> int:
    return int(prop.get("keep") or 1)


def length_of(prop: "Object") -> int:
    """Characters that a string may have."""
    return int(prop.get("maxLength") or TEXT_CHARS_MAX)


def properties_of(spec: "Object") -> "dict[str, Object]":
    """The properties of a sound spec by name."""
    return {prop["name"]: prop for prop in spec.get("properties") or []}


def value_fault(prop: "Object", value: object) -> str:
    """Why `value` does not fit the property, "" when it does. The property has to be sound."""
    kind = prop["type"]
    if kind == BOOLEAN:
        return "" if isinstance(value, bool) else "must be true or false, is %s" % shown(value)
    if kind == STRING:
        return _text_fault(prop, value)
    if not is_number(value) or (kind == INTEGER and not isinstance(value, int)):
        return "must be %s, is %s" % ("an integer" if kind == INTEGER else "a number", shown(value))
    if isinstance(value, int) and abs(value) > SAFE_INTEGER:
        return "must lie within +-%d, is %s" % (SAFE_INTEGER, shown(value))
    low, high = prop.get("minimum"), prop.get("maximum")
    unit = " " + prop["unit"] if prop.get("unit") else ""
    if low is not None and value < low:
        return "must be at least %s%s, is %s" % (low, unit, shown(value))
    if high is not None and value > high:
        return "must be at most %s%s, is %s" % (high, unit, shown(value))
    return ""


def _text_fault(prop: "Object", value: object) -> str:
    if not isinstance(value, str):
        return "must be a string, is %s" % shown(value)
    if len(value) > length_of(prop):
        return "must have at most %d characters, has %d" % (length_of(prop), len(value))
    allowed = prop.get("values")
    if allowed and value not in allowed:
        return "must be one of %s, is %s" % (", ".join(allowed), shown(value))
    return ""


def desired_fault(prop: "Object | None", value: object) -> str:
    """Why the cloud may not want this of a property (None: there is no such)."""
    if prop is None:
        return "is no property of the device"
    if access_of(prop) == READ_ONLY:
        return "is read-only: the node reports it; access ReadWrite or WriteOnly lets it be set"
    return value_fault(prop, value)


def reported_fault(prop: "Object | None", value: object) -> str:
    """Why the node may not report this of a property (None: there is no such)."""
    if prop is None:
        return "is no property of the device"
    if access_of(prop) == WRITE_ONLY:
        return "is write-only: it is set by the cloud and not reported; access ReadWrite lets it be reported"
    return value_fault(prop, value)


def shown(value: object) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 48 else text[:45] + "..."


def faults(spec: "Object") -> "Faults":
    """(path, what is wrong) of a device's properties and desired values, the spec being an object. At most some dozens."""
    found: "Faults" = []
    listed = spec.get("properties")
    if not isinstance(listed, list) or not listed:
        return [("properties", "at least one property is required")]
    if len(listed) > PROPERTIES_MAX:
        return [("properties", "%d properties, at most %d are allowed" % (len(listed), PROPERTIES_MAX))]
    names: "dict[str, Object]" = {}
    sound = True
    for at, prop in enumerate(listed):
        path = "properties[%d]" % at
        wrong = _property_faults(path, prop)
        found.extend(wrong)
        if wrong:
            sound = False
        elif prop["name"] in names:
            found.append((path + ".name", "%s is there twice" % prop["name"]))
        else:
            names[prop["name"]] = prop
    if not sound:
        return found
    kept = sum([kept_bytes(prop) for prop in names.values()])
    if kept > KEPT_BYTES_MAX:
        text = "reports of %d bytes may be kept, at most %d are allowed: lower keep or maxLength"
        found.append(("properties", text % (kept, KEPT_BYTES_MAX)))
    desired = spec.get("desired")
    if desired is None:
        return found
    if not isinstance(desired, dict):
        found.append(("desired", "must be an object of values by property"))
        return found
    for name in list(desired)[: 2 * PROPERTIES_MAX]:
        fault = desired_fault(names.get(name), desired[name])
        if fault:
            found.append(("desired.%s" % name[:NAME_CHARS_MAX], fault))
    return found


def kept_bytes(prop: "Object") -> int:
    """What the reports of a sound property take at most, as JSON."""
    size = NUMBER_BYTES
    if prop["type"] == STRING:
        longest = max([len(v) for v in prop["values"]]) if prop.get("values") else length_of(prop)
        size += TEXT_BYTES_PER_CHAR * longest
    return keep_of(prop) * size


def _property_faults(path: str, prop: "Any") -> "Faults":
    if not isinstance(prop, dict):
        return [(path, "must be an object")]
    found: "Faults" = []
    name, kind = prop.get("name"), prop.get("type")
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= NAME_CHARS_MAX
        or not all([c in _NAME for c in name])
    ):
        text = "must be 1 to %d letters, digits, '_', '.' or '-'" % NAME_CHARS_MAX
        found.append((path + ".name", text))
    if kind not in TYPES:
        return found + [(path + ".type", "must be one of %s" % ", ".join(TYPES))]
    if access_of(prop) not in ACCESS:
        found.append((path + ".access", "must be one of %s" % ", ".join(ACCESS)))
    unit = prop.get("unit")
    if unit is not None and (not isinstance(unit, str) or len(unit) > UNIT_CHARS_MAX):
        found.append((path + ".unit", "must be a text of at most %d characters" % UNIT_CHARS_MAX))
    found.extend(_range_faults(path, prop))
    found.extend(_text_faults(path, prop))
    for field, most in (("minIntervalSeconds", INTERVAL_MAX_S), ("keep", KEEP_MAX)):
        value = prop.get(field)
        if value is not None and (not _is_integer(value) or not 1 <= value <= most):
            found.append(("%s.%s" % (path, field), "must be an integer from 1 to %d" % most))
    return found


def _range_faults(path: str, prop: "Object") -> "Faults":
    numeric = prop["type"] in (INTEGER, NUMBER)
    found: "Faults" = []
    for field in ("minimum", "maximum", "deadband"):
        value = prop.get(field)
        if value is None:
            continue
        if not numeric:
            found.append(("%s.%s" % (path, field), "is for integers and numbers"))
        elif not is_number(value):
            found.append(("%s.%s" % (path, field), "must be a number"))
        elif field == "deadband" and value < 0:
            found.append((path + ".deadband", "must not be negative"))
    low, high = prop.get("minimum"), prop.get("maximum")
    if not found and low is not None and high is not None and low > high:
        found.append((path + ".maximum", "must not be below minimum, which is %s" % low))
    return found


def _text_faults(path: str, prop: "Object") -> "Faults":
    found: "Faults" = []
    length, values = prop.get("maxLength"), prop.get("values")
    if prop["type"] != STRING:
        for field in ("maxLength", "values"):
            if prop.get(field) is not None:
                found.append(("%s.%s" % (path, field), "is for strings"))
        return found
    if length is not None and (not _is_integer(length) or not 1 <= length <= TEXT_CHARS_MAX):
        found.append((path + ".maxLength", "must be an integer from 1 to %d" % TEXT_CHARS_MAX))
    if values is not None and (
        not isinstance(values, list)
        or not 0 < len(values) <= VALUES_MAX
        or not all([isinstance(v, str) and len(v) <= TEXT_CHARS_MAX for v in values])
    ):
        text = "must be 1 to %d strings of at most %d characters" % (VALUES_MAX, TEXT_CHARS_MAX)
        found.append((path + ".values", text))
    return found


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""Kubernetes quantities: "500m", "1Gi", "1e3". [pure]

Job: parse to an exact number, and write the canonical form that Kubernetes stores (`0.5` → `500m`, `1024Mi` → `1Gi`).
Bounds: 64 characters, magnitude below 2^63 (as in Kubernetes, which caps); finer than a nano is rounded up.
Raises ValueError with Kubernetes' own words.

Source: the serialization rules in the documentation of resource.Quantity.
"""

from __future__ import annotations

import functools
import re
from decimal import ROUND_CEILING, ROUND_UP, Context, Decimal
from typing import Final

_LENGTH_MAX: Final = 64
_LIMIT: Final = Decimal(2**63 - 1)
_WRONG: Final = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
_SHAPE: Final = re.compile(r"([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)")
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_EXPONENT: Final = re.compile(r"[eE]([+-]?\d{1,3})")
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_NANO: Final = Decimal("1e-9")
_CONTEXT: Final = Context(prec=200)


def _split(text: str) -> tuple[Decimal, str]:
    """The exact value and the format: "binary", "decimal" or "exponent"."""
    match = _SHAPE.fullmatch(text) if len(text) <= _LENGTH_MAX else None
    if match is None:
        raise ValueError(_WRONG)
    digits, suffix = match.groups()
    if not _NUMBER.fullmatch(digits):
        raise ValueError("unable to parse numeric part of quantity")
    number = Decimal(digits)
    if suffix in _BINARY:
        value, form = _CONTEXT.multiply(number, Decimal(1024 ** _BINARY[suffix])), "binary"
    elif suffix in _DECIMAL:
        value, form = number.scaleb(_DECIMAL[suffix], _CONTEXT), "decimal"
    elif exponent := _EXPONENT.fullmatch(suffix):
        value, form = number.scaleb(int(exponent[1]), _CONTEXT), "exponent"
    else:
        raise ValueError("unable to parse quantity's suffix")
    value = max(-_LIMIT, min(_LIMIT, value))
    return _CONTEXT.quantize(value, _NANO) if value == 0 else _round(value), form


def _round(value: Decimal) -> Decimal:
    rounded = value.quantize(_NANO, rounding=ROUND_UP, context=_CONTEXT)
    return rounded if rounded != value else value


def parse(text: str) -> Decimal:
    """The exact value in units of 1 (bytes, cores). Raises ValueError."""
    return _split(text)[0]


def milli(text: str) -> int:
    """The value in thousandths, rounded up: cpu as millicores. Raises ValueError."""
    return int((parse(text) * 1000).to_integral_value(rounding=ROUND_CEILING))


def whole(text: str) -> int:
    """The value in units of 1, rounded up: memory as bytes. Raises ValueError."""
    return int(parse(text).to_integral_value(rounding=ROUND_CEILING))


@functools.lru_cache(maxsize=1024)
def canonical(text: str) -> str:
    """The one form that Kubernetes stores: no fraction, the largest suffix that loses nothing. Raises ValueError."""
    value, form = _split(text)
    if value == 0:
        return "0"
    if form == "binary" and (abs(value) < 1024 or value != value.to_integral_value()):
        form = "decimal"
    if form == "binary":
        number = int(value)
        power = 0
        while power < 6 and number % 1024 == 0:
            number //= 1024
            power += 1
        return f"{number}{next((s for s, p in _BINARY.items() if p == power), '')}"
    number, exponent = int(value.scaleb(9, _CONTEXT)), -9
    while exponent < 18 and number % 1000 == 0:
        number //= 1000
        exponent += 3
    if form == "exponent":
        return f"{number}e{exponent}" if exponent else str(number)
    return f"{number}{next(s for s, e in _DECIMAL.items() if e == exponent)}"
